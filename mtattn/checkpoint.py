"""The run directory: what a run leaves on disk, saved atomically, verified before it is used.

runs/<name>/  config.toml  tokenizer.model  metrics.jsonl  train.log  best  last
              checkpoints/step-N/  model.safetensors  optim.safetensors  state.json  MANIFEST.json
              model/               the released model: config.toml, tokenizer.model, model.safetensors, MANIFEST.json,
                                   and for people scores.json, README.md
"""

import fcntl
import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtattn.config import Config, parse_config
from mtattn.errors import ConfigError, FileError, ModelError, RunInUseError
from mtattn.metrics import MetricsFile
from mtattn.model import Transformer
from mtattn.storage import (
    MANIFEST,
    holds,
    read_json,
    read_small,
    read_tensors,
    recover_folder,
    tensors_to_bytes,
    verify_folder,
    vouched_for,
    write_file,
    write_folder,
)
from mtattn.tokenizer import Tokenizer, file_names

FORMAT_VERSION = 1
CHECKPOINT_FILES = ("model.safetensors", "optim.safetensors", "state.json")


@dataclass
class Checkpoint:
    """One saved moment.

    weights: the weights to translate with (the average, where one is kept). optim: the optimisers' tensors, the raw
    weights behind an average, the random generators' states. state: JSON values, of which this module knows `step` and
    `best_step` (the step of the best weights so far, or None).
    """

    weights: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]


