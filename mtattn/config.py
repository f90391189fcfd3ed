"""The config tree: TOML in, validated, frozen; overridden with `--set a.b=c`; written back resolved.

Each section is the frozen dataclass that stands beside the code it configures; pydantic validates them here.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from mtattn.corpus import DataConfig
from mtattn.decode import DecodeConfig
from mtattn.errors import ConfigError
from mtattn.filtering import FilterConfig
from mtattn.loss import LossConfig
from mtattn.mixing import FinetuneConfig
from mtattn.model import PRESETS, ModelConfig
from mtattn.optim import OptimConfig
from mtattn.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class TrainConfig:
    """The `[train]` section.

    batch_tokens: pairs in a batch times the longer side's padded length stay within this. "auto": by the corpus and,
        on a GPU, by its memory. With several processes, a batch is shared out among them.
    accumulate: batches whose gradients are added up for one step.
    max_steps, max_epochs, max_minutes: the run ends at whichever comes first; 0 is no limit. The learning rate falls
        to its end at the same moment. With max_minutes the clock takes part, so two runs differ a little.
    log_every, valid_every, save_every: in steps; valid_every = 0: at the end of each epoch; save_every = 0: whenever
        it validates.
    valid_sentences: dev sentences translated at each validation, at most.
    patience: validations without a better BLEU before the run stops early; 0: never. They count once the model has seen
        five epochs or three million target tokens, or from the start when it is fine-tuned.
    ema: the weights to translate with are an average over about this share of the steps so far; 0: the last ones.
    seed: of everything random.
    embeddings: what those of a fresh model are: "cooccurrence", drawn from which pieces share pairs
        (mtattn.cooccurrence), or "random".
    precision: "auto" measures whether this machine multiplies bfloat16 faster than float32, and takes what is faster.
    packing: several pairs share a row instead of being padded, so that all batches have one shape (mtattn.packing);
        batch_tokens is then the number of a batch's target positions. "auto": where a GPU can record a step of that
        shape once and replay it.
    shard: each of several processes keeps its share of the model instead of all of it, for a model that no single
        device can train (mtattn.sharding).
    threads: CPU threads; 0: as torch chooses, or the environment's OMP_NUM_THREADS.
    hold_out: pairs held out for validation when no dev corpus is given.
    """

    batch_tokens: int | Literal["auto"] = 4096
    accumulate: int = 1
    max_steps: int = 0
    max_epochs: int = 30
    max_minutes: float = 0.0
    log_every: int = 20
    valid_every: int = 0
    save_every: int = 0
    valid_sentences: int = 2000
    patience: int = 10
    ema: float = 0.05
    seed: int = 1
    embeddings: Literal["cooccurrence", "random"] = "cooccurrence"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    packing: bool | Literal["auto"] = "auto"
    shard: bool = False
    threads: int = 0
    hold_out: int = 500
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "accumulate", "log_every", "hold_out", "valid_sentences"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        limits = ("max_steps", "max_epochs", "max_minutes", "patience")
        for name in (*limits, "valid_every", "save_every", "seed", "threads"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 or more")
        if self.threads > 1024:
            raise ValueError(f"threads is {self.threads}; allowed: 0 to 1024")
        if self.seed >= 2**63:
            raise ValueError(f"seed is {self.seed}; allowed: less than 2^63")
        if not (self.max_steps or self.max_epochs or self.max_minutes):
            raise ValueError("max_steps, max_epochs and max_minutes are all 0; give at least one")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; allowed: 0 <= ema < 1")


@dataclass(frozen=True)
class Config:
    """All sections."""

    data: DataConfig = field(default_factory=DataConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        position, longest = self.model.position, self.filter.max_len
        needed = max(longest, self.decode.max_len(longest))
        if position.kind == "learned" and position.max_len < needed:
            raise ValueError(
                f"model.position.max_len is {position.max_len}, but with filter.max_len {longest} and [decode]'s "
                f"limits a text may have {needed} pieces, and learned positions exist up to max_len alone; raise it"
            )
        if self.loss.rdrop and not (self.model.dropout or self.model.inner_dropout or self.model.attention_dropout):
            raise ValueError(
                "loss.rdrop compares two passes under dropout: without any they are the same; set one of them"
            )

    def to_table(self) -> dict[str, Any]:
        """Every value, as a table that `parse_config` reads back to an equal Config."""
        table: dict[str, Any] = _without_none(asdict(self))
        return table

    def to_toml(self) -> str:
        """The table as a file."""
        return tomli_w.dumps(self.to_table())


def config_folders() -> list[Path]:
    """Where bundled configs lie: in the installed package, or beside it in a source checkout."""
    package = Path(__file__).parent
    return [folder for folder in (package / "bundled" / "configs", package.parent / "configs") if folder.is_dir()]


def bundled_configs() -> dict[str, Path]:
    """Name -> file of every config that comes with the project."""
    return {path.stem: path for folder in config_folders() for path in sorted(folder.glob("*.toml"))}


def load_config(source: str | None, overrides: Sequence[str] = ()) -> Config:
    """Read a config by path or bundled name and lay `--set` overrides over it.

    Args:
        source: path, or name of a bundled config; None for the defaults alone.
        overrides: "section.key=value" each, the value written as in TOML; the last one wins.

    Raises:
        ConfigError: no such file, no TOML, an unknown key, a wrong type or a value that is not allowed.
    """
    table, where = read_table(source, overrides)
    return parse_config(table, where)


def read_table(source: str | None, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """What a config and `--set` say themselves, before any default and unchecked, and its name for errors.

    Raises:
        ConfigError: no such file, no TOML, an override or section that is none, or an unknown `model.preset`.
    """
    where, table = ("the defaults", {}) if source is None else _read(source)
    where += ", with overrides" if overrides else ""  # flags are overrides too
    for override in overrides:
        _apply(table, override)
    for section in fields(Config):
        if not isinstance(value := table.get(section.name, {}), dict):
            raise ConfigError(f"{where}: {section.name} = {value!r}: it should be a table")
    return _with_preset(table, where), where


def laid_over(table: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `base`, but where `table` says something, that; section by section, key by key."""
    merged = dict(base)
    for section, values in table.items():
        under = merged.get(section)
        merged[section] = {**under, **values} if isinstance(under, dict) and isinstance(values, dict) else values
    return merged


