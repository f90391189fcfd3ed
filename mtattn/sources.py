"""Which files a corpus means: formats by name, brace pairs, bundled data, and what is said when a file is missing."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

from mtattn.errors import ConfigError, CorpusError, FileError
from mtattn.hub import PREFIX as HUB_PREFIX
from mtattn.hub import parse_hub_name
from mtattn.readers import READERS, Format

BUNDLED_PREFIX = "bundled:"
SUFFIXES: dict[str, Format] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".tmx": "tmx",
}
"""End of a file name (before any ``.gz``) -> format."""
ONE_FILE_FORMATS = frozenset(SUFFIXES.values())
COMPRESSED = (".xz", ".bz2", ".zip", ".zst", ".7z")
BRACES = re.compile(r"\{([^{},]+),([^{},]+)\}")


@dataclass(frozen=True)
class CorpusSource:
    """One source of pairs.

    Args:
        path: ``train.{en,de}`` (two aligned text files), a ``.tsv``, ``.csv``, ``.jsonl``, ``.tmx`` (each also with
            ``.gz``) or ``.parquet`` file, a folder written by ``save_to_disk``, or ``hf:owner/name[:config]@split``.
            ``bundled:`` before a path means the data that travels with the package.
        format: a name from READERS; None takes it from the path.
        target: the target side's file when the two text files' names share no pattern; `path` is then the source's.
        columns: source and target column by name, or by number from 0 (TSV and CSV alone). None: the language
            codes, else src and tgt, else (TSV and CSV) 0 and 1.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    path: str
    format: Format | None = None
    target: str | None = None
    columns: tuple[str | int, str | int] | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("the path of a corpus is empty; write for example train.{en,de}")
        if any(isinstance(column, int) and column < 0 for column in self.columns or ()):
            raise ValueError(f"columns = {list(self.columns or ())}: column numbers count from 0")


Corpus = str | CorpusSource | Sequence[str | CorpusSource]
"""What names a corpus: a path, a source, or several, which are joined in order."""


@dataclass(frozen=True)
class LocatedSource:
    """A source whose format is known and whose paths are complete: two files for text, else the same path twice."""

    format: Format
    paths: tuple[str, str]
    columns: tuple[str | int, str | int] | None


def bundled_data_folder() -> Path:
    """The folder of the data that travels with the package: in an installed package, or in a source checkout.

    Raises:
        FileError: neither is there.
    """
    package = Path(__file__).parent
    for folder in (package / "bundled" / "data", package.parent / "data"):
        if folder.is_dir():
            return folder
    raise FileError(f"{package / 'bundled' / 'data'}: the bundled data is missing; install the package again")


def expand(path: str, folder: str = "") -> str:
    """Puts `folder` before a relative path and resolves ``bundled:`` and ``~`` in both."""
    if path.startswith(BUNDLED_PREFIX):
        return str(bundled_data_folder() / path.removeprefix(BUNDLED_PREFIX))
    path = os.path.expanduser(path)
    return str(Path(expand(folder), path)) if folder else path


def as_sources(corpus: Corpus) -> list[CorpusSource]:
    """The sources that a corpus names; an empty path names none."""
    several = [corpus] if isinstance(corpus, (str, CorpusSource)) else corpus
    return [CorpusSource(source) if isinstance(source, str) else source for source in several if source]


def locate(source: CorpusSource, folder: str, languages: tuple[str, str]) -> LocatedSource:
    """Finds the format and the files of a source.

    Raises:
        CorpusError: a file is missing.
        ConfigError: the format cannot be told, or does not fit `columns`.
    """
    if source.path.startswith(HUB_PREFIX):
        name = parse_hub_name(source.path)
        path = str(name._replace(path=os.path.abspath(expand(name.path, folder)))) if name.is_local else str(name)
    else:
        path = expand(source.path, folder)
    format = source.format or ("text" if source.target else format_of(path))
    check_columns(source, format)
    if source.target and format != "text":
        raise ConfigError(f"{source.path}: target names the second of two text files, and format is {format!r}")
    if source.target:
        paths = path, expand(source.target, folder)
    else:
        paths = text_paths(path, languages) if format == "text" else (path, path)
    located = LocatedSource(format, paths, source.columns)
    for file in dict.fromkeys(paths):
        if format in ONE_FILE_FORMATS or format == "text":
            require_file(Path(file))
        elif format == "saved":
            require_folder(Path(file))
        elif (hub_name := parse_hub_name(file)).is_local:
            require_folder(Path(hub_name.path))
    return located


