"""What a user names as a corpus becomes a `datasets.Dataset` with the two columns src and tgt.

sources.py finds the files, readers.py reads them; here each pair is checked and written to one Arrow file, which later
runs open at once. The file is mapped, not loaded, so memory does not grow with the corpus.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from uuid import uuid4

from mtattn.errors import ConfigError, CorpusError, FileError
from mtattn.readers import READERS, ReaderInput
from mtattn.sources import Corpus, CorpusSource, LocatedSource, as_sources, local_files, locate

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

CACHE_VERSION = 4
"""Part of every cache key: raise it when the same files would give other pairs than before."""
PAIRS_FILE = "pairs.arrow"
ROWS_PER_WRITE = 10_000
BUILDING = ".building-"
ABANDONED_S = 24 * 60 * 60  # seconds after which what is being built, and is not written to, is taken for a leftover


@dataclass(frozen=True)
class DataConfig:
    """The [data] section: which languages, and where their text lies.

    Args:
        src: language code of the source.
        tgt: language code of the target.
        folder: prefix of every relative path below; ``bundled:toy`` names data that travels with the package.
        train: corpus to learn from.
        dev: corpus for validation during training; never filtered.
        test: corpus for the final score; never filtered.
        errors: a training line that is not UTF-8 stops the program ("strict"), or its pair is dropped ("skip").
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    src: str = "en"
    tgt: str = "de"
    folder: str = ""
    train: str | CorpusSource | tuple[str | CorpusSource, ...] = ()
    dev: str | CorpusSource | tuple[str | CorpusSource, ...] = ()
    test: str | CorpusSource | tuple[str | CorpusSource, ...] = ()
    errors: Literal["strict", "skip"] = "strict"


@dataclass(frozen=True)
class LoadedCorpus:
    """A corpus, ready to use.

    Args:
        dataset: the pairs, in order, in the string columns src and tgt; mapped from disk.
        dropped: reason ("blank", "invalid utf-8") -> number of pairs left out.
        files: path -> sha256 of the content, of every local file that was read.
    """

    dataset: "datasets.Dataset"
    dropped: dict[str, int]
    files: dict[str, str]


def load_corpus(corpus: Corpus, data: DataConfig, *, cache_dir: Path, keep_all: bool = False) -> LoadedCorpus:
    """Reads a corpus, or opens the Arrow file that an earlier call made from the same content.

    The hub is asked once: a dataset that changes there stays the old one here until `cache_dir` is deleted.

    Args:
        corpus: what to read; several sources are joined in order.
        data: languages, folder and what to do about invalid UTF-8.
        cache_dir: where Arrow files are kept, one folder for each content; it may be deleted at any time.
        keep_all: for dev and test: blank lines stay, and invalid UTF-8 is an error whatever `data` says.

    Raises:
        CorpusError: a file is missing or broken, sides differ in length, or no pair is left.
        ConfigError: the format cannot be told, or does not fit `columns`.
        FileError: the system refuses to read a file or to write the cache.
    """
    silence_datasets()
    sources = [locate(source, data.folder, (data.src, data.tgt)) for source in as_sources(corpus)]
    if not sources:
        raise ConfigError('no corpus is named; set for example data.train = "train.{en,de}"')
    files = {file: sha256_of(file) for source in sources for file in local_files(source)}
    options = [CACHE_VERSION, data.src, data.tgt, data.errors == "skip" and not keep_all, keep_all]
    description = json.dumps([options, [asdict(source) for source in sources], files])
    cached = cache_dir / hashlib.sha256(description.encode()).hexdigest()
    try:
        with suppress(FileError):  # not made yet, or damaged, as by a power cut
            return LoadedCorpus(*open_cache(cached), files)
        shutil.rmtree(cached, ignore_errors=True)
        build_cache(cached, sources, data, keep_all=keep_all)
        return LoadedCorpus(*open_cache(cached), files)
    except OSError as error:
        raise FileError(f"{cache_dir}: cannot write or read the corpus cache: {error.strerror or error}") from error


def silence_datasets() -> None:
    """Turns off the bars and log lines of `datasets` and the hub client: standard error has this program's own."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    for name in ("datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def sha256_of(path: str) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path}: cannot read: {error.strerror or error}") from error


def build_cache(target: Path, sources: list[LocatedSource], data: DataConfig, *, keep_all: bool) -> None:
    """Reads the sources and writes the folder `target` in one step, so that nobody sees half of it."""
    dropped: Counter[str] = Counter()
    with building_folder(target.parent) as work:
        scratch, result = work / "scratch", work / "result"
        scratch.mkdir()
        result.mkdir()
        pairs = chain.from_iterable(
            checked_pairs(source, data, scratch, dropped, keep_all=keep_all) for source in sources
        )
        # What the hub holds may be other text the next time, although it is named alike.
        fingerprint = target.name[:16] if all(map(local_files, sources)) else uuid4().hex[:16]
        if not write_arrow(pairs, result / PAIRS_FILE, fingerprint):
            names = ", ".join(dict.fromkeys(path for source in sources for path in source.paths))
            raise CorpusError(f"{names}: no pairs" + (f" are left{listed(dropped)}" if dropped else "; it is empty"))
        seal(result / PAIRS_FILE, dropped)
        try:
            result.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same content
                raise


def listed(dropped: Mapping[str, int]) -> str:
    """How many pairs were left out and why, in brackets; "" when none was."""
    return f" (dropped: {', '.join(f'{count:,} {reason}' for reason, count in dropped.items())})" if dropped else ""


@contextmanager
def building_folder(cache_dir: Path) -> Iterator[Path]:
    """A folder inside `cache_dir` to make something in, removed at the end, as are those that killed processes left.

    Its name is not a process's number: containers that share a cache have the same ones.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    for folder in cache_dir.glob(f"{BUILDING}*"):
        with suppress(OSError):  # it is gone meanwhile, or someone else's
            written = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            if time.time() - written > ABANDONED_S:
                shutil.rmtree(folder)
    work = Path(tempfile.mkdtemp(prefix=BUILDING, dir=cache_dir))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def open_cache(folder: Path) -> tuple["datasets.Dataset", dict[str, int]]:
    """The dataset and the counts of dropped pairs that `build_cache` wrote. Raises FileError: they are damaged."""
    from datasets import Dataset

    dropped = unsealed(folder / PAIRS_FILE)
    return Dataset.from_file(str(folder / PAIRS_FILE)), dropped


