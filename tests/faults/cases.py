"""The table of faults: what is done to a finished run or asked of it, and what must come of that.

A case starts in a folder of its own with corpus/ (see tiny_run.write_corpus), tiny.toml, other.model (a tokenizer of
another vocabulary) and run/, a finished run of two epochs with two checkpoints and a released model. Where nothing
else is said, every file must be as it was afterwards.
"""

import fcntl
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mtattn import storage
from mtattn.storage import MANIFEST, make_manifest, tensors_to_bytes

Arrange = Callable[[Path, pytest.MonkeyPatch], object]

TRANSLATE = "translate run in.txt"
TRAIN = "train tiny.toml --run run"
GO_ON = f"{TRAIN} --set train.max_epochs=3"
ANEW = "train tiny.toml --run new"
FINE, USAGE, MODEL, FILE, IN_USE, DIVERGED, CORPUS = 0, 2, 3, 4, 5, 6, 7


@dataclass(frozen=True)
class Case:
    """One fault.

    name: what is wrong. command: the arguments of mtattn. exit_code, message: what must come; the message is a regular
    expression for the first line on stderr that is an error, a warning, or says that it was interrupted.
    arrange: makes the fault, in the case's folder. changes: files or folders that may look different afterwards.
    """

    name: str
    command: str
    exit_code: int
    message: str
    arrange: Arrange = field(default=lambda folder, patch: None)
    changes: tuple[str, ...] = ()


# --- ways to break things ---------------------------------------------------------------------------------------------


def flip(path: str) -> Arrange:
    """One bit in the middle of a file."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        data = bytearray((folder / path).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / path).write_bytes(data)

    return arrange


def write(path: str, data: bytes | str) -> Arrange:
    """A file's content is another."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data.encode() if isinstance(data, str) else data)

    return arrange


def cut(path: str, size: int = 100) -> Arrange:
    """Only a file's first bytes are left."""
    return lambda folder, patch: os.truncate(folder / path, size)


def remove(*paths: str) -> Arrange:
    """Files or folders are gone."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        for path in paths:
            shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()

    return arrange


def replace(path: str, old: str, new: str) -> Arrange:
    """Some text of a file is another."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new))

    return arrange


def both(*steps: Arrange) -> Arrange:
    """One thing after the other."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        for step in steps:
            step(folder, patch)

    return arrange


def vouched(step: Arrange, where: str = "run/model") -> Arrange:
    """The same, by someone who then makes the folder's manifest fit, as whoever hands out a bad model can."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        step(folder, patch)
        files = {path.name: path.read_bytes() for path in (folder / where).iterdir() if path.name != MANIFEST}
        (folder / where / MANIFEST).write_text(json.dumps(make_manifest(files)))

    return arrange


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Arrange:
    """The released model has other weights, and its manifest fits them."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        path = folder / "run/model/model.safetensors"
        tensors = load_file(path)
        change(tensors)
        path.write_bytes(tensors_to_bytes(tensors))

    return vouched(arrange)


def config(old: str, new: str) -> Arrange:
    """The released model has another config, and its manifest fits it."""
    return vouched(replace("run/model/config.toml", old, new))


def state(change: Callable[[dict[str, Any]], object]) -> Arrange:
    """The newest checkpoint's state.json says something else, and its manifest fits."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        path = folder / NEWEST / "state.json"
        values = json.loads(path.read_bytes())
        change(values)
        path.write_text(json.dumps(values))

    return vouched(arrange, NEWEST)


def disk_full(after: int) -> Arrange:
    """No file may grow beyond so many bytes."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (after, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return arrange


def raising(number: signal.Signals, where: str) -> Arrange:
    """The signal comes when this function ("module.name" or "module.Class.name") is called."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        module, _, name = where.partition(".")
        owner: Any = __import__(f"mtattn.{module}", fromlist=["x"])
        *classes, function = name.split(".")
        for part in classes:
            owner = getattr(owner, part)
        original = getattr(owner, function)

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            patch.setattr(owner, function, original)
            signal.raise_signal(number)
            return original(*args, **kwargs)

        patch.setattr(owner, function, interrupted)

    return arrange


