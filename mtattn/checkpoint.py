"""The run directory: what a run leaves on disk, saved atomically, verified before it is used.

runs/<name>/  config.toml  tokenizer.model  metrics.jsonl  train.log  best  last
              checkpoints/step-N/  model.safetensors  optim.safetensors  state.json  MANIFEST.json
              model/               the released model: config.toml, tokenizer.model, model.safetensors, scores.json
"""

import fcntl
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtattn.config import Config, parse_config
from mtattn.errors import FileError, ModelError, RunInUseError
from mtattn.model import Transformer
from mtattn.storage import (
    read_json,
    read_small,
    read_tensors,
    read_weights,
    tensors_to_bytes,
    verify_folder,
    write_file,
    write_folder,
)
from mtattn.tokenizer import Tokenizer

FORMAT_VERSION = 1


@dataclass
class Checkpoint:
    """One saved moment.

    weights: the weights to translate with (the average, where one is kept). optim: the optimisers' tensors, the raw
    weights behind an average, the random generators' states. state: step, position, scores, hashes, versions.
    """

    weights: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]


class RunDirectory:
    """One run's folder; knows the names in it and keeps the promise that a save is whole or not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.toml"
        self.metrics_file = path / "metrics.jsonl"
        self.log_file = path / "train.log"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"

    @property
    def started(self) -> bool:
        """Whether a run has ever begun here."""
        return self.config_file.is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only trainer here; the lock goes with the process, however that ends.

        Raises:
            RunInUseError, FileError
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be used as a run directory: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RunInUseError(
                f"{self.path}: another process is training here; wait for it, or give another --run"
            ) from None
        try:
            yield
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Remove what earlier training left here (and nothing else that lies in the folder)."""
        for folder in (self.checkpoints, self.model):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("best", "last", "metrics.jsonl", "train.log", "config.toml", *_tokenizer_names(self.path)):
            (self.path / name).unlink(missing_ok=True)

    def begin(self, config: Config, tokenizer: Tokenizer) -> None:
        """Write what stays the same for the whole run; config.toml last, since it marks the run as begun."""
        for name, data in tokenizer.to_files().items():
            write_file(self.path / name, data)
        write_file(self.config_file, config.to_toml().encode())

    def read_config(self) -> Config:
        """The resolved config of this run."""
        return read_config(self.path)

    def save(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        """Write checkpoints/step-N, then move `last` (and `best`), then drop what no pointer names any more."""
        name = f"step-{checkpoint.state['step']}"
        state = {**checkpoint.state, "format_version": FORMAT_VERSION}
        folder = self.checkpoints / name
        if not _verifies(folder):
            shutil.rmtree(folder, ignore_errors=True)
            write_folder(
                folder,
                {
                    "model.safetensors": tensors_to_bytes(checkpoint.weights),
                    "optim.safetensors": tensors_to_bytes(checkpoint.optim),
                    "state.json": json.dumps(state, indent=1).encode(),
                },
            )
        write_file(self.path / "last", f"{name}\n".encode())
        if is_best:
            write_file(self.path / "best", f"{name}\n".encode())
        self._prune()

    def _prune(self) -> None:
        keep = {self.pointer("last"), self.pointer("best")}
        for folder in self.checkpoints.iterdir():
            if folder not in keep:
                shutil.rmtree(folder, ignore_errors=True)

    def pointer(self, name: str) -> Path | None:
        """The checkpoint that `best` or `last` names, if it is there."""
        try:
            target = self.checkpoints / Path((self.path / name).read_text(encoding="utf-8").strip()).name
        except (OSError, UnicodeDecodeError):
            return None
        return target if target.is_dir() and target != self.checkpoints else None

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that verifies, each damaged one passed over with a warning; None when none was saved.

        Raises:
            ModelError: checkpoints are there, but none is whole.
        """
        steps = {int(f.name[5:]): f for f in self.checkpoints.glob("step-*") if f.name[5:].isdecimal()}
        damaged = []
        for step in sorted(steps, reverse=True):
            try:
                verify_folder(steps[step])
                return _read(steps[step])
            except ModelError as error:
                damaged.append(str(error))
                warn(f"checkpoint {steps[step].name} is not used: {error}")
        if damaged:
            raise ModelError(f"{self.checkpoints}: no checkpoint is whole ({damaged[0]}); --fresh starts over")
        return None

    def weights_to_release(self) -> dict[str, Tensor]:
        """The best checkpoint's weights, the last one's when none was ever scored."""
        folder = self.pointer("best") or self.pointer("last")
        if folder is None:
            raise ModelError(f"{self.path}: nothing has been saved here yet")
        verify_folder(folder)
        return read_tensors(folder / "model.safetensors")

    def release(self, config: Config, tokenizer: Tokenizer, scores: Mapping[str, Any], card: str) -> None:
        """Write model/: all that translating needs, in a folder that can be moved anywhere."""
        write_folder(
            self.model,
            {
                "config.toml": config.to_toml().encode(),
                **tokenizer.to_files(),
                "model.safetensors": tensors_to_bytes(self.weights_to_release()),
                "scores.json": json.dumps(scores, indent=1).encode(),
                "README.md": card.encode(),
            },
        )


def _read(folder: Path) -> Checkpoint:
    state = read_json(folder / "state.json")
    if state.get("format_version") != FORMAT_VERSION:
        raise ModelError(f"{folder}: format version {state.get('format_version')}; this mtattn reads {FORMAT_VERSION}")
    return Checkpoint(read_tensors(folder / "model.safetensors"), read_tensors(folder / "optim.safetensors"), state)


def _verifies(folder: Path) -> bool:
    try:
        verify_folder(folder)
    except ModelError:
        return False
    return True


def _tokenizer_names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("tokenizer*.model")]


def read_config(folder: Path) -> Config:
    """The resolved config.toml of a run directory or released model.

    Raises:
        ModelError: there is none, or it is not one of ours.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise ModelError(f"{folder}: not a run directory or released model (no config.toml)")
    try:
        table = tomllib.loads(read_small(path).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid TOML: {error}") from None
    return parse_config(table, str(path))


def make_model(config: Config, tokenizer: Tokenizer) -> Transformer:
    """A fresh model for this config and tokenizer."""
    return Transformer(
        config.model,
        tokenizer.src_vocab_size,
        tokenizer.tgt_vocab_size,
        joint=tokenizer.joint,
        pad_id=tokenizer.pad_id,
    )


def load_model(folder: Path) -> tuple[Transformer, Tokenizer, Config]:
    """The translator in a run directory (its released model, else its best checkpoint) or a released model folder.

    Nothing is allocated before the file's header has been compared with what the config says.

    Raises:
        ModelError
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; give a run directory (runs/NAME) or a released model")
    if (folder / "model" / "config.toml").is_file():
        folder = folder / "model"
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder)
    if (folder / "MANIFEST.json").is_file():
        verify_folder(folder)
        weights_file = folder / "model.safetensors"
    else:
        run = RunDirectory(folder)
        checkpoint = run.pointer("best") or run.pointer("last")
        if checkpoint is None:
            raise ModelError(f"{folder}: no trained model here yet; run `mtattn train` first")
        verify_folder(checkpoint)
        weights_file = checkpoint / "model.safetensors"
    with torch.device("meta"):
        shapes = weights_of(make_model(config, tokenizer))
    weights = read_weights(weights_file, {name: (tuple(t.shape), t.dtype) for name, t in shapes.items()})
    model = make_model(config, tokenizer)
    load_weights(model, weights)
    return model.eval(), tokenizer, config


def weights_of(model: Transformer) -> dict[str, Tensor]:
    """The model's parameters by name, a shared one once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_weights(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model of the same shapes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
