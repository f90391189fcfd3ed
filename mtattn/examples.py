"""From a corpus to training examples: filter, encode once, keep the ids in a memory-mapped Arrow file."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtattn.batch import IntArray, TokenTable
from mtattn.corpus import LoadedCorpus, building_folder, listed, read_tables, seal, unsealed
from mtattn.errors import CorpusError, FileError
from mtattn.filtering import FilterConfig, why_left_out
from mtattn.tokenizer import Tokenizer

BLOCK = 10_000  # pairs encoded at a time
VERSION = 4
"""Part of every cache key: raise it when the same corpus would give other examples than before."""
SCHEMA = pa.schema({"src": pa.list_(pa.int32()), "tgt": pa.list_(pa.int32()), "number": pa.int64()})

Texts = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Examples:
    """Encoded training pairs. `numbers[i]` is pair i's row in the corpus; `dropped` counts the others by reason."""

    src: TokenTable
    tgt: TokenTable
    numbers: IntArray
    dropped: dict[str, int]


def encode_corpus(
    corpus: LoadedCorpus,
    tokenizer: Tokenizer,
    config: FilterConfig,
    held_out: frozenset[str],
    *,
    cache_dir: Path,
    done: Callable[[int], None] = lambda count: None,
) -> Examples:
    """Encode the pairs that pass the filters; the outcome is cached by the content of all that shapes it.

    Args:
        held_out: sentences of dev and test, either side; a training pair with one of them on a side is left out.
        cache_dir: where the Arrow file is kept; may be deleted at any time.
        done: told how many pairs have been looked at.

    Raises:
        CorpusError: no pair is left. FileError: the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps([VERSION, corpus.dataset._fingerprint, asdict(config)]).encode())
    for part in (*tokenizer.to_files().values(), *(text.encode() for text in sorted(held_out))):
        key.update(hashlib.sha256(part).digest())
    path = cache_dir / f"{key.hexdigest()}.arrow"
    try:
        with suppress(FileError):  # not made yet, or damaged
            return _open(path)
        with building_folder(cache_dir) as work:
            made = work / path.name
            _write(made, corpus, tokenizer, config, held_out, done)
            made.with_suffix(".json").replace(path.with_suffix(".json"))
            made.replace(path)
        return _open(path)
    except OSError as error:
        raise FileError(f"{cache_dir}: cannot write or read the cache: {error.strerror or error}") from None


def _write(
    path: Path,
    corpus: LoadedCorpus,
    tokenizer: Tokenizer,
    config: FilterConfig,
    held_out: frozenset[str],
    done: Callable[[int], None],
) -> None:
    repeated = _repeated(corpus) if config.duplicate else None
    dropped: dict[str, int] = {}
    kept = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for start, (src, tgt) in _blocks(corpus):
            src_ids, tgt_ids = tokenizer.encode_src(src), tokenizer.encode_tgt(tgt)
            rows: list[int] = []
            for i in range(len(src)):
                if repeated is not None and repeated[start + i]:
                    reason: str | None = "duplicate"
                else:
                    reason = why_left_out(src[i], tgt[i], len(src_ids[i]), len(tgt_ids[i]), config, held_out)
                if reason:
                    dropped[reason] = dropped.get(reason, 0) + 1
                else:
                    rows.append(i)
            columns = [[src_ids[i] for i in rows], [tgt_ids[i] for i in rows], [start + i for i in rows]]
            arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(arrays, SCHEMA))
            kept += len(rows)
            done(start + len(src))
    if not kept:
        fix = "give more pairs, or a dev set of others" if "in dev or test" in dropped else "loosen [filter]"
        raise CorpusError(f"no training pair is left after filtering{listed(dropped)}; {fix}")
    seal(path, dropped)


def _open(path: Path) -> Examples:
    dropped = unsealed(path)
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    numbers = table["number"].to_numpy()
    return Examples(_tokens(table["src"]), _tokens(table["tgt"]), numbers, dropped)


def _tokens(column: Any) -> TokenTable:
    return TokenTable([(np.asarray(chunk.values), np.asarray(chunk.offsets)) for chunk in column.chunks])


def _blocks(corpus: LoadedCorpus) -> Iterator[tuple[int, Texts]]:
    """Each BLOCK of pairs: the number of its first, and their texts."""
    start = 0
    for table in read_tables(corpus.dataset, BLOCK):
        yield start, (table["src"].to_pylist(), table["tgt"].to_pylist())
        start += table.num_rows


def _repeated(corpus: LoadedCorpus) -> Any:
    """True for every pair that an earlier one equals; 8 bytes a pair are held, not the text."""
    hashes = np.empty(len(corpus.dataset), dtype=np.int64)
    for start, (src, tgt) in _blocks(corpus):
        hashes[start : start + len(src)] = [hash(pair) for pair in zip(src, tgt, strict=True)]
    _, first = np.unique(hashes, return_index=True)
    repeated = np.ones(len(hashes), dtype=bool)
    repeated[first] = False
    return repeated
