"""What a `train` command means: which run directory, and which config, by whatever it names and leaves out."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mtattn.checkpoint import RunDirectory
from mtattn.errors import ConfigError
from mtattn.file_flags import file_overrides, language_overrides, require_direction
from mtattn.progress import Reporter
from mtattn.resolve import Resolved, resolve


@dataclass(frozen=True)
class TrainCommand:
    """What `mtattn train` was told.

    config: a path, or the name of a bundled config. src_file, tgt_file, dev_src, dev_tgt: text to learn from, and to
    validate on. run: the run directory. origin: a model to fine-tune. overrides: "section.key=value" each. fresh: what
    the run directory holds is replaced.
    """

    config: str | None = None
    src_file: Path | None = None
    tgt_file: Path | None = None
    dev_src: Path | None = None
    dev_tgt: Path | None = None
    run: Path | None = None
    origin: Path | None = None
    overrides: tuple[str, ...] = ()
    fresh: bool = False

    @property
    def names_data(self) -> bool:
        """Whether it says itself what to learn from."""
        return self.src_file is not None or any(each.strip().startswith("data.train") for each in self.overrides)


def understand(command: TrainCommand, report: Reporter, device: torch.device) -> tuple[RunDirectory, Resolved]:
    """The run directory, and the config to train with there.

    Raises:
        ConfigError: what is named does not go together, or would lose something. Others: see `resolve`.
    """
    config, run, origin, fresh = command.config, command.run, command.origin, command.fresh
    goes_on = run is not None and RunDirectory(run).started
    begins_something = config or command.names_data or origin
    if run is not None and not begins_something and not goes_on:
        raise ConfigError(f"{run}: no run was begun here; check the name, or say what to begin: train toy --run {run}")
    if command.src_file is not None and command.src_file == command.tgt_file:
        raise ConfigError(f"--src-file and --tgt-file are both {command.src_file}: two files belong here, line by line")
    if fresh and goes_on and not begins_something:
        raise ConfigError(f"--fresh would replace {run}: name the config or the files to start over with")
    named = config if begins_something or goes_on else "toy"
    directory = RunDirectory(run or Path("runs") / _run_name(named, command.src_file))
    begins = fresh or not directory.started  # a run that goes on has its folder and its languages
    text = (command.src_file, command.tgt_file)
    overrides = file_overrides(config, *text, command.dev_src, command.dev_tgt, run=None if begins else directory)
    if begins and config is None and origin is None:
        overrides += language_overrides(*text)
    overrides += command.overrides
    resolved = resolve(named, overrides, directory, report, device=device, origin=origin, fresh=fresh)
    require_direction(*text, resolved.config.data)
    says = named or ("chosen for your files" if begins else "the run's own")
    notes = [f"config: {says}; run directory: {directory.path}", *resolved.notes]
    if named and command.src_file and not command.dev_src and resolved.config.data.dev:
        notes.append(f"validated on the dev corpus of {named}; --dev-src and --dev-tgt name your own")
    return directory, replace(resolved, notes=notes)


def _run_name(config: str | None, src_file: Path | None) -> str:
    if config is not None:
        return Path(config).stem
    return src_file.stem if src_file is not None else "train"
