"""Readers of parallel text: one function a format, listed in READERS, each yields (line, source, target).

Three rules keep the two sides aligned, where other tools lose or shift lines:

- a line ends at the byte ``\\n`` alone (a ``\\r`` before it is removed); U+2028, U+0085, VT, FF and NUL are text;
- a byte order mark at the start of a file is no text;
- what is not UTF-8 is decoded with ``surrogateescape``, so that a reader never stops: the caller finds the lone
  surrogates and decides, for every format alike.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from mtattn.errors import CorpusError, FileError
from mtattn.tmx import tmx_pairs

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

Format = Literal["text", "tsv", "csv", "jsonl", "parquet", "tmx", "saved", "hub"]
"""Name of a corpus format; READERS has its reader."""

Row = tuple[int, str, str]
"""Line (or row) number from 1, source text, target text; bytes that are not UTF-8 are lone surrogates."""

BOM = b"\xef\xbb\xbf"
BATCH_ROWS = 10_000
MAX_CELL = 1 << 26  # characters of a CSV cell: no text comes near it, and memory holds what an open quote swallows


@dataclass(frozen=True)
class ReaderInput:
    """What a reader needs to know.

    Args:
        paths: where the source side and the target side lie: two files for "text", the same path twice for the others.
        languages: language codes of source and target.
        columns: names, or numbers from 0, of the two columns; None to look for the language codes, then src and tgt.
        scratch: a folder for temporary files, removed afterwards.
    """

    paths: tuple[str, str]
    languages: tuple[str, str]
    columns: tuple[str | int, str | int] | None
    scratch: Path


Reader = Callable[[ReaderInput], Iterator[Row]]


@contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """Opens a file for reading, through gzip where its name ends in ``.gz``.

    Raises:
        CorpusError: the gzip data is damaged.
        FileError: the system refuses to open or read the file.
    """
    try:
        with cast(BinaryIO, gzip.open(path, "rb")) if path.endswith(".gz") else open(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{path}: damaged or incomplete gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        raise FileError(f"{path}: cannot read: {error.strerror or error}") from error


def raw_lines(path: str) -> Iterator[str]:
    """Yields the lines of a file with their ends, split at ``\\n`` alone, without the byte order mark."""
    with open_bytes(path) as file:
        first = file.readline().removeprefix(BOM)
        for line in chain([first] if first else [], file):
            yield line.decode("utf-8", "surrogateescape")


def lines(path: str) -> Iterator[str]:
    """Yields the lines of a file without their ends (``\\n`` or ``\\r\\n``)."""
    for line in raw_lines(path):
        yield line[:-1].removesuffix("\r") if line.endswith("\n") else line


def read_text(given: ReaderInput) -> Iterator[Row]:
    """Two files, where line n of one translates line n of the other."""
    sides = [lines(path) for path in given.paths]
    for number, (src, tgt) in enumerate(zip_longest(*sides), start=1):
        if src is None or tgt is None:
            short, long = (0, 1) if src is None else (1, 0)
            num_lines = number + sum(1 for _ in sides[long])
            raise CorpusError(
                f"{given.paths[short]} has {number - 1} lines but {given.paths[long]} has {num_lines}: "
                "line n of one must translate line n of the other; align the two files again"
            )
        yield number, src, tgt


def read_tsv(given: ReaderInput) -> Iterator[Row]:
    """Cells between tabs, without any quoting."""
    rows = ((number, line.split("\t")) for number, line in enumerate(lines(given.paths[0]), start=1))
    return pairs_of_cells(rows, given)


def read_csv(given: ReaderInput) -> Iterator[Row]:
    """Comma-separated cells, quoted as RFC 4180 says."""
    return pairs_of_cells(csv_cells(given.paths[0]), given)


def csv_cells(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of its last line, cells) for each record of a CSV file."""
    csv.field_size_limit(MAX_CELL)  # its 131,072 would refuse a pair that every other format takes
    # strict: without it, a quote that is never closed swallows the rest of the file and says nothing.
    reader = csv.reader(raw_lines(path), strict=True)
    begun = 1  # where the record begins: an open quote is noticed far behind it
    try:
        for cells in reader:
            yield reader.line_num, cells
            begun = reader.line_num + 1
    except csv.Error as error:
        fix = "quote a cell that holds a carriage return" if "new-line" in str(error) else "check the quotes"
        raise CorpusError(f"{path}:{begun}: not CSV ({error}); {fix} from that line on") from error


