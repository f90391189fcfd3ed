"""What every way out has in common: the trained model it starts from, and what an entry of EXPORTERS says."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mtattn.config import Config
from mtattn.errors import ConfigError
from mtattn.export.parity import Engine, Limits
from mtattn.model import ModelConfig, Transformer
from mtattn.tokenizer import Tokenizer


@dataclass(frozen=True)
class Trained:
    """A translator to export. folder: the run directory or released model that it was read from."""

    model: Transformer
    tokenizer: Tokenizer
    config: Config
    folder: Path


@dataclass(frozen=True)
class Exporter:
    """One place where a model can go.

    write: fills a new, empty folder: (what, folder, quantization).
    load: runs what `write` wrote, for the parity check: (folder, the tokenizer of the model).
    limits: how far the copy may be from the model, for each quantization that there is; the first is the default.
    refusals: what in a `[model]` section cannot go there, one reason a string; none: it can.
    remark: what else to know, before exporting, of a model with this config; "" for nothing.
    """

    write: Callable[[Trained, Path, str], None]
    load: Callable[[Path, Tokenizer], Engine]
    limits: Mapping[str, Limits]
    refusals: Callable[[ModelConfig], list[str]] = lambda config: []
    remark: Callable[[Config], str] = lambda config: ""


def extra(module: str) -> ModuleType:
    """Import a module that only exporting needs.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise ConfigError(f"this export needs {name}, which is not installed: pip install 'mtattn[export]'") from None
