"""`mtattn export`: a trained model in the formats that others run, each copy compared with it before it stands.

A way out is a file here with an `EXPORTER`, and a line in EXPORTERS.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import mtattn
from mtattn.config import Config
from mtattn.decode import DecodeConfig
from mtattn.errors import ConfigError, CorpusError, FileError
from mtattn.export import ctranslate2, huggingface, onnx
from mtattn.export.exporter import Exporter, Trained
from mtattn.export.parity import Ids, Native, Parity, compare, require_parity
from mtattn.loading import load_model
from mtattn.prepare import held_out, load_split, open_corpus
from mtattn.progress import Reporter
from mtattn.storage import recover_folder
from mtattn.textio import open_lines
from mtattn.tokenizer import Tokenizer

EXPORTERS: dict[str, Exporter] = {
    "ctranslate2": ctranslate2.EXPORTER,
    "onnx": onnx.EXPORTER,
    "huggingface": huggingface.EXPORTER,
}

RECORD = "export.json"  # what was exported and how it compared; also how a folder is known to be an export
PARITY_LINES = 200


def capabilities(config: Config) -> dict[str, str]:
    """For each way out, why a model with this config cannot go there; or "yes", and what else to know."""
    return {
        name: "; ".join(exporter.refusals(config.model)) or ", ".join(filter(None, ("yes", exporter.remark(config))))
        for name, exporter in EXPORTERS.items()
    }


def export_model(
    run: Path,
    to: str,
    out: Path,
    report: Reporter,
    *,
    quantization: str | None = None,
    lines: Path | None = None,
    force: bool = False,
) -> Parity:
    """Write a copy of a trained model and compare it with the model; a copy that differs is not kept.

    Args:
        run: a run directory or a released model.
        to: a key of EXPORTERS. quantization: of the weights; None: the exporter's default.
        lines: source text to compare on; None: the dev corpus, with its references. Of either, the first 200 lines
            that are not blank and that the model would not split.
        force: replace an earlier export.

    Raises:
        ConfigError: the model cannot go there, the quantization is unknown, an extra is missing, `out` or a folder
            beside it, filled first or set aside, is taken, or there is no line to compare on.
        ModelError: no usable model, or the copy computes something else. FileError: it cannot be written.
    """
    exporter = EXPORTERS[to]
    quantization = quantization or next(iter(exporter.limits))
    if quantization not in exporter.limits:
        raise ConfigError(f"--quantization {quantization}: --to {to} has {', '.join(exporter.limits)}")
    out = out.resolve()  # "." has no name
    if not out.name:
        raise ConfigError(f"{out}: name a folder to write")
    temporary, aside = (out.with_name(out.name + suffix) for suffix in (".tmp", ".old"))
    replaces = out.exists()
    _check_free(out, (temporary, aside) if replaces else (temporary,), run, force=force)
    trained = Trained(*load_model(run), run)
    if reasons := exporter.refusals(trained.config.model):
        raise ConfigError(f"{run}: cannot be exported to {to}: {'; '.join(reasons)}")
    src, tgt = _parity_text(trained.config, lines, trained.tokenizer, report)
    decode = trained.config.decode
    # Of [decode] only what every engine can be told: n-grams and least lengths are not forbidden there.
    greedy = DecodeConfig(beam_size=1, max_len_ratio=decode.max_len_ratio, max_len_extra=decode.max_len_extra)
    try:
        temporary.mkdir(parents=True)
        try:
            exporter.write(trained, temporary, quantization)
            report.note(f"written; now comparing it with the model on {len(src)} lines")
            native = Native(trained.model, trained.tokenizer)
            parity = compare(native, exporter.load(temporary, trained.tokenizer), src, tgt, greedy)
            require_parity(parity, exporter.limits[quantization])
            record = {"to": to, "quantization": quantization, "mtattn": mtattn.__version__, "parity": asdict(parity)}
            (temporary / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            if replaces:
                out.rename(aside)  # until the new one stands
            temporary.rename(out)
        finally:  # only what was made here
            if replaces:
                recover_folder(out)
                shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise FileError(f"{out}: cannot be written: {error.strerror or error}") from None
    return parity


def _check_free(out: Path, needed: Iterable[Path], run: Path, *, force: bool) -> None:
    for path in needed:
        if path.exists():
            raise ConfigError(f"{path}: is in the way; delete it if an export that was killed left it, or rename it")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file() or out in (run.resolve(), *run.resolve().parents):
        raise ConfigError(f"{out}: exists already and is no earlier export; give another folder")
    if not force:
        raise ConfigError(f"{out}: exists already; --force replaces it")


def _parity_text(config: Config, lines: Path | None, tokenizer: Tokenizer, report: Reporter) -> tuple[Ids, Ids | None]:
    """Ids of the sources, and of their references where there are any."""
    most = config.filter.max_len
    if lines is not None:
        with open_lines(lines, report) as texts:
            found = _fitting(((tokenizer.encode_src([text])[0],) for text in texts if text.strip()), most, str(lines))
        return [src for (src,) in found], None
    try:
        if config.data.dev:
            pairs = load_split(config.data, "dev")
        else:  # what training kept for validation
            pairs = held_out(open_corpus(config.data), config.train.hold_out, config.train.seed)
    except CorpusError as error:
        raise ConfigError(f"{error}; give source text to compare on with --lines FILE") from None
    encoded = (
        (tokenizer.encode_src([src])[0], tokenizer.encode_tgt([tgt])[0])
        for src, tgt in zip(pairs.src, pairs.tgt, strict=True)
        if src.strip() and tgt.strip()
    )
    both = _fitting(encoded, most, "the dev corpus")
    return [src for src, _ in both], [tgt for _, tgt in both]


def _fitting(rows: Iterable[tuple[list[int], ...]], most: int, where: str) -> list[tuple[list[int], ...]]:
    """The first rows in which nothing is blank (EOS alone) or longer than the model was trained on."""
    fitting = (row for row in rows if all(1 < len(ids) <= most for ids in row))
    if not (found := list(islice(fitting, PARITY_LINES))):
        raise ConfigError(f"{where}: holds no text of up to {most} pieces to compare the copy with the model on")
    return found