def pairs_of_cells(rows: Iterator[tuple[int, list[str]]], given: ReaderInput) -> Iterator[Row]:
    """Takes the source and the target cell of each row.

    The first row is a header if the columns are given by name, or if it names both languages (or src and tgt) in
    the columns given by number or, without any given, in any.
    Otherwise it is a pair, and the columns are 0 and 1 unless given. An empty line is a pair of blanks. A row with more
    in it than the first has cells holds a separator in one, so that its cells are not what they seem.
    """
    path = given.paths[0]
    first = next(rows, None)
    if first is None:
        return
    wanted = given.columns or column_names(first[1], given) or (0, 1)
    if any(isinstance(column, str) for column in wanted):
        header = first[1]
        if unknown := [column for column in wanted if isinstance(column, str) and column not in header]:
            raise missing_columns(f"{path}:{first[0]}", unknown, header)
        src, tgt = (header.index(column) if isinstance(column, str) else column for column in wanted)
    else:
        src, tgt = (int(column) for column in wanted)
        chosen = tuple(first[1][column] for column in (src, tgt) if column < len(first[1]))
        rows = rows if chosen in (given.languages, ("src", "tgt")) else chain([first], rows)
    width = _num_filled(first[1])
    for number, cells in rows:
        if cells in ([], [""]):
            yield number, "", ""
            continue
        width = width or _num_filled(cells)
        # Columns that are given may have anything behind them.
        if not given.columns and any(cells[max(width, src + 1, tgt + 1) :]):
            raise CorpusError(
                f"{path}:{number}: {len(cells)} columns, but the first row has {width}; in CSV quote a cell "
                "that holds a comma, in TSV take the tab out of it; or set `columns`, whatever stands behind them"
            )
        if len(cells) <= max(src, tgt):
            raise CorpusError(
                f"{path}:{number}: {len(cells)} column(s), but column {max(src, tgt)} (counted from 0) is wanted; "
                "check the separator, or set `columns`"
            )
        yield number, cells[src], cells[tgt]


def _num_filled(cells: list[str]) -> int:
    """How many there are, without empty ones at the end."""
    return max((number for number, cell in enumerate(cells, start=1) if cell), default=0)


def read_jsonl(given: ReaderInput) -> Iterator[Row]:
    """One JSON object a line: ``{"en": .., "de": ..}``, ``{"src": .., "tgt": ..}``, or either under "translation"."""
    for number, line in enumerate(lines(given.paths[0]), start=1):
        where = f"{given.paths[0]}:{number}"
        if not line.strip():
            yield number, "", ""
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: not JSON ({error}); each line must be one whole object") from error
        if not isinstance(record, dict):
            raise CorpusError(
                f"{where}: a JSON {type(record).__name__}, but each line must be an object with two texts"
            )
        inner = record.get("translation")
        for table in (record, inner if isinstance(inner, dict) else {}):
            if names := column_names(table, given):
                yield number, json_text(table[names[0]], names[0], where), json_text(table[names[1]], names[1], where)
                break
        else:
            raise missing_columns(where, wanted_names(given)[0], inner if isinstance(inner, dict) else record)


def json_text(value: object, name: str, where: str) -> str:
    """The text of a JSON value; null is blank."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(f'{where}: "{name}" is a {type(value).__name__}, but must be text in quotes')
    return value


def read_parquet(given: ReaderInput) -> Iterator[Row]:
    """A Parquet file with two text columns, or a "translation" column of structs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = given.paths[0]
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            columns = used_columns(file.schema_arrow, given)
            yield from pairs_of_batches(file.iter_batches(batch_size=BATCH_ROWS, columns=columns), given)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: cannot read as Parquet ({first_line(error)})") from error


def read_saved(given: ReaderInput) -> Iterator[Row]:
    """A folder that ``datasets.Dataset.save_to_disk`` wrote."""
    import datasets

    path = given.paths[0]
    try:
        dataset = datasets.load_from_disk(path)
    except Exception as error:  # datasets documents no set of exceptions for a damaged folder
        raise CorpusError(f"{path}: cannot read as a saved dataset ({first_line(error)})") from error
    if isinstance(dataset, datasets.DatasetDict):
        splits = ", ".join(f"{path}/{split}" for split in dataset)
        raise CorpusError(f"{path}: holds several splits; name one of {splits}")
    yield from pairs_of_dataset(dataset, given)