class RunDirectory:
    """One run's folder; knows the names in it and keeps the promise that a save is whole or not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.toml"
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self.log_file = path / "train.log"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"

    @property
    def started(self) -> bool:
        """Whether a run has ever begun here."""
        return self.config_file.is_file()

    def require_unmarked(self) -> None:
        """Refuse to begin where no run's config is, but checkpoints, or what may be somebody else's.

        Raises:
            ModelError
        """
        if self._folders():
            raise ModelError(f"{self.path}: has checkpoints but no config.toml; put it back, or --fresh starts over")
        strange = [self.model]
        if not self.log_file.exists():  # a run that was killed before it began has left one
            strange += [self.path / name for name in ("best", "last", "metrics.jsonl", *tokenizer_names(self.path))]
        for path in strange:
            if path.exists():
                raise ModelError(f"{path}: is in the way, and no run began here; give another --run, or --fresh")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only trainer here; the lock goes with the process, however that ends.

        Raises:
            RunInUseError, FileError
        """
        is_new = not self.path.exists()
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
            with suppress(OSError):
                if is_new and os.listdir(self.path) == [".lock"]:  # nothing was begun, so nothing is left behind
                    shutil.rmtree(self.path)
            os.close(descriptor)

    def clear(self) -> None:
        """Remove what earlier training left here (and nothing else that lies in the folder)."""
        self.config_file.unlink(missing_ok=True)  # first: without it, nothing here counts as a run
        recover_folder(self.model)  # what people put there may have been set aside when a release was killed
        for folder, remove in ((self.checkpoints, shutil.rmtree), (self.model, self._remove_release)):
            try:
                if folder.is_symlink():  # to another disk, where others may want what it names
                    folder.unlink()
                else:
                    remove(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise FileError(f"{folder}: cannot be removed: {error.strerror}; delete it by hand") from None
        for leftover in (".old", ".tmp"):  # of a release that was killed
            shutil.rmtree(self.model.with_name(self.model.name + leftover), ignore_errors=True)
        for name in ("best", "last", "metrics.jsonl", "train.log", "scores.json", *tokenizer_names(self.path)):
            (self.path / name).unlink(missing_ok=True)

    def _remove_release(self, folder: Path) -> None:
        """Remove what was released, but neither a card that was edited nor what else people put there."""
        ours = {*vouched_for(folder), MANIFEST, "scores.json"}
        if not self._card_is_edited():
            ours.add("README.md")
        for name in (*(ours - {MANIFEST}), MANIFEST):  # the manifest last: it says what is ours
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()

    def begin(self, config: Config, tokenizer: Tokenizer) -> None:
        """Write what a whole run shares, where it is not there yet; config.toml last, since it marks a run as begun."""
        files = {**tokenizer.to_files(), self.config_file.name: config.to_toml().encode()}
        for name in {*tokenizer_names(self.path)} - {*files}:  # of a run that was killed before it began
            (self.path / name).unlink()
        for path, data in ((self.path / name, data) for name, data in files.items()):
            if not path.is_file() or path.read_bytes() != data:
                write_file(path, data)

    def read_config(self) -> Config:
        """The resolved config of this run."""
        return read_config(self.path)

    def checkpoint(self, step: int | None) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.checkpoints / f"step-{step}"

    def is_whole(self, step: int, warn: Callable[[str], None]) -> bool:
        """Whether the checkpoint of a step is there and verifies; if not, a warning says what is wrong."""
        try:
            verify_folder(self.checkpoint(step), CHECKPOINT_FILES)
        except (ModelError, FileError) as error:
            warn(f"checkpoint {self.checkpoint(step).name} is not used: {error}")
            return False
        return True

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoints/step-N and see that it verifies, then move the pointers, then drop what is superseded.

        Raises:
            FileError: it could not be written; the older checkpoints are still there.
        """
        state = {**checkpoint.state, "format_version": FORMAT_VERSION}
        folder = self.checkpoint(state["step"])
        files = {
            "model.safetensors": tensors_to_bytes(checkpoint.weights),
            "optim.safetensors": tensors_to_bytes(checkpoint.optim),
            "state.json": json.dumps(state, indent=1).encode(),
        }
        if not holds(folder, files):
            write_folder(folder, files)
            verify_folder(folder, files)
        self.point_to(checkpoint)
        self._prune(folder)

    def point_to(self, checkpoint: Checkpoint) -> None:
        """Let `last` name this checkpoint, and `best` what it knows as the best: a kill may have come in between."""
        for name, step in (("last", checkpoint.state["step"]), ("best", checkpoint.state.get("best_step"))):
            folder = self.checkpoint(step)
            if folder.is_dir() and self.pointer(name) != folder:
                write_file(self.path / name, f"{folder.name}\n".encode())

    def _prune(self, saved: Path) -> None:
        """Keep the best checkpoint, the one just saved and the one before: should one be damaged, the other is there.

        Newer ones are damaged, or training would have gone on from them.
        """
        for leftover in (*self.checkpoints.glob("step-*.tmp"), *self.checkpoints.glob("step-*.old")):
            shutil.rmtree(leftover, ignore_errors=True)  # of saves that were killed
        folders = self._folders()
        at = folders.index(saved)
        for folder in folders[:at] + folders[at + 2 :]:
            if folder != self.pointer("best"):
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """The checkpoints, newest first."""
        steps = {int(f.name[5:]): f for f in self.checkpoints.glob("step-*") if f.name[5:].isdecimal()}
        return [steps[step] for step in sorted(steps, reverse=True)]

    def pointer(self, name: str) -> Path | None:
        """The checkpoint that `best` or `last` names, if it is there."""
        try:
            named = (self.path / name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return next((folder for folder in self._folders() if folder.name == named), None)

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that verifies, each damaged one passed over with a warning; None when none was saved.

        Raises:
            ModelError: checkpoints are there, but none is whole; or the newest is of another format version.
        """
        for aside in self.checkpoints.glob("step-*.old"):
            recover_folder(aside.with_suffix(""))
        damaged = []
        for folder in self._folders():
            try:
                verify_folder(folder, CHECKPOINT_FILES)
                state = read_json(folder / "state.json")
                weights, optim = (read_tensors(folder / name) for name in CHECKPOINT_FILES[:2])
            except ModelError as error:
                damaged.append(str(error))
                warn(f"checkpoint {folder.name} is not used: {error}")
                continue
            if state.get("format_version") != FORMAT_VERSION:
                version = state.get("format_version")
                raise ModelError(f"{folder}: format version {version}; this mtattn reads {FORMAT_VERSION}")
            return Checkpoint(weights, optim, state)
        if damaged:
            raise ModelError(f"{self.checkpoints}: no checkpoint is whole ({damaged[0]}); --fresh starts over")
        return None

    def best_checkpoint(self) -> Path:
        """The best checkpoint, verified; the last one when none was ever scored."""
        folder = self.pointer("best") or self.pointer("last")
        if folder is None:
            raise ModelError(f"{self.path}: no trained model here yet; run `mtattn train` first")
        verify_folder(folder, CHECKPOINT_FILES)
        return folder

    def weights_to_release(self) -> dict[str, Tensor]:
        """The best checkpoint's weights."""
        return read_tensors(self.best_checkpoint() / "model.safetensors")

    def release(self, config: Config, tokenizer: Tokenizer, scores: Mapping[str, Any], card: str) -> bool:
        """Write model/: all that translating needs, in a folder that can be moved anywhere.

        What people have put there stays, and so does a card that they have edited.

        Returns:
            Whether the card now is the one given, or was that already.
        """
        files = {
            "config.toml": config.to_toml().encode(),
            **tokenizer.to_files(),
            "model.safetensors": tensors_to_bytes(self.weights_to_release()),
        }
        notes = {"scores.json": json.dumps(scores, indent=1).encode()}
        recover_folder(self.model)  # a kill may have left it set aside
        if holds(self.model, files, notes):
            return True
        if replaced := not self._card_is_edited():
            notes["README.md"] = card.encode()
        write_folder(self.model, files, notes, keep_others=True)
        return replaced

    def _card_is_edited(self) -> bool:
        """Whether there is a model/README.md, and it is not known to be as it was written."""
        card = self.model / "README.md"
        if not card.is_file():
            return False
        try:
            written = read_json(self.model / MANIFEST).get("README.md", {}).get("sha256")
        except ModelError:
            return True
        return bool(written != hashlib.sha256(read_small(card)).hexdigest())


def tokenizer_names(folder: Path) -> list[str]:
    """The names of the tokenizer files in a folder."""
    return [name for name in (*file_names(True), *file_names(False)) if (folder / name).exists()]


def read_config(folder: Path) -> Config:
    """The resolved config.toml of a run directory or released model.

    Raises:
        ModelError: there is none, or it is not one of ours.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise ModelError(f"{folder}: not a run directory or released model (no config.toml)")
    try:
        return parse_config(tomllib.loads(read_small(path).decode("utf-8")), str(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: not valid TOML: {error}") from None
    except ConfigError as error:  # exit code 3, not 2: the user asked for nothing wrong
        raise ModelError(str(error)) from None


def tokenizer_hashes(tokenizer: Tokenizer) -> dict[str, str]:
    """File name -> sha256; a checkpoint keeps it, since weights mean nothing with another tokenizer."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in tokenizer.to_files().items()}


def make_model(config: Config, tokenizer: Tokenizer) -> Transformer:
    """A fresh model for this config and tokenizer."""
    return Transformer(
        config.model,
        tokenizer.src_vocab_size,
        tokenizer.tgt_vocab_size,
        joint=tokenizer.joint,
        pad_id=tokenizer.pad_id,
    )


def weights_of(model: Transformer) -> dict[str, Tensor]:
    """The model's parameters by name, a shared one once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_weights(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model of the same shapes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