def raising_in_save(number: signal.Signals, operation: str) -> Arrange:
    """The signal comes before this file operation."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        def before(name: str) -> None:
            if name.startswith(operation):
                patch.setattr(storage, "before_operation", lambda name: None)
                signal.raise_signal(number)

        patch.setattr(storage, "before_operation", before)

    return arrange


def failing_operation(operation: str) -> Arrange:
    """This file operation fails with an I/O error."""

    def arrange(folder: Path, patch: pytest.MonkeyPatch) -> None:
        def before(name: str) -> None:
            if name.startswith(operation):
                raise OSError(5, "Input/output error")

        patch.setattr(storage, "before_operation", before)

    return arrange


def never_finite(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Every loss is NaN."""
    import mtattn.learner

    original = mtattn.learner.batch_loss
    patch.setattr(mtattn.learner, "batch_loss", lambda *args: original(*args) * torch.nan)


def hold_lock(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Another trainer is at work in run/."""
    descriptor = os.open(folder / "run" / ".lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    patch.setattr(signal, "_kept_by_the_test", descriptor, raising=False)


def cache_is_a_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The cache folder cannot be made."""
    (folder / "cache-file").write_bytes(b"")
    patch.setenv("MTATTN_CACHE", str(folder / "cache-file"))


def leave_mid_replace(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A save was killed between its two renames."""
    (folder / NEWEST).rename(folder / f"{NEWEST}.old")
    (folder / f"{NEWEST}.tmp").mkdir()


def header(text: str, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text.encode() + data


def bad_weights(data: bytes) -> Arrange:
    """The released model's weights are these bytes, and its manifest fits."""
    return vouched(write("run/model/model.safetensors", data))


OLDER, NEWEST = "run/checkpoints/step-5", "run/checkpoints/step-10"
OVERLAP = header(
    '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}',
    bytes(24),
)
RUN = ("run",)
TERM, INT = signal.SIGTERM, signal.SIGINT

# --- the table --------------------------------------------------------------------------------------------------------

DAMAGED_MODEL = [
    Case(
        "weights with a flipped bit",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: damaged \(its sha256",
        flip("run/model/model.safetensors"),
    ),
    Case(
        "weights cut short",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: 100 bytes where the manifest says \d+",
        cut("run/model/model.safetensors"),
    ),
    Case(
        "no weights",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: missing",
        remove("run/model/model.safetensors"),
    ),
    Case(
        "no tokenizer",
        TRANSLATE,
        MODEL,
        r"error: run/model/tokenizer.model: missing",
        remove("run/model/tokenizer.model"),
    ),
    Case(
        "another tokenizer",
        TRANSLATE,
        MODEL,
        r"error: run/model/tokenizer.model: ",
        lambda f, p: shutil.copy(f / "other.model", f / "run/model/tokenizer.model"),
    ),
    Case("a model's config with a flipped bit", TRANSLATE, MODEL, r"error: run/model/", flip("run/model/config.toml")),
    Case(
        "no manifest",
        TRANSLATE,
        MODEL,
        r"error: run/model: no trained model here yet",
        remove("run/model/MANIFEST.json"),
    ),
    Case(
        "a manifest cut short",
        TRANSLATE,
        MODEL,
        r"error: run/model/MANIFEST.json: not valid JSON",
        cut("run/model/MANIFEST.json", 20),
    ),
    Case(
        "an empty manifest",
        TRANSLATE,
        MODEL,
        r"error: run/model/MANIFEST.json: not valid JSON",
        cut("run/model/MANIFEST.json", 0),
    ),
    Case("no such run", "translate nowhere in.txt", MODEL, r"error: nowhere: no such folder; give a run directory"),
    Case(
        "a file as a run",
        "translate in.txt in.txt",
        MODEL,
        r"error: in.txt: is a file; a model is a folder",
    ),
    Case(
        "a folder that is no run",
        "translate corpus in.txt",
        MODEL,
        r"error: corpus: not a run directory or released model",
    ),
    Case(
        "a run that was never saved",
        TRANSLATE,
        MODEL,
        r"error: run: no trained model here yet; run `mtattn train`",
        remove("run/model", "run/checkpoints"),
    ),
    Case(
        "a damaged best checkpoint",
        TRANSLATE,
        MODEL,
        r"error: run/checkpoints/step-\d+/model.safetensors: damaged",
        both(remove("run/model"), flip(f"{OLDER}/model.safetensors"), flip(f"{NEWEST}/model.safetensors")),
    ),
    Case(
        "a run whose tokenizer was replaced",
        TRANSLATE,
        MODEL,
        r"error: run: its tokenizer is not the one that step-\d+ was trained with",
        both(remove("run/model"), lambda f, p: shutil.copy(f / "other.model", f / "run/tokenizer.model")),
    ),
    Case(
        "eval with damaged weights",
        "eval run --src-file in.txt --ref-file in.txt",
        MODEL,
        r"error: run/model/model.safetensors: damaged",
        flip("run/model/model.safetensors"),
    ),
]

STRANGERS_MODEL = [
    Case(
        "a pickle for weights",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: ",
        bad_weights(b"\x80\x04\x95" + bytes(200)),
    ),
    Case(
        "a pickle large enough for the config",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: not a safetensors file",
        bad_weights(b"\x80\x04\x95" + bytes(60_000)),
    ),
    Case(
        "a header of 2^62 bytes",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: not a safetensors file",
        bad_weights((2**62).to_bytes(8, "little") + bytes(60_000)),
    ),
    Case(
        "overlapping tensors",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: not a safetensors file",
        bad_weights(OVERLAP + bytes(60_000)),
    ),
    Case(
        "a tensor beyond the file",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: not a safetensors file",
        bad_weights(
            header('{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', bytes(60_000))
        ),
    ),
    Case(
        "a deep header",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: not a safetensors file",
        bad_weights(header("[" * 60_000)),
    ),
    Case(
        "weights that are NaN",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: tgt_embed.weight holds values that are not finite",
        weights(lambda w: w["tgt_embed.weight"][0].fill_(torch.nan)),
    ),
    Case(
        "weights that are infinite",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: tgt_embed.weight holds values that are not finite",
        weights(lambda w: w["tgt_embed.weight"][0].fill_(torch.inf)),
    ),
    Case(
        "a tensor too many",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: the weights are not .*: extra: F32 \[1\] in the file, absent in",
        weights(lambda w: w.update(extra=torch.ones(1))),
    ),
    Case(
        "a tensor too few",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: the weights are not .*: decoder_norm.weight: absent in the file",
        weights(lambda w: w.pop("decoder_norm.weight")),
    ),
    Case(
        "a tensor of another shape",
        TRANSLATE,
        MODEL,
        r"error: .* decoder_norm.weight: F32 \[17\] in the file, F32 \[16\] in the config",
        weights(lambda w: w.update({"decoder_norm.weight": torch.ones(17)})),
    ),
    Case(
        "a tensor of another dtype",
        TRANSLATE,
        MODEL,
        r"error: .* decoder_norm.weight: I32 \[16\] in the file, F32 \[16\] in the config",
        weights(lambda w: w.update({"decoder_norm.weight": torch.ones(16, dtype=torch.int32)})),
    ),
    Case(
        "a config of 10^9 layers",
        TRANSLATE,
        MODEL,
        r"error: run/model/config.toml: model.*encoder_layers is 1000000000; allowed: 1 to",
        config("encoder_layers = 1", "encoder_layers = 1000000000"),
    ),
    Case(
        "a config of more layers than are allowed",
        TRANSLATE,
        MODEL,
        r"error: config.toml beside run/model/model.safetensors: 60001 layers; a model has at most 1000",
        config("encoder_layers = 1", "encoder_layers = 60000"),
    ),
    Case(
        "a config of more layers than the weights hold",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: \d+ bytes; a model as in config.toml has at least \d+",
        config("encoder_layers = 1", "encoder_layers = 900"),
    ),
    Case(
        "a config of wider layers than the weights hold",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: \d+ bytes; a model as in config.toml has at least \d+",
        config("d_ff = 16", "d_ff = 65536"),
    ),
    Case(
        "a config with a setting of its own",
        TRANSLATE,
        MODEL,
        r"error: run/model/config.toml: model.code is not a setting",
        config("d_ff = 16", 'd_ff = 16\ncode = "x"'),
    ),
    Case(
        "a config that is no TOML",
        TRANSLATE,
        MODEL,
        r"error: run/model/config.toml: not valid TOML",
        vouched(write("run/model/config.toml", "[[[")),
    ),
    Case(
        "a config that is not UTF-8",
        TRANSLATE,
        MODEL,
        r"error: run/model/config.toml: not valid TOML",
        vouched(write("run/model/config.toml", b"\xff\xfe")),
    ),
    Case(
        "a deep config",
        TRANSLATE,
        MODEL,
        r"error: run/model/config.toml: ",
        vouched(write("run/model/config.toml", "x = " + "[" * 50_000 + "]" * 50_000)),
    ),
    Case(
        "a tokenizer of 0 bytes", TRANSLATE, MODEL, r"error: .*token", vouched(write("run/model/tokenizer.model", b""))
    ),
    Case(
        "a tokenizer of noise",
        TRANSLATE,
        MODEL,
        r"error: the tokenizer is not a SentencePiece model",
        vouched(write("run/model/tokenizer.model", os.urandom(500))),
    ),
    Case(
        "a tokenizer of another vocabulary",
        TRANSLATE,
        MODEL,
        r"error: run/model/model.safetensors: .*tgt_embed.weight: F32",
        vouched(lambda f, p: shutil.copy(f / "other.model", f / "run/model/tokenizer.model")),
    ),
    Case(
        "a manifest that climbs out",
        TRANSLATE,
        MODEL,
        r"error: run/model/MANIFEST.json: names '../../in.txt', which is not a plain file",
        replace("run/model/MANIFEST.json", '"config.toml"', '"../../in.txt": {}, "config.toml"'),
    ),
    Case(
        "a manifest with an absolute path",
        TRANSLATE,
        MODEL,
        r"error: run/model/MANIFEST.json: names '/etc/passwd', which is not a plain file",
        replace("run/model/MANIFEST.json", '"config.toml"', '"/etc/passwd": {}, "config.toml"'),
    ),
    Case(
        "a manifest that vouches for nothing",
        TRANSLATE,
        MODEL,
        r"error: run/model/MANIFEST.json: does not list config.toml",
        write("run/model/MANIFEST.json", "{}"),
    ),
    Case(
        "a manifest that is a list",
        TRANSLATE,
        MODEL,
        r"error: run/model/MANIFEST.json: not a JSON object",
        write("run/model/MANIFEST.json", "[]"),
    ),
    Case(
        "a deep manifest",
        TRANSLATE,
        MODEL,
        r"error: run/model/MANIFEST.json: not valid JSON",
        write("run/model/MANIFEST.json", '{"a":' * 100_000),
    ),
]

USE = [
    Case("beam 0", f"{TRANSLATE} --beam 0", USAGE, r"error: decode: beam_size = 0: it must be from 1 to 1000"),
    Case(
        "more n-best than beams",
        f"{TRANSLATE} --beam 2 --nbest 5",
        USAGE,
        r"error: decode: nbest = 5: it must be from 1 to beam_size \(2\)",
    ),
    Case("a beam that is no number", f"{TRANSLATE} --beam many", USAGE, r"Usage: "),
    Case("an unknown option", f"{TRANSLATE} --bean 4", USAGE, r"Usage: "),
    Case("an unknown command", "translat run", USAGE, r"Usage: "),
    Case(
        "an output that exists",
        f"{TRANSLATE} -o out.txt",
        USAGE,
        r"error: out.txt: exists already; --force replaces it",
        write("out.txt", "precious"),
    ),
    Case("an output that is the input", f"{TRANSLATE} -o in.txt --force", USAGE, r"error: in.txt: is also the input"),
    Case("no input", "translate run nowhere.txt -o out.txt", FILE, r"error: nowhere.txt: cannot be read: No such file"),
    Case("a folder as input", "translate run corpus", FILE, r"error: corpus: cannot be read: Is a directory"),
    Case(
        "an output in no folder",
        f"{TRANSLATE} -o no/out.txt",
        FILE,
        r"error: no/out.txt: there is no folder no; make it first",
    ),
    Case(
        "a device that is not here",
        f"{TRANSLATE} --device {'cuda' if not torch.cuda.is_available() else 'mps'}",
        USAGE,
        r"error: --device \w+: this machine has none",
    ),
    Case(
        "a disk that fills under the output",
        "translate run long.txt -o out.txt --beam 1",
        FILE,
        r"error: out.txt: cannot be written: File too large",
        both(write("long.txt", "a b c d e f g h\n" * 300), disk_full(2000)),
        ("out.txt",),
    ),
    Case(
        "input that is not UTF-8",
        f"{TRANSLATE} --beam 1",
        FINE,
        r"warning: in.txt: 1 lines are not valid UTF-8 \(first line 2\)",
        write("in.txt", b"a b\n\xff\xfe\nc\n"),
    ),
    Case(
        "a source without its reference",
        "eval run --src-file in.txt",
        USAGE,
        r"error: --src-file and --ref-file go together",
    ),
    Case(
        "a split that the config lacks",
        "eval run --split test",
        USAGE,
        r"error: run: its config names no test corpus; give --src-file and --ref-file",
    ),
    Case(
        "a source and a reference of different lengths",
        "eval run --src-file in.txt --ref-file corpus/dev.de",
        CORPUS,
        r"error: in.txt has 2 lines but corpus/dev.de has 4",
    ),
    Case(
        "an empty source",
        "eval run --src-file empty --ref-file empty",
        CORPUS,
        r"error: empty.*: no pairs; it is empty",
        write("empty", ""),
    ),
    Case(
        "a corpus that is gone",
        "eval run --split dev",
        CORPUS,
        r"error: corpus/dev.en: no such file",
        remove("corpus/dev.en"),
    ),
]

CONFIG = [
    Case(
        "an unknown setting",
        f"{ANEW} --set train.max_epoch=3",
        USAGE,
        r"error: tiny.toml, with overrides: train.max_epoch is not a setting; did you mean 'max_epochs'\?",
    ),
    Case(
        "a value of another type",
        f"{ANEW} --set train.max_epochs=few",
        USAGE,
        r"error: tiny.toml, with overrides: train.max_epochs = 'few': it should be a valid integer",
    ),
    Case(
        "an impossible combination",
        f"{ANEW} --set model.num_heads=3",
        USAGE,
        r"error: tiny.toml, with overrides: model: d_model 16 is not a multiple of num_heads 3",
    ),
    Case(
        "an override without a value",
        f"{ANEW} --set train.max_epochs",
        USAGE,
        r"error: --set train.max_epochs: write it as section.key=value",
    ),
    Case(
        "no such config",
        "train toi",
        USAGE,
        r"error: no config file or bundled config named 'toi'; did you mean 'toy'\?",
    ),
    Case(
        "a config file that is no TOML", ANEW, USAGE, r"error: tiny.toml: not valid TOML", write("tiny.toml", "[data")
    ),
    Case(
        "a source file alone",
        "train --src-file corpus/train.en",
        USAGE,
        r"error: --src-file and --tgt-file go together",
    ),
    Case(
        "a run begun with another config",
        f"{GO_ON} --set optim.lr=0.5",
        USAGE,
        r"error: run was begun with another config: optim.lr = 0.5, was 0.002; --fresh starts over",
    ),
    Case(
        "a run begun with another config, in two fields",
        f"{GO_ON} --set model.d_ff=32 --set train.seed=9",
        USAGE,
        r"error: run was begun with another config: model.d_ff = 32, was 16; train.seed = 9, was 1;",
    ),
]

TRAINING_TEXT = [
    Case(
        "no training file", ANEW, CORPUS, r"error: corpus/train.de: no such file", remove("corpus/train.de"), ("new",)
    ),
    Case(
        "sides of different lengths",
        ANEW,
        CORPUS,
        r"error: corpus/train.de has 1 lines but corpus/train.en has 60",
        write("corpus/train.de", "A\n"),
        ("new",),
    ),
    Case(
        "empty training files",
        ANEW,
        CORPUS,
        r"error: corpus/train.en, corpus/train.de: no pairs; it is empty",
        both(write("corpus/train.en", ""), write("corpus/train.de", "")),
        ("new",),
    ),
    Case(
        "a training line that is not UTF-8",
        ANEW,
        CORPUS,
        r"error: corpus/train.de:2: not valid UTF-8 \(byte 0xFF after 2 characters\)",
        both(write("corpus/train.en", "a\nb\n"), write("corpus/train.de", b"A\nB \xff\n")),
        ("new",),
    ),
    Case(
        "nothing left after filtering",
        f"{ANEW} --set filter.max_len=2",
        CORPUS,
        r"error: no training pair is left after filtering",
        changes=("new",),
    ),
    Case(
        "a gzip file cut short",
        f"{ANEW} --set data.train=train.tsv.gz",
        CORPUS,
        r"error: corpus/train.tsv.gz: damaged or incomplete gzip file",
        write("corpus/train.tsv.gz", b"\x1f\x8b\x08\x00\x00\x00"),
        ("new",),
    ),
    Case(
        "a training file that changed",
        GO_ON,
        CORPUS,
        r"error: training files changed since this run began: corpus/train.en; --allow-changed-data",
        replace("corpus/train.en", "a", "b"),
    ),
    Case(
        "a training file that changed, allowed",
        f"{GO_ON} --allow-changed-data",
        FINE,
        "",
        replace("corpus/train.en", "a", "b"),
        RUN,
    ),
    Case(
        "a dev file that changed",
        GO_ON,
        CORPUS,
        r"error: run: the dev set is another than when this run began, .*--allow-changed-data",
        replace("corpus/dev.en", "e", "f"),
    ),
    Case(
        "a dev file that changed, allowed",
        f"{GO_ON} --allow-changed-data",
        FINE,
        "",
        replace("corpus/dev.en", "e", "f"),
        RUN,
    ),
    Case(
        "--fresh on a corpus that is gone",
        f"{TRAIN} --fresh",
        CORPUS,
        r"error: corpus/train.en: no such file",
        remove("corpus/train.en"),
    ),
    Case("a cache that cannot be written", ANEW, FILE, r"error: .*cache-file", cache_is_a_file, ("new",)),
]

RUN_DIRECTORY = [
    Case(
        "a file as run directory",
        "train tiny.toml --run in.txt",
        FILE,
        r"error: in.txt: cannot be used as a run directory",
    ),
    Case(
        "a run directory under a file",
        "train tiny.toml --run in.txt/run",
        FILE,
        r"error: in.txt/run: cannot be used as a run directory: Not a directory",
    ),
    Case("two trainers", GO_ON, IN_USE, r"error: run: another process is training here", hold_lock),
    Case(
        "two trainers, --fresh", f"{TRAIN} --fresh", IN_USE, r"error: run: another process is training here", hold_lock
    ),
    Case(
        "the newest checkpoint's weights with a flipped bit",
        GO_ON,
        FINE,
        r"warning: checkpoint step-10 is not used: .*model.safetensors: damaged",
        flip(f"{NEWEST}/model.safetensors"),
        RUN,
    ),
    Case(
        "the newest checkpoint's optimiser cut short",
        GO_ON,
        FINE,
        r"warning: checkpoint step-10 is not used: .*optim.safetensors: 100 bytes",
        cut(f"{NEWEST}/optim.safetensors"),
        RUN,
    ),
    Case(
        "the newest checkpoint's optimiser missing",
        GO_ON,
        FINE,
        r"warning: checkpoint step-10 is not used: .*optim.safetensors: missing",
        remove(f"{NEWEST}/optim.safetensors"),
        RUN,
    ),
    Case(
        "the newest checkpoint's state empty",
        GO_ON,
        FINE,
        r"warning: checkpoint step-10 is not used: .*state.json: 0 bytes",
        cut(f"{NEWEST}/state.json", 0),
        RUN,
    ),
    Case(
        "the newest checkpoint without a manifest",
        GO_ON,
        FINE,
        r"warning: checkpoint step-10 is not used: .*MANIFEST.json: missing",
        remove(f"{NEWEST}/MANIFEST.json"),
        RUN,
    ),
    Case(
        "the newest checkpoint's manifest vouching for nothing",
        GO_ON,
        FINE,
        r"warning: checkpoint step-10 is not used: .*does not list",
        write(f"{NEWEST}/MANIFEST.json", "{}"),
        RUN,
    ),
    Case("a save that was killed between its renames", GO_ON, FINE, "", leave_mid_replace, RUN),
    Case(
        "pointers to nothing", GO_ON, FINE, "", both(write("run/last", "step-99\n"), write("run/best", "../..\n")), RUN
    ),
    Case("pointers that are noise", GO_ON, FINE, "", both(write("run/last", b"\xff\x00"), write("run/best", "")), RUN),
    Case("pointers that are gone", GO_ON, FINE, "", remove("run/last", "run/best"), RUN),
    Case(
        "a stranger's file among the checkpoints",
        GO_ON,
        FINE,
        "",
        write("run/checkpoints/notes.txt", "mine"),
        ("run/checkpoints/step", "run/best", "run/last", "run/model", "run/config.toml", "run/metrics.jsonl"),
    ),
    Case(
        "metrics.jsonl that is gone",
        GO_ON,
        FINE,
        r"warning: run/metrics.jsonl: \d+ bytes of earlier lines are missing",
        remove("run/metrics.jsonl"),
        RUN,
    ),
    Case(
        "no checkpoint whole",
        GO_ON,
        MODEL,
        r"warning: checkpoint step-10 is not used",
        both(flip(f"{NEWEST}/state.json"), cut(f"{OLDER}/state.json", 0)),
    ),
    Case(
        "checkpoints without a config",
        GO_ON,
        MODEL,
        r"error: run: has checkpoints but no config.toml; put it back, or --fresh",
        remove("run/config.toml"),
    ),
    Case(
        "a run's config that is no TOML",
        GO_ON,
        MODEL,
        r"error: run/config.toml: not valid TOML",
        write("run/config.toml", "["),
    ),
    Case(
        "a run's tokenizer that is gone",
        GO_ON,
        MODEL,
        r"error: run: no tokenizer.model here",
        remove("run/tokenizer.model"),
    ),
    Case(
        "a run's tokenizer that was replaced",
        GO_ON,
        MODEL,
        r"error: run/checkpoints: the newest checkpoint does not fit this run: tokenizer",
        lambda f, p: shutil.copy(f / "other.model", f / "run/tokenizer.model"),
    ),
    Case(
        "a checkpoint of another shape",
        f"{GO_ON} --set model.d_ff=32",
        MODEL,
        r"error: run/checkpoints: the newest checkpoint does not fit this run: model.d_ff = 32, was 16",
        replace("run/config.toml", "d_ff = 16", "d_ff = 32"),
    ),
    Case(
        "a checkpoint of another optimiser",
        f"{GO_ON} --set optim.kind=adamw",
        MODEL,
        r"error: run/checkpoints: .* optim.kind = 'adamw', was 'muon'",
        replace("run/config.toml", 'kind = "muon"', 'kind = "adamw"'),
    ),
    Case(
        "a checkpoint of another format version",
        GO_ON,
        MODEL,
        r"error: run/checkpoints/step-10: format version 99; this mtattn reads 1",
        state(lambda s: s.update(format_version=99)),
    ),
    Case(
        "a checkpoint whose state lacks the loop",
        GO_ON,
        MODEL,
        r"error: state.json: not a training state of this mtattn",
        state(lambda s: s.pop("loop")),
    ),
    Case(
        "a checkpoint whose state has a field too many",
        GO_ON,
        MODEL,
        r"error: state.json: not a training state of this mtattn",
        state(lambda s: s["loop"].update(colour="red")),
    ),
    Case(
        "a disk that is full from the start",
        ANEW,
        FILE,
        r"error: .*(cannot be written|cannot write).*File too large",
        disk_full(3000),
        ("new",),
    ),
    Case(
        "a disk that fills at the next save",
        GO_ON,
        FILE,
        r"error: run/checkpoints/step-15: cannot be written: File too large; what was saved before is intact",
        disk_full(20_000),
        ("run/config.toml", "run/metrics.jsonl"),
    ),
    Case(
        "an I/O error while a checkpoint is renamed",
        GO_ON,
        FILE,
        r"error: run/checkpoints/step-15: cannot be written: Input/output error",
        failing_operation("rename step-15"),
        ("run/config.toml", "run/metrics.jsonl"),
    ),
    Case(
        "an I/O error while the pointer moves",
        GO_ON,
        FILE,
        r"error: run/last: cannot be written: Input/output error",
        failing_operation("rename last"),
        ("run/config.toml", "run/metrics.jsonl", "run/checkpoints/step-15"),
    ),
    Case(
        "an I/O error while the model is released",
        GO_ON,
        FILE,
        r"error: run/model: cannot be written: Input/output error",
        failing_operation("rename model"),
        ("run/config.toml", "run/metrics.jsonl", "run/checkpoints", "run/best", "run/last"),
    ),
]

INTERRUPTED = r"interrupted at step \d+: saved; the same command goes on from here"
WHILE_TRAINING = [
    Case("SIGTERM in a step", GO_ON, 143, INTERRUPTED, raising(TERM, "train.Trainer._step"), RUN),
    Case("Ctrl-C in a step", GO_ON, 130, INTERRUPTED, raising(INT, "train.Trainer._step"), RUN),
    Case("SIGTERM in validation", GO_ON, 143, INTERRUPTED, raising(TERM, "validate.dev_loss"), RUN),
    Case("Ctrl-C in validation", GO_ON, 130, INTERRUPTED, raising(INT, "validate.score"), RUN),
    Case("SIGTERM in a save", GO_ON, 143, INTERRUPTED, raising_in_save(TERM, "sync optim.safetensors"), RUN),
    Case(
        "Ctrl-C between a save's rename and its pointer",
        GO_ON,
        130,
        INTERRUPTED,
        raising_in_save(INT, "write last"),
        RUN,
    ),
    Case("SIGTERM while the corpus is read", GO_ON, 143, "", raising(TERM, "prepare.load_corpus")),
    Case(
        "Ctrl-C while the tokenizer is trained",
        f"{ANEW} --set tokenizer.vocab_size=291",
        130,
        "",
        raising(INT, "prepare.train_tokenizer"),
        ("new",),
    ),
    Case("SIGTERM while the corpus is encoded", ANEW, 143, "", raising(TERM, "prepare.encode_corpus"), ("new",)),
    Case("SIGTERM while a checkpoint is read", GO_ON, 143, "", raising(TERM, "checkpoint.read_tensors")),
    Case(
        "losses that are never finite",
        f"{TRAIN} --set train.max_epochs=30",
        DIVERGED,
        r"warning: step 11: the gradient is not finite; the step is skipped",
        never_finite,
        ("run/config.toml", "run/metrics.jsonl", "run/checkpoints", "run/best", "run/last"),
    ),
    Case(
        "losses that are never finite, from the start",
        f"{ANEW} --set train.max_epochs=30",
        DIVERGED,
        r"warning: step 1: the gradient is not finite; the step is skipped",
        never_finite,
        ("new",),
    ),
]

CASES = [*DAMAGED_MODEL, *STRANGERS_MODEL, *USE, *CONFIG, *TRAINING_TEXT, *RUN_DIRECTORY, *WHILE_TRAINING]
