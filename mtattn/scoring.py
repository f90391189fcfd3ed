"""`mtattn eval`: translate a split or a pair of files with a trained model, and score it."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mtattn.checkpoint import read_config
from mtattn.errors import ConfigError, CorpusError
from mtattn.evaluate import score
from mtattn.file_flags import require_direction
from mtattn.loading import model_folder, weights_sha256
from mtattn.prepare import load_split
from mtattn.progress import Reporter
from mtattn.sources import CorpusSource
from mtattn.translate import load_translator


def evaluate_run(
    run: Path,
    split: str,
    files: tuple[Path, Path] | None,
    *,
    device: torch.device,
    beam: int | None,
    overrides: Sequence[str] = (),
    report: Reporter,
) -> dict[str, Any]:
    """Scores of a model on a split that its config names, or on a source and a reference file.

    Args:
        beam, overrides: see `load_translator`.

    Returns:
        bleu, chrf, ter, signature (of each), num_sentences, scored (the split, or the source file's name), weights
        (their sha256), seconds (of translating).

    Raises:
        ConfigError: the config names no such split, or the files are the other way round. CorpusError: the text cannot
            be read.
    """
    translator = load_translator(run, device, beam=beam, overrides=overrides)
    data = read_config(model_folder(run)).data
    if files is not None:
        require_direction(*files, data, trained=True)
        named = CorpusSource(str(files[0]), target=str(files[1]))
        data, split = replace(data, folder="", test=named), "test"
    elif not getattr(data, split):
        raise ConfigError(f"{run}: its config names no {split} corpus; give --src-file and --ref-file")
    try:
        pairs = load_split(data, split)
    except CorpusError as error:
        hint = "" if files else "; to score other text, give --src-file and --ref-file"
        raise CorpusError(f"{error}{hint}") from None
    started = time.perf_counter()
    with report.bar("translating", len(pairs.src)) as bar:
        outputs = [translation.text for translation in translator.translate(pairs.src, bar.advance)]
    seconds = time.perf_counter() - started
    for note in translator.notes():
        report.note(note)
    scored = split if files is None else files[0].name
    found = asdict(score(outputs, pairs.tgt))
    return {**found, "scored": scored, "weights": weights_sha256(run), "seconds": round(seconds, 2)}
