"""A run that takes a fraction of a second: a copy task of one-letter words and a model of a few thousand weights."""

import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mtattn.batch import Batch, TokenTable, collate
from mtattn.checkpoint import RunDirectory
from mtattn.config import Config, load_config
from mtattn.progress import Reporter
from mtattn.train import Trainer, TrainResult, train

TINY = (
    "tokenizer.vocab_size=290",
    "model.d_model=16",
    "model.d_ff=16",
    "model.num_heads=2",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "train.batch_tokens=128",
    "train.max_epochs=2",
    "train.log_every=2",
    "train.precision=float32",
    "train.packing=false",
    "train.threads=1",
    "decode.max_len_ratio=1.0",
    "decode.max_len_extra=2",
    "decode.max_sentences=1",
)
"""Overrides that make training as small as it can be; 5 steps an epoch on `write_corpus`'s 60 pairs."""

STILL = ("model.dropout=0.0", "model.inner_dropout=0.0", "optim.schedule='constant'", "optim.warmup=0.0")
"""Overrides without chance, and by which the first steps of a run do not depend on its length."""


class Notes(Reporter):
    """A reporter that also remembers what it said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)
        super().note(text)

    @property
    def warnings(self) -> list[str]:
        return [text.removeprefix("warning: ") for text in self.said if text.startswith("warning: ")]


def write_corpus(folder: Path, pairs: int = 60, dev: int = 4) -> Path:
    """train.{en,de} and dev.{en,de}: one-letter words, where the target copies the source in capitals."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    while len(seen) < pairs + dev:
        seen.add(" ".join(draw.choices("abcdefgh", k=draw.randint(3, 8))))
    lines = sorted(seen)
    draw.shuffle(lines)
    for split, chosen in (("train", lines[:pairs]), ("dev", lines[pairs:])):
        (folder / f"{split}.en").write_text("".join(f"{line}\n" for line in chosen))
        (folder / f"{split}.de").write_text("".join(f"{line.upper()}\n" for line in chosen))
    return folder


def change_dev(corpus: Path) -> None:
    """Leave out the last pair of a `write_corpus` folder's dev set."""
    for side in ("en", "de"):
        path = corpus / f"dev.{side}"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def tiny_config(corpus: Path, *overrides: str) -> Config:
    """The smallest config on a `write_corpus` folder, with `--set` overrides."""
    data = (f"data.folder={json.dumps(str(corpus))}", "data.train=train.{en,de}", "data.dev=dev.{en,de}")
    return load_config(None, [*data, *TINY, *overrides])


def train_tiny(config: Config, path: Path, report: Reporter | None = None, **options: Any) -> TrainResult:
    """Train on the CPU."""
    return train(config, RunDirectory(path), report or Notes(), device=torch.device("cpu"), **options)


def signal_at(call: int, patch: pytest.MonkeyPatch, function: str = "_after_step") -> None:
    """SIGTERM at the call of this number, from 1, of a method of the trainer."""
    original, calls = getattr(Trainer, function), [0]

    def interrupted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    patch.setattr(Trainer, function, interrupted)


def outcome(path: Path) -> dict[str, Any]:
    """All that a run leaves which must not depend on interruptions: everything but times."""
    run = RunDirectory(path)
    found: dict[str, Any] = {
        "metrics": [{key: value for key, value in line.items() if key != "elapsed_s"} for line in run.metrics.read()],
        "best": (path / "best").read_text(),
        "last": (path / "last").read_text(),
        "released": tensors(run.model / "model.safetensors"),
        "tokenizer": (path / "tokenizer.model").read_bytes(),
    }
    for name in {found["best"].strip(), found["last"].strip()}:
        folder = run.checkpoints / name
        state = json.loads((folder / "state.json").read_bytes())
        del state["loop"]["elapsed_s"], state["loop"]["metrics_bytes"]
        found[name] = (tensors(folder / "model.safetensors"), tensors(folder / "optim.safetensors"), state)
    return found


def losses(path: Path) -> list[float]:
    """Those in a run's metrics."""
    return [line["loss"] for line in RunDirectory(path).metrics.read()]


def batch_of(sizes: Sequence[int], first: int = 0) -> Batch:
    """Random pairs, sources of these lengths and targets one longer, numbered from `first`."""
    draw = np.random.default_rng(first)
    src, tgt = ([draw.integers(4, 23, size + more) for size in sizes] for more in (0, 1))
    return collate(src, tgt, np.arange(first, first + len(sizes)), pad_id=0, bos_id=1)


def token_table(ids: Sequence[Sequence[int]]) -> TokenTable:
    """A table over Python lists."""
    return TokenTable([(np.concatenate([*map(np.asarray, ids)]), np.cumsum([0, *map(len, ids)]))])


def tensors(path: Path) -> dict[str, bytes]:
    """The bits of every tensor of a safetensors file."""
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in load_file(path).items()}