def seal(path: Path, dropped: Mapping[str, int]) -> None:
    """Write beside an Arrow file its sha256, and how many pairs were left out of it for which reason.

    A power cut may leave pages of zeros in it, which read as fewer pairs or as other text.
    """
    beside = {"sha256": sha256_of(str(path)), "dropped": dropped}
    path.with_suffix(".json").write_text(json.dumps(beside), encoding="utf-8")


def unsealed(path: Path) -> dict[str, int]:
    """The counts that stand beside an Arrow file.

    Raises:
        FileError: one of both is missing, or not what was written.
    """
    try:
        beside = json.loads(path.with_suffix(".json").read_bytes())
        dropped: dict[str, int] = beside["dropped"]
        whole = beside["sha256"] == sha256_of(str(path))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FileError(f"{path}: damaged ({error}); delete it, it is made again") from error
    if not whole:
        raise FileError(f"{path}: damaged (its sha256 is another); delete it, it is made again")
    return dropped


def checked_pairs(
    source: LocatedSource, data: DataConfig, scratch: Path, dropped: Counter[str], *, keep_all: bool
) -> Iterator[tuple[str, str]]:
    """Yields the pairs of one source without the blank and the invalid ones, which it counts in `dropped`."""
    given = ReaderInput(source.paths, (data.src, data.tgt), source.columns, scratch)
    for number, src, tgt in READERS[source.format](given):
        if not (is_unicode(src) and is_unicode(tgt)):
            if keep_all or data.errors == "strict":
                path, text = (source.paths[0], src) if not is_unicode(src) else (source.paths[1], tgt)
                raise invalid_utf8(path, number, text, training=not keep_all)
            dropped["invalid utf-8"] += 1
        elif keep_all or (src.strip() and tgt.strip()):
            yield src, tgt
        else:
            dropped["blank"] += 1


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, which is how readers pass on bytes that are not UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def invalid_utf8(path: str, number: int, text: str, *, training: bool) -> CorpusError:
    """The error for a line that is not UTF-8; names its first bad byte. training: the line is to be learnt from."""
    at, code = next((at, ord(char)) for at, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    bad = f"byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"lone surrogate U+{code:04X}"
    skip = ', or drop such training pairs with data.errors = "skip"' if training else ""
    return CorpusError(
        f"{path}:{number}: not valid UTF-8 ({bad} after {at} characters); convert the file to UTF-8 with iconv{skip}"
    )


def write_arrow(pairs: Iterable[tuple[str, str]], path: Path, fingerprint: str) -> int:
    """Writes pairs as an Arrow file for `Dataset.from_file`, a batch at a time, and returns their number.

    The fingerprint names the content, so that `datasets` need not compute one.
    """
    import pyarrow as pa
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    pairs = iter(pairs)
    num_pairs = 0
    features = Features({"src": Value("string"), "tgt": Value("string")})
    options = {"fingerprint": fingerprint, "writer_batch_size": ROWS_PER_WRITE}
    with ArrowWriter(features=features, path=str(path), **options) as writer:
        while batch := list(islice(pairs, ROWS_PER_WRITE)):
            src, tgt = zip(*batch, strict=True)
            writer.write_table(pa.table({"src": pa.array(src, pa.string()), "tgt": pa.array(tgt, pa.string())}))
            num_pairs += len(batch)
        writer.finalize()
    return num_pairs


def read_tables(dataset: "datasets.Dataset", size: int) -> "Iterator[pa.Table]":
    """The rows of a dataset in tables of about `size`, read from its files where it consists of whole files.

    It maps those files, and every page of a mapped file that was looked at counts as this process's memory: a pass over
    the mapping would grow with the corpus, and reading does not.
    """
    files = [file["filename"] for file in dataset.cache_files]
    if dataset._indices is None and sum(map(_num_rows, files)) == len(dataset):
        for file in files:
            yield from _read(file, size)
    else:
        yield from dataset.with_format("arrow").iter(batch_size=size)


def _num_rows(file: str) -> int:
    import pyarrow as pa

    with pa.memory_map(file) as source, pa.ipc.open_stream(source) as batches:  # mapped: only their heads are read
        return sum(batch.num_rows for batch in batches)


def _read(file: str, size: int) -> "Iterator[pa.Table]":
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []  # the file may have been written in smaller batches
    with pa.OSFile(file) as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            waiting.append(batch)
            if sum(len(one) for one in waiting) >= size:
                yield pa.Table.from_batches(waiting)
                waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
