"""Examples: filters count by reason, ids are those of the tokenizer, and the cache knows what shaped it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mtattn import examples as examples_module
from mtattn.corpus import DataConfig, LoadedCorpus, load_corpus
from mtattn.errors import CorpusError, FileError
from mtattn.examples import Examples, encode_corpus
from mtattn.filtering import FilterConfig, is_copy
from mtattn.tokenizer import TokenizerConfig, train_tokenizer

KEPT = [("The dog sleeps.", "Der Hund schläft."), ("A cat!", "Eine Katze!"), ("Berlin", "Berlin")]
DROPPED = {
    "too long": [("dog " * 80, "Hund"), ("dog", "Hund " * 80)],
    "length ratio": [("dog " * 20, "H")],
    "identical": [("the dog and the cat", "the dog and the cat")],
    "in dev or test": [("A dev line.", "Egal."), ("Whatever.", "Eine Testzeile.")],
}
HELD_OUT = frozenset(["A dev line.", "Eine Testzeile."])
CONFIG = FilterConfig(max_len=60, max_ratio=5.0)


def corpus_of(pairs: list[tuple[str, str]], folder: Path) -> LoadedCorpus:
    (folder / "x.jsonl").write_text(
        "".join(json.dumps({"src": a, "tgt": b}) + "\n" for a, b in pairs), encoding="utf-8"
    )
    return load_corpus("x.jsonl", DataConfig(src="src", tgt="tgt", folder=str(folder)), cache_dir=folder / "corpora")


@pytest.fixture
def pairs() -> list[tuple[str, str]]:
    bad = [pair for group in DROPPED.values() for pair in group]
    return [KEPT[0], *bad[:3], KEPT[1], KEPT[0], *bad[3:], KEPT[2], KEPT[1]]


@pytest.fixture
def encode(tokenizer, tmp_path):
    def call(
        corpus: LoadedCorpus, config: FilterConfig = CONFIG, held_out=HELD_OUT, tokenizer=tokenizer, **options
    ) -> Examples:
        return encode_corpus(corpus, tokenizer, config, held_out, **{"cache_dir": tmp_path / "cache", **options})

    return call


def rows(table) -> list[list[int]]:
    return [row.tolist() for row in table.rows(np.arange(len(table)))]


def test_filters_count_by_reason(encode, pairs, tmp_path):
    found = encode(corpus_of(pairs, tmp_path))
    assert found.dropped == {**{reason: len(group) for reason, group in DROPPED.items()}, "duplicate": 2}
    assert [pairs[i] for i in found.numbers] == KEPT


def test_ids_are_the_tokenizers(encode, pairs, tokenizer, tmp_path):
    found = encode(corpus_of(pairs, tmp_path))
    assert rows(found.src) == tokenizer.encode_src([src for src, _ in KEPT])
    assert rows(found.tgt) == tokenizer.encode_tgt([tgt for _, tgt in KEPT])
    assert found.src.lens.tolist() == [len(row) for row in rows(found.src)]


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_blocks_change_nothing(encode, pairs, tmp_path, monkeypatch, block):
    whole = encode(corpus_of(pairs, tmp_path))
    (tmp_path / "again").mkdir()
    monkeypatch.setattr("mtattn.corpus.ROWS_PER_WRITE", block)  # what is stored together is read together
    monkeypatch.setattr(examples_module, "BLOCK", block)  # of one pair, whole blocks are empty
    counts: list[int] = []
    found = encode(corpus_of(pairs, tmp_path / "again"), cache_dir=tmp_path / "other", done=counts.append)
    assert len(counts) == -(-len(pairs) // block)
    assert (rows(found.src), rows(found.tgt), found.dropped) == (rows(whole.src), rows(whole.tgt), whole.dropped)
    assert np.array_equal(found.numbers, whole.numbers)
    assert counts[-1] == len(pairs)


@pytest.mark.parametrize(
    ("off", "reason"),
    [
        ({"max_len": 1000, "max_ratio": 1000.0}, "too long"),
        ({"max_ratio": 1000.0}, "length ratio"),
        ({"duplicate": False}, "duplicate"),
        ({"identical": False}, "identical"),
    ],
)
def test_each_filter_can_be_turned_off(encode, pairs, tmp_path, off, reason):
    corpus = corpus_of(pairs, tmp_path)
    loose = encode(corpus, FilterConfig(**{"max_len": 60, "max_ratio": 5.0, **off}))
    assert reason not in loose.dropped
    assert len(loose.numbers) > len(encode(corpus).numbers)


def test_without_held_out_sentences_nothing_leaks(encode, pairs, tmp_path):
    assert "in dev or test" not in encode(corpus_of(pairs, tmp_path), held_out=frozenset()).dropped


def test_a_side_that_is_blank_to_the_tokenizer_is_dropped(encode, tmp_path, toy_lines):
    stripping, _ = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=400))
    pairs = [("\u200b", "Egal."), ("Whatever.", "\ufeff"), KEPT[0]]
    found = encode(corpus_of(pairs, tmp_path), tokenizer=stripping)
    assert found.dropped == {"blank": 2}
    assert found.numbers.tolist() == [2]


def test_the_cache_is_used_and_knows_what_shaped_it(encode, pairs, tmp_path, monkeypatch, toy_lines):
    corpus = corpus_of(pairs, tmp_path)
    first = encode(corpus)
    other = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=400))[0]
    writes: list[int] = []
    real = examples_module._write
    monkeypatch.setattr(examples_module, "_write", lambda *args: (writes.append(1), real(*args))[1])
    assert rows(encode(corpus).src) == rows(first.src)
    assert writes == []
    changes = (
        {"config": FilterConfig(max_len=61, max_ratio=5.0)},
        {"held_out": frozenset()},
        {"tokenizer": other},
        {"corpus": corpus_of(pairs[1:], tmp_path)},
    )
    for number, change in enumerate(changes, start=1):
        encode(**{"corpus": corpus, **change})
        assert len(writes) == number
    next((tmp_path / "cache").glob("*.json")).unlink()  # "may be deleted at any time" holds for each file
    assert encode(corpus).dropped == first.dropped


@pytest.mark.parametrize(
    ("suffix", "size", "zeros"), [("arrow", 0, 0), ("arrow", 100, 0), ("arrow", 900, 2_000), ("json", 0, 0)]
)
def test_a_damaged_cache_is_made_again(encode, pairs, tmp_path, suffix, size, zeros):
    corpus = corpus_of(pairs, tmp_path)
    first = encode(corpus)
    (file,) = (tmp_path / "cache").glob(f"*.{suffix}")
    data = file.read_bytes()
    file.unlink()  # `first` has it mapped
    file.write_bytes(data[:size] + b"\0" * zeros + data[size + zeros :] * bool(zeros))
    again = encode(corpus)
    assert (rows(again.src), rows(again.tgt), again.dropped) == (rows(first.src), rows(first.tgt), first.dropped)


def test_builders_with_one_process_number_do_no_harm(encode, pairs, tmp_path, monkeypatch):
    corpus, real = corpus_of(pairs, tmp_path), examples_module._write
    left = tmp_path / "cache" / ".building-left"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))

    def write(*args) -> None:
        monkeypatch.setattr(examples_module, "_write", real)
        real(*args)
        encode(corpus)  # as another container would, where this process's number is another's

    monkeypatch.setattr(examples_module, "_write", write)
    assert [pairs[i] for i in encode(corpus).numbers] == KEPT
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".arrow", ".json"]


def test_nothing_left_is_a_corpus_error_without_debris(encode, tmp_path):
    corpus = corpus_of([DROPPED["identical"][0], DROPPED["length ratio"][0]], tmp_path)
    with pytest.raises(CorpusError, match=r"no training pair is left .*dropped: 1 identical, 1 length ratio"):
        encode(corpus)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written(encode, pairs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write or read the cache"):
        encode(corpus_of(pairs, tmp_path), cache_dir=tmp_path / "file" / "cache")


def test_a_copy_in_a_script_without_spaces_is_one():
    for text in ("穿蓝色，衬衫的男人站在梯子上擦窗户。", "2019年他去了北京大学学习中文", "「穿蓝色衬衫的男人」"):
        assert is_copy(text, text)
    assert is_copy("the dog and the cat", "the dog and the cat")
    assert not is_copy("北京", "北京") and not is_copy("New York City", "New York City")