def format_of(path: str) -> Format:
    """The format that a path's form shows.

    Raises:
        ConfigError: it shows none.
    """
    if path.startswith(HUB_PREFIX):
        return "hub"
    suffix = Path(path.removesuffix(".gz")).suffix
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if BRACES.search(path):
        return "text"
    if os.path.isdir(path):
        return "saved"
    if not os.path.exists(path):
        require_file(Path(path))
    raise ConfigError(
        f"{path}: the name does not show the format. Two aligned text files are written train.{{en,de}}; "
        f"for one file end the name in {', '.join(SUFFIXES)}, or set format to one of {', '.join(READERS)}"
    )


def check_columns(source: CorpusSource, format: Format) -> None:
    """Refuses columns that a format cannot have.

    Raises:
        ConfigError: columns for text files, or numbers for a format whose columns have names alone.
    """
    if source.columns is None or format in ("tsv", "csv"):
        return
    if format == "text":
        raise ConfigError(f"{source.path}: two text files have no columns; remove `columns`, or set format")
    if any(isinstance(column, int) for column in source.columns):
        raise ConfigError(f"{source.path}: columns of {format} are given by name, not by number: {source.columns}")


def text_paths(path: str, languages: tuple[str, str]) -> tuple[str, str]:
    """The two files that ``train.{en,de}`` means: each side by its language code, else the first is the source.

    Raises:
        ConfigError: the path has not exactly one pair of names in braces.
    """
    matches = list(BRACES.finditer(path))
    if len(matches) != 1:
        raise ConfigError(f"{path}: name the two text files with one pair of braces, such as train.{{en,de}}")
    before, after = path[: matches[0].start()], path[matches[0].end() :]
    first, second = matches[0].groups()
    if (first, second) == languages[::-1]:
        first, second = second, first
    return before + first + after, before + second + after


def require_file(path: Path) -> None:
    """Raises a CorpusError unless `path` is a regular file; it suggests the nearest name in that folder."""
    if path.is_dir():
        raise CorpusError(f"{path}: is a folder, not a file; name a file in it, or write hf:./FOLDER@SPLIT")
    if not path.exists():
        raise missing(path)
    if path.suffix in COMPRESSED:
        raise CorpusError(f"{path}: is compressed in a way that is not read here; decompress it, or use gzip (.gz)")
    if not path.is_file():  # a pipe, such as a shell's <(...), gives its content once
        raise CorpusError(f"{path}: is not a regular file; it is read more than once, so write it to a file first")


def require_folder(path: Path) -> None:
    """Raises a CorpusError unless `path` is a folder; it suggests the nearest name beside it."""
    if not path.exists():
        raise missing(path)
    if not path.is_dir():
        raise CorpusError(f"{path}: is a file, not a folder; a file's format is set with format = ...")


def missing(path: Path) -> CorpusError:
    """The error for a path that does not exist."""
    if not path.parent.is_dir():
        return CorpusError(
            f"{path}: no such file, nor is there a folder {path.parent}; where a config's corpus lies is said by "
            "data.folder (train --set data.folder=DIR)"
        )
    near = get_close_matches(path.name, os.listdir(path.parent), n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else f" in {path.parent.resolve()}"
    return CorpusError(f"{path}: no such file{hint}")


def local_files(source: LocatedSource) -> list[str]:
    """Every file on this disk that a source is read from."""
    if source.format == "text" or source.format in ONE_FILE_FORMATS:
        return list(dict.fromkeys(source.paths))
    path = source.paths[0]
    if source.format == "hub":
        name = parse_hub_name(path)
        if not name.is_local:
            return []
        path = name.path
    return sorted(str(file) for file in Path(path).rglob("*") if file.is_file())