def read_hub(given: ReaderInput) -> Iterator[Row]:
    """A dataset of the Hugging Face hub, or a local folder laid out like one, in Parquet or JSON; never remote code."""
    from mtattn.hub import load_hub_split

    yield from pairs_of_dataset(load_hub_split(given.paths[0], given.scratch), given)


def read_tmx(given: ReaderInput) -> Iterator[Row]:
    """A translation memory (TMX 1.4); the columns are language codes, where ``en`` finds ``en-US`` too."""
    languages = given.languages if given.columns is None else (str(given.columns[0]), str(given.columns[1]))
    with open_bytes(given.paths[0]) as file:
        yield from tmx_pairs(file, given.paths[0], languages)


def pairs_of_dataset(dataset: "datasets.Dataset", given: ReaderInput) -> Iterator[Row]:
    """Takes the two columns of a dataset, batch by batch."""
    columns = used_columns(dataset.features.arrow_schema, given)
    tables = dataset.select_columns(columns).with_format("arrow").iter(batch_size=BATCH_ROWS)
    return pairs_of_batches(chain.from_iterable(table.to_batches() for table in tables), given)


def used_columns(schema: "pa.Schema", given: ReaderInput) -> list[str]:
    """The top-level columns that hold the two texts: both sides, or "translation"."""
    if names := column_names(schema.names, given):
        return list(names)
    if "translation" in schema.names:
        return ["translation"]
    raise missing_columns(given.paths[0], wanted_names(given)[0], schema.names)


def pairs_of_batches(batches: Iterable["pa.RecordBatch"], given: ReaderInput) -> Iterator[Row]:
    """Takes the two columns out of Arrow record batches."""
    import pyarrow as pa

    number = 0
    for batch in batches:
        if batch.schema.names == ["translation"]:
            struct = batch.column(0)
            if not pa.types.is_struct(struct.type):
                raise CorpusError(
                    f'{given.paths[0]}: column "translation" has type {struct.type}, not texts by language'
                )
            inner = [field.name for field in struct.type]
            names = column_names(inner, given)
            if names is None:
                raise missing_columns(given.paths[0], wanted_names(given)[0], inner)
            batch = pa.RecordBatch.from_arrays(struct.flatten(), names=inner).select(list(names))
        src_texts, tgt_texts = (arrow_texts(batch.column(side), given.paths[0], batch.schema.names) for side in (0, -1))
        for src, tgt in zip(src_texts, tgt_texts, strict=True):
            number += 1
            yield number, src, tgt


def arrow_texts(column: "pa.Array[Any]", path: str, names: list[str]) -> list[str]:
    """The texts of an Arrow column; null is blank."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise CorpusError(f"{path}: columns {', '.join(names)}: found type {column.type}, but both must be text")
    values = column.cast(pa.large_binary()).to_pylist()
    return ["" if value is None else value.decode("utf-8", "surrogateescape") for value in values]


def wanted_names(given: ReaderInput) -> list[tuple[str, str]]:
    """The pairs of column names to look for, best first."""
    if given.columns is not None:
        return [(str(given.columns[0]), str(given.columns[1]))]
    return [given.languages, ("src", "tgt")]


def column_names(present: Collection[str], given: ReaderInput) -> tuple[str, str] | None:
    """The first wanted pair of column names that is present."""
    return next((pair for pair in wanted_names(given) if pair[0] in present and pair[1] in present), None)


def missing_columns(where: str, wanted: Iterable[str | int], present: Iterable[str]) -> CorpusError:
    """The error for columns that do not exist; it says which do."""
    names = ", ".join(f'"{name}"' for name in present)
    return CorpusError(
        f"{where}: no columns {' and '.join(map(repr, wanted))}; there are {names or 'none'}. "
        'Set the corpus to { path = "...", columns = ["SOURCE", "TARGET"] }'
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


READERS: dict[Format, Reader] = {
    "text": read_text,
    "tsv": read_tsv,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "tmx": read_tmx,
    "saved": read_saved,
    "hub": read_hub,
}
"""Format -> reader. A new format is a function above and a line here (and in Format)."""
