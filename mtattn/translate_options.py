"""What `mtattn translate` can be asked for beyond a beam: each option is one hook of the Translator."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mtattn.decode import MAX_WIDTH
from mtattn.ensemble import Ensemble
from mtattn.errors import ConfigError, ModelError
from mtattn.glossary import load_glossary
from mtattn.inference import PreparedModel
from mtattn.loading import load_model
from mtattn.translate import Translator, load_translator, placed


def make_translator(
    run: Path,
    device: torch.device,
    *,
    beam: int | None,
    nbest: int | None,
    overrides: Sequence[str],
    ensemble: Sequence[Path],
    glossary: Path | None,
    mbr: int | None,
) -> Translator:
    """A run's translator with the options of `mtattn translate`; errors as for the functions that this calls."""
    translator = load_translator(run, device, beam=beam, nbest=nbest, overrides=overrides)
    if ensemble:
        add_members(translator, run, ensemble, device)
    if glossary is not None:
        translator.refine.append(load_glossary(glossary, translator.tokenizer))
    if mbr is not None:
        add_mbr(translator, mbr, beam=beam)
    return translator


def add_members(translator: Translator, run: Path, others: Sequence[Path], device: torch.device) -> None:
    """Let the models of more runs vote at each step (see `mtattn.ensemble`).

    Args:
        run: the translator's own, for messages.
        others: runs or released models with the same tokenizer.

    Raises:
        ModelError: one is unusable, or has another tokenizer. ConfigError: [decode] asks of one what it cannot do.
    """
    members = [translator.prepared]
    for other in others:
        model, tokenizer, config = load_model(other)
        if tokenizer.to_files() != translator.tokenizer.to_files():
            raise ModelError(
                f"{other}: its tokenizer is not that of {run}; an ensemble averages over one vocabulary, so train its "
                "members on the same corpus with the same [tokenizer]"
            )
        translator.max_len = min(translator.max_len, config.filter.max_len)
        try:
            quantization = translator.config.quantization
            members.append(PreparedModel(placed(model, device, quantization), quantization))
            # as a check alone: learned positions must reach as far as this search may go
            replace(config, filter=replace(config.filter, max_len=translator.max_len), decode=translator.config)
        except ValueError as error:
            raise ConfigError(f"{other}: {error}") from None

    def start(src: Tensor) -> Ensemble:
        return Ensemble([member.start(src) for member in members])

    translator.start = start


def add_mbr(translator: Translator, num_candidates: int, *, beam: int | None) -> None:
    """Search num_candidates of each line and keep those most like the rest (see `mtattn.mbr`).

    Args:
        num_candidates: samples where [decode] samples, an n-best list otherwise.
        beam: what the user asked for; None: as wide as is needed.

    Raises:
        ConfigError: fewer than 2 candidates, or than are to be returned, or more than the beam or MAX_WIDTH.
    """
    from mtattn.mbr import MinimumBayesRisk  # sacrebleu, which takes a third of a second to import

    config, sampled = translator.config, translator.config.search == "sample"
    if not max(2, config.nbest) <= num_candidates <= MAX_WIDTH:
        raise ConfigError(
            f"--mbr {num_candidates}: give at least 2 candidates, and at least --nbest ({config.nbest}), but at most "
            f"{MAX_WIDTH}"
        )
    if not sampled and beam is not None and beam < num_candidates:
        raise ConfigError(
            f"--mbr {num_candidates}: needs as many hypotheses, and --beam is {beam}; raise it, leave it out, or draw "
            "samples with --set decode.search=sample"
        )
    translator.config = replace(config, nbest=num_candidates, beam_size=max(config.beam_size, num_candidates))
    translator.refine.append(MinimumBayesRisk(config.nbest, sampled=sampled))