def with_overrides(config: Config, overrides: Sequence[str], section: str) -> Config:
    """A trained model's config with `--set` overrides of the one section that may still change.

    Raises:
        ConfigError: as for `load_config`, or an override of another section.
    """
    table = config.to_table()
    for override in overrides:
        if not override.strip().startswith(f"{section}."):
            raise ConfigError(f"--set {override}: of a trained model only [{section}] can be set: {section}.KEY=VALUE")
        _apply(table, override)
    return parse_config(table, "--set")


def parse_config(table: dict[str, Any], where: str) -> Config:
    """Validate a table as `tomllib` reads it. `where` names it in errors."""
    try:
        # Through JSON, because strict validation then takes an array for a tuple, as TOML writes it.
        # A date, which TOML knows and no setting is, becomes the text that it was.
        return _validator().validate_json(json.dumps(_with_preset(table, where), default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(_explain([dict(e) for e in error.errors()], where)) from None


@cache
def _validator() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def _with_preset(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The table with the values of its `model.preset` laid under what [model] says itself."""
    model = table.get("model")
    if not isinstance(model, dict) or not isinstance(name := model.get("preset"), str) or not name:
        return table
    if name not in PRESETS:
        raise ConfigError(f"{where}: model.preset is {name!r}{_choices(name, list(PRESETS))}")
    return {**table, "model": laid_over(model, PRESETS[name])}


def _read(source: str) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    if not path.is_file():
        known = bundled_configs()
        if source not in known:
            if path.is_dir():
                raise ConfigError(
                    f"{source}: is a folder; with a run, --run {source} goes on and --from {source} learns on"
                )
            raise ConfigError(f"no config file or bundled config named {source!r}{_choices(source, list(known))}")
        path = known[source]
    try:
        return str(path), tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write it as section.key=value, such as --set train.max_epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text  # a bare word or path is a string, as everyone types it
    *sections, last = key.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    table[last] = value


def _explain(errors: Sequence[dict[str, Any]], where: str) -> str:
    """One line a setting: file, dotted path, value, what is allowed, the nearest match."""
    faults: dict[tuple[str, ...], tuple[str, dict[str, None]]] = {}
    for error in errors:
        path, start, reason = _fault(error)
        faults.setdefault(path, (start, {}))[1][reason] = None
    # A union (such as a corpus) refuses a value once for each of its members; what lies deepest says why.
    return "\n".join(
        f"{where}: {'.'.join(path)}{start}{' or '.join(reasons)}"
        for path, (start, reasons) in faults.items()
        if not any(len(other) > len(path) and other[: len(path)] == path for other in faults)
    )


def _fault(error: dict[str, Any]) -> tuple[tuple[str, ...], str, str]:
    """(dotted path, what precedes the reason, the reason) of one pydantic error."""
    if error["type"] == "unexpected_keyword_argument":
        *parents, last = error["loc"]
        path, kinds = _resolve(parents)
        known = [f.name for kind in kinds for f in fields(kind)]
        return (*path, str(last)), "", f" is not a setting{_choices(str(last), list(dict.fromkeys(known)))}"
    path, _ = _resolve(error["loc"])
    if error["type"] == "value_error":
        return path, ": " if path else "", str(error["ctx"]["error"])
    expected = error["msg"].removeprefix("Input should be ")
    start = f" = {error['input']!r}: " + ("it should be " if expected != error["msg"] else "")
    return path, start, expected.replace("an object", "a table")


def _resolve(loc: Sequence[int | str]) -> tuple[tuple[str, ...], list[Any]]:
    """The settings along a pydantic location, without the names it gives to members of a union, and their classes."""
    path: list[str] = []
    kinds: list[Any] = [Config]
    for part in loc:
        hints = [get_type_hints(kind)[part] for kind in kinds if part in get_type_hints(kind)]
        if hints:
            kinds = [kind for hint in hints for kind in _dataclasses_in(hint)]
        if hints or isinstance(part, int):
            path.append(str(part))
    return tuple(path), kinds


def _dataclasses_in(hint: Any) -> list[Any]:
    if is_dataclass(hint):
        return [hint]
    return [found for argument in get_args(hint) for found in _dataclasses_in(argument)]


def _choices(value: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(value, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"{hint} (known: {', '.join(known)})"


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value
