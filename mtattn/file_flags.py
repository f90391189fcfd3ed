"""Two text files on the command line, --src-file and --tgt-file: what they say as `--set` overrides of a config."""

import json
import re
from pathlib import Path

from mtattn.checkpoint import RunDirectory
from mtattn.config import read_table
from mtattn.corpus import DataConfig
from mtattn.errors import ConfigError

LANGUAGE = re.compile(r"\.(?!txt|src|tgt|trg|ref|hyp|raw|tok|bpe|tmp|out)([a-z]{2,3})$")  # at the end of a file name


def file_overrides(
    config: str | None,
    src: Path | None,
    tgt: Path | None,
    dev_src: Path | None = None,
    dev_tgt: Path | None = None,
    *,
    run: RunDirectory | None = None,
) -> list[str]:
    """The files as corpora; absolute where the data.folder of a config would stand before them.

    Args:
        config: path, or name of a bundled config; None: that of `run`, if it has begun, else none.

    Raises:
        ConfigError: one of two is missing, or a name is not text. ModelError: the run's config is none.
    """
    overrides = []
    for split, source, target in (("train", src, tgt), ("dev", dev_src, dev_tgt)):
        if (source is None) != (target is None):
            names = ("--src-file", "--tgt-file") if split == "train" else ("--dev-src", "--dev-tgt")
            raise ConfigError(f"{names[0]} and {names[1]} go together")
        if source is not None and target is not None:
            folder = _folder(config, run)
            found = [file.expanduser().absolute() if folder else file for file in (source, target)]
            path, translation = map(_quoted, found)
            overrides.append(f"data.{split}={{path = {path}, target = {translation}}}")
    return overrides


def _folder(config: str | None, run: RunDirectory | None) -> str:
    if config is not None:
        return str(read_table(config)[0].get("data", {}).get("folder", ""))
    return run.read_config().data.folder if run is not None and run.started else ""


def _quoted(file: Path) -> str:
    name = str(file)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name!r}: the name is not UTF-8, which config.toml must be; rename or link it") from None
    return json.dumps(name, ensure_ascii=False)


def language_overrides(src: Path | None, tgt: Path | None) -> list[str]:
    """The languages that file names end in, as in train.fr and train.it.gz; none if unsure."""
    found = _languages(src, tgt)
    return [f'data.src="{found[0]}"', f'data.tgt="{found[1]}"'] if found else []


def require_direction(src: Path | None, tgt: Path | None, data: DataConfig, *, trained: bool = False) -> None:
    """Refuse files whose names say that they are the other way round.

    Args:
        trained: the model is there, and `tgt` holds references.

    Raises:
        ConfigError
    """
    if _languages(src, tgt) == (data.tgt, data.src):
        meant = (
            "give them names without languages" if trained else f"--set data.src={data.tgt} --set data.tgt={data.src}"
        )
        raise ConfigError(
            f"--src-file {src} and {'--ref-file' if trained else '--tgt-file'} {tgt}: by their names they are "
            f"{data.tgt} to {data.src}, but the model translates {data.src} to {data.tgt}; "
            f"exchange them, or, if that is meant, {meant}"
        )


def _languages(*files: Path | None) -> tuple[str, ...]:
    names = [file.name.removesuffix(".gz") for file in files if file is not None]
    found = tuple(code[1] for code in map(LANGUAGE.search, names) if code)
    return found if len({*found}) == 2 else ()
