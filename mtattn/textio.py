"""Text by the line, in and out: lines end at b"\\n" alone, and none is ever lost.

`str.splitlines` and text mode also break at U+2028, U+0085, VT or FF, which shifts every line after; bytes do not.
"""

import gzip
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from mtattn.errors import ConfigError, FileError
from mtattn.progress import Reporter


@contextmanager
def open_lines(path: Path | None, report: Reporter) -> Iterator[Iterator[str]]:
    """The lines of a file (or `.gz`), or of standard input when None: without line ends, read as they are asked for.

    Invalid UTF-8 is replaced by U+FFFD and counted in a warning: a line may be damaged, but never lost.

    Raises:
        FileError: the file cannot be read.
    """
    name = str(path or "standard input")
    with _cannot_be("read", name):
        file = _binary(sys.stdin, name) if path is None else _to_read(path)
    damaged = _Damaged()
    try:
        yield _decoded(file, damaged, name)
    finally:
        if path is not None:
            file.close()
        if damaged.count:
            report.warn(
                f"{name}: {damaged.count} lines are not valid UTF-8 (first line {damaged.first}); "
                "bad bytes were replaced"
            )


@contextmanager
def _cannot_be(done: str, name: str) -> Iterator[None]:
    """Say which file could not be "read" or "written"."""
    try:
        yield
    except BrokenPipeError:  # its reader has gone, which is no fault
        raise
    except (OSError, EOFError, zlib.error) as error:  # the last two, and the first without strerror, of damaged gzip
        raise FileError(f"{name}: cannot be {done}: {getattr(error, 'strerror', None) or error}") from None


def _to_read(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _binary(stream: TextIO | None, name: str) -> BinaryIO:
    if stream is None:  # as `<&-` leaves it
        raise FileError(f"{name}: is closed")
    return stream.buffer


@dataclass
class _Damaged:
    """How many lines were not UTF-8, and the number of the first; no list, which would grow with the input."""

    count: int = 0
    first: int = 0


def _decoded(file: BinaryIO, damaged: _Damaged, name: str) -> Iterator[str]:
    with _cannot_be("read", name):
        for number, raw in enumerate(file, start=1):
            if raw.endswith(b"\n"):
                raw = raw[:-1].removesuffix(b"\r")
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError:
                damaged.count += 1
                damaged.first = damaged.first or number
                yield raw.decode("utf-8", errors="replace")


@contextmanager
def open_output(path: Path | None, *sources: Path | None, force: bool = False) -> Iterator[Callable[[str], None]]:
    """A function that writes one line to a file, or to standard output when None.

    Args:
        sources: the files that are read beside standard input; neither must be written over. None: no file.
        force: replace an existing file.

    Raises:
        ConfigError: the file exists, is a folder, or is one of the sources. FileError: it cannot be written.
    """
    target = _identity(path or sys.stdout)
    if target is not None and target in map(_identity, (sys.stdin, *sources)):
        raise ConfigError(f"{path or 'standard output'}: is also the input; give the output another name")
    if path is not None and path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file")
    if path is not None and path.is_file() and not force:
        raise ConfigError(f"{path}: exists already; --force replaces it")
    if path is not None and not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder {path.parent}; make it first")
    name = str(path or "standard output")
    is_new = path is not None and not path.exists()
    with _cannot_be("written", name):
        file = _binary(sys.stdout, name) if path is None else _opened(path)
    old = path is not None and stat.S_ISREG(os.fstat(file.fileno()).st_mode)  # what stood there, not yet lost

    def write(line: str) -> None:
        nonlocal old
        with _cannot_be("written", name):
            if old:
                file.truncate(0)
                old = False
            file.write(line.encode("utf-8") + b"\n")
            file.flush()  # a reader at the other end of a pipe sees each line when it is there

    try:
        yield write
    except BaseException:
        if path is not None:
            with suppress(OSError):  # it would fail again to write what could not be written, and hide why
                file.close()
            with suppress(OSError):
                if is_new and not path.stat().st_size:  # nothing is lost, and the next attempt finds the name free
                    path.unlink()
        raise
    if path is not None:
        with _cannot_be("written", name):
            if old:  # nothing was written
                file.truncate(0)
            file.close()  # some file systems say only now that they are full


def _opened(path: Path) -> BinaryIO:
    """A file to write, with what it holds until the first line comes: an error before it shall lose nothing."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb")


def _identity(file: Path | TextIO | None) -> tuple[int, int] | None:
    """What tells a regular file from all others, by whatever name it was opened; None: it is none."""
    try:
        found = file.stat() if isinstance(file, Path) else os.fstat(file.fileno()) if file else None
    except (OSError, ValueError, AttributeError):  # not there; or a stream of another kind
        return None
    return (found.st_dev, found.st_ino) if found and stat.S_ISREG(found.st_mode) else None
