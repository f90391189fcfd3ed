"""Corpora: every format gives the same pairs, and no line is lost, shifted or changed."""

import csv
import errno
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mtattn import corpus as corpus_module
from mtattn import hub
from mtattn.corpus import DataConfig, LoadedCorpus, load_corpus, read_tables
from mtattn.errors import ConfigError, CorpusError, FileError
from mtattn.readers import READERS
from mtattn.sources import SUFFIXES, Corpus, CorpusSource, bundled_data_folder

Pairs = list[tuple[str, str]]
PAIRS: Pairs = [
    ("A dog.", "Ein Hund."),
    ('"Two", he said.', "„Zwei“, sagte er."),
    ("नमस्ते", "hallo"),
    ("😀 x", "\u0301y"),
]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LoadedCorpus]:
    """Loads a corpus whose relative paths lie in tmp_path."""

    def call(corpus: Corpus, *, keep_all: bool = False, **options: str) -> LoadedCorpus:
        data = DataConfig(**{"folder": str(tmp_path), **options})
        return load_corpus(corpus, data, cache_dir=tmp_path / "cache", keep_all=keep_all)

    return call


def pairs_of(loaded: LoadedCorpus) -> Pairs:
    return list(zip(loaded.dataset["src"], loaded.dataset["tgt"], strict=True))


def write_text(folder: Path, pairs: Pairs) -> str:
    for side, code in enumerate(("en", "de")):
        (folder / f"x.{code}").write_bytes("".join(pair[side] + "\n" for pair in pairs).encode())
    return "x.{en,de}"


def write_tsv(folder: Path, pairs: Pairs) -> str:
    (folder / "x.tsv").write_bytes("".join(f"{src}\t{tgt}\n" for src, tgt in pairs).encode())
    return "x.tsv"


def write_csv(folder: Path, pairs: Pairs) -> str:
    with (folder / "x.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("en", "de"), *pairs])
    return "x.csv"


def write_jsonl(folder: Path, pairs: Pairs) -> str:
    (folder / "x.jsonl").write_text("".join(json.dumps({"en": s, "de": t}) + "\n" for s, t in pairs), encoding="utf-8")
    return "x.jsonl"


def write_parquet(folder: Path, pairs: Pairs) -> str:
    pq.write_table(arrow_table(pairs), folder / "x.parquet")
    return "x.parquet"


def write_saved(folder: Path, pairs: Pairs) -> str:
    datasets.Dataset(arrow_table(pairs)).save_to_disk(str(folder / "saved"))
    return "saved"


def write_hub(folder: Path, pairs: Pairs) -> str:
    (folder / "repo").mkdir()
    write_parquet(folder / "repo", pairs)
    (folder / "repo" / "x.parquet").rename(folder / "repo" / "train.parquet")
    return "hf:./repo@train"


def write_tmx(folder: Path, pairs: Pairs) -> str:
    from xml.sax.saxutils import escape

    units = "".join(
        f'<tu><tuv xml:lang="de"><seg>{escape(t)}</seg></tuv><tuv xml:lang="en-US"><seg>{escape(s)}</seg></tuv></tu>\n'
        for s, t in pairs
    )
    tmx(folder, units)
    return "x.tmx"


def tmx(folder: Path, body: str, doctype: str = '<!DOCTYPE tmx SYSTEM "tmx14.dtd">') -> None:
    document = f'<?xml version="1.0"?>{doctype}<tmx version="1.4"><header/><body>{body}</body></tmx>'
    (folder / "x.tmx").write_text(document, encoding="utf-8")


def arrow_table(pairs: Pairs) -> pa.Table:
    return pa.table({"id": range(len(pairs)), "de": [t for _, t in pairs], "en": [s for s, _ in pairs]})


WRITERS = {
    "text": write_text,
    "tsv": write_tsv,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "tmx": write_tmx,
    "saved": write_saved,
    "hub": write_hub,
}

# Formats


@pytest.mark.parametrize("format", READERS)
def test_every_format_gives_the_same_pairs(format, tmp_path, load):
    loaded = load(WRITERS[format](tmp_path, PAIRS))
    assert pairs_of(loaded) == PAIRS
    assert loaded.dataset.column_names == ["src", "tgt"]
    assert loaded.dataset.features["src"] == loaded.dataset.features["tgt"] == datasets.Value("string")
    assert loaded.dropped == {}
    assert loaded.files and all(len(digest) == 64 for digest in loaded.files.values())


@pytest.mark.parametrize("format", READERS)
def test_every_format_drops_blank_pairs_and_keeps_them_for_a_test_set(format, tmp_path, load):
    pairs = [("", "b"), ("a", "b"), (" ", ""), ("c", "\u3000"), ("d", "e")]
    path = WRITERS[format](tmp_path, pairs)
    train = load(path)
    assert pairs_of(train) == [("a", "b"), ("d", "e")]
    assert train.dropped == {"blank": 3}
    test = load(path, keep_all=True)
    assert [(src.strip(), tgt.strip()) for src, tgt in pairs_of(test)] == [(s.strip(), t.strip()) for s, t in pairs]
    assert test.dropped == {}


@pytest.mark.parametrize("format", READERS)
def test_every_format_takes_a_long_text(format, tmp_path, load):
    pairs = [("a, " * 50_000 + "a", "b")]
    assert pairs_of(load(WRITERS[format](tmp_path, pairs))) == pairs


@pytest.mark.parametrize("format", READERS)
def test_languages_decide_the_direction(format, tmp_path, load):
    path = WRITERS[format](tmp_path, PAIRS)
    columns = (1, 0) if format == "tsv" else None  # without a header, the order of the cells decides
    reverse = load(CorpusSource(path, columns=columns), src="de", tgt="en")
    assert pairs_of(reverse) == [(tgt, src) for src, tgt in PAIRS]


@pytest.mark.parametrize("name", ["text", "tsv", "csv", "jsonl", "tmx"])
def test_text_formats_may_be_gzipped(name, tmp_path, load):
    path = WRITERS[name](tmp_path, PAIRS)
    for file in tmp_path.glob("x.*"):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert pairs_of(load(path + ".gz")) == PAIRS


def test_every_suffix_names_a_format():
    assert set(SUFFIXES.values()) | {"text", "saved", "hub"} == set(READERS)


@pytest.mark.parametrize("path", ["x.{en,de}", "x.{de,en}"])
def test_brace_pair_is_taken_by_code_in_either_order(path, tmp_path, load):
    write_text(tmp_path, PAIRS)
    assert pairs_of(load(path)) == PAIRS


def test_brace_pair_of_other_names_is_source_then_target(tmp_path, load):
    (tmp_path / "b.txt").write_text("source\n")
    (tmp_path / "a.txt").write_text("target\n")
    assert pairs_of(load("{b,a}.txt")) == [("source", "target")]


def test_several_sources_are_joined_in_order(tmp_path, load):
    (tmp_path / "y.tsv").write_text("7\tsieben\n")
    write_jsonl(tmp_path, PAIRS)
    assert pairs_of(load([CorpusSource("y.tsv"), "x.jsonl", "y.tsv"])) == [("7", "sieben"), *PAIRS, ("7", "sieben")]


TABLE_CASES = [  # file, content, columns, pairs
    ("x.tsv", '"a\tb"\n', None, [('"a', 'b"')]),
    ("x.tsv", "1\ta\tb\n", (1, 2), [("a", "b")]),
    ("x.tsv", "de\ten\nb\ta\n", None, [("a", "b")]),
    ("x.tsv", "id\tEnglish\tGerman\n1\ta\tb\n", ("English", "German"), [("a", "b")]),
    ("x.csv", 'a,b\n"x, ""y""\nz",c\n', None, [("a", "b"), ('x, "y"\nz', "c")]),
    ("x.csv", "b,a,1\n", (1, 0), [("a", "b")]),
    ("x.tsv", "id\ten\tde\n1\ta\tb\n", (1, 2), [("a", "b")]),
    ("x.csv", "n,tgt,src\n1,b,a\n", None, [("a", "b")]),
    ("x.csv", "n,from,to\n1,a,b\n", ("from", "to"), [("a", "b")]),
    ("x.csv", "n,from,to\n1,a,b\n", ("to", 1), [("b", "a")]),
    ("x.jsonl", '{"src": "a", "tgt": "b"}\n{"de": "d", "en": "c", "id": 1}', None, [("a", "b"), ("c", "d")]),
    ("x.jsonl", '{"translation": {"en": "a", "de": "b"}}\n', None, [("a", "b")]),
    ("x.jsonl", '{"q": "a", "r": "b", "en": "c", "de": "d"}\n', ("q", "r"), [("a", "b")]),
    ("x.jsonl", '{"en": "a\\u2028b\\nc", "de": "d"}\n', None, [("a\u2028b\nc", "d")]),
]


@pytest.mark.parametrize(("name", "content", "columns", "expected"), TABLE_CASES)
def test_columns_and_headers(name, content, columns, expected, tmp_path, load):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert pairs_of(load(CorpusSource(name, columns=columns))) == expected


@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_columns_of_any_text_type(text_type, tmp_path, load):
    table = pa.table({"tgt": pa.array(["b", "d"]).cast(text_type), "src": pa.array(["a", "c"]).cast(text_type)})
    pq.write_table(table, tmp_path / "x.parquet")
    assert pairs_of(load("x.parquet")) == [("a", "b"), ("c", "d")]


def test_translation_structs_with_nulls_in_parquet(tmp_path, load):
    rows = [{"en": "a", "de": "b", "fr": "c"}, None, {"en": "d", "de": None, "fr": "e"}]
    pq.write_table(pa.table({"translation": rows}), tmp_path / "x.parquet")
    assert pairs_of(load("x.parquet", keep_all=True)) == [("a", "b"), ("", ""), ("d", "")]
    assert load("x.parquet").dropped == {"blank": 2}


def test_saved_dataset_keeps_its_own_order_and_selection(tmp_path, load):
    table = datasets.Dataset(arrow_table(PAIRS)).select([3, 0])
    table.save_to_disk(str(tmp_path / "saved"))
    assert pairs_of(load("saved")) == [PAIRS[3], PAIRS[0]]


def test_split_of_a_saved_dataset_dict(tmp_path, load):
    datasets.DatasetDict(dev=datasets.Dataset(arrow_table(PAIRS))).save_to_disk(str(tmp_path / "both"))
    assert pairs_of(load("both/dev")) == PAIRS
    with pytest.raises(CorpusError, match=r"several splits; name one of .*both/dev"):
        load("both")


def test_hub_folder_of_json_with_translations(tmp_path, load):
    (tmp_path / "repo").mkdir()
    records = [json.dumps({"translation": {"en": src, "de": tgt}}) for src, tgt in PAIRS]
    (tmp_path / "repo" / "validation.jsonl").write_text("\n".join(records), encoding="utf-8")
    assert pairs_of(load("hf:./repo@validation")) == PAIRS


def test_hub_folder_prints_nothing(tmp_path, load, capfd):
    load(write_hub(tmp_path, PAIRS))
    assert capfd.readouterr() == ("", "")


def test_bundled_data_is_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "package" / "bundled" / "data" / "toy").mkdir(parents=True)
    (tmp_path / "package" / "bundled" / "data" / "toy" / "x.tsv").write_text("a\tb\n")
    monkeypatch.setattr("mtattn.sources.__file__", str(tmp_path / "package" / "sources.py"))
    monkeypatch.chdir(tmp_path / "package")
    for path, folder in [("x.tsv", "bundled:toy"), ("bundled:toy/x.tsv", ""), ("bundled:toy/x.tsv", "elsewhere")]:
        loaded = load_corpus(path, DataConfig(folder=folder), cache_dir=tmp_path / "cache")
        assert pairs_of(loaded) == [("a", "b")]


def test_bundled_data_is_found_in_a_checkout_or_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("mtattn.sources.__file__", str(tmp_path / "package" / "sources.py"))
    with pytest.raises(FileError, match="bundled data is missing"):
        bundled_data_folder()
    (tmp_path / "data").mkdir()
    assert bundled_data_folder() == tmp_path / "data"


# Lines


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\v", "\f", "\0", "\x1c", "\r", "\ufeff"])
@pytest.mark.parametrize("format", ["text", "tsv", "csv", "jsonl"])
def test_only_newline_ends_a_line(format, odd, tmp_path, load):
    pairs = [(f"a{odd}b", f"c{odd}{odd}d"), ("e", "f")]
    assert pairs_of(load(WRITERS[format](tmp_path, pairs))) == pairs


LINE_CASES = [  # bytes of a file, lines
    (b"a\nb\n", ["a", "b"]),
    (b"a\nb", ["a", "b"]),
    (b"a\r\nb\r\n", ["a", "b"]),
    (b"a\r\r\nb\r", ["a\r", "b\r"]),
    (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
    (b"\n\na\n", ["", "", "a"]),
    (b"a\n\n", ["a", ""]),
    (b"\xef\xbb\xbf\na", ["", "a"]),
]


@pytest.mark.parametrize(("content", "expected"), LINE_CASES)
def test_line_ends_and_byte_order_mark(content, expected, tmp_path, load):
    (tmp_path / "x.en").write_bytes(content)
    (tmp_path / "x.de").write_bytes(content)
    assert pairs_of(load("x.{en,de}", keep_all=True)) == [(line, line) for line in expected]


LINE = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])).map(lambda text: text.rstrip("\r"))
UNTABBED = LINE.map(lambda text: text.replace("\t", " "))


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(LINE, LINE), min_size=1), crlf=st.booleans(), last_newline=st.booleans())
def test_text_files_come_back_exactly(tmp_path_factory, pairs, crlf, last_newline):
    folder = tmp_path_factory.mktemp("case")
    pairs = [(src.removeprefix("\ufeff"), tgt.removeprefix("\ufeff")) for src, tgt in pairs]
    end = "\r\n" if crlf else "\n"
    for side, code in enumerate(("en", "de")):
        content = "".join(pair[side] + end for pair in pairs)
        if not last_newline and pairs[-1][0] and pairs[-1][1]:  # an empty last line needs its newline to exist
            content = content.removesuffix(end)
        (folder / f"x.{code}").write_bytes(content.encode())
    data = DataConfig(folder=str(folder))
    everything = load_corpus("x.{en,de}", data, cache_dir=folder / "cache", keep_all=True)
    assert pairs_of(everything) == pairs
    kept = [pair for pair in pairs if pair[0].strip() and pair[1].strip()]
    if kept:
        train = load_corpus("x.{en,de}", data, cache_dir=folder / "cache")
        assert pairs_of(train) == kept
        assert train.dropped.get("blank", 0) == len(pairs) - len(kept)


@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(UNTABBED, UNTABBED), min_size=1))
def test_readers_agree(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("case")
    pairs = [("first", "erste"), *pairs]  # a header or a byte order mark is not the subject here
    for format in ("text", "tsv", "csv", "jsonl", "parquet"):
        path = WRITERS[format](folder, pairs)
        loaded = load_corpus(path, DataConfig(folder=str(folder)), cache_dir=folder / "cache", keep_all=True)
        assert pairs_of(loaded) == pairs, format


# Broken input


def test_invalid_utf8_names_file_and_line(tmp_path, load):
    (tmp_path / "x.en").write_bytes(b"one\ntwo\n")
    (tmp_path / "x.de").write_bytes(b"eins\nzw\xe4i\n")
    with pytest.raises(CorpusError, match=r"x\.de:2: not valid UTF-8 \(byte 0xE4 after 2 characters\)"):
        load("x.{en,de}")
    (tmp_path / "x.en").write_bytes(b"one\n\xff\n")
    with pytest.raises(CorpusError, match=r"x\.en:2: not valid UTF-8"):
        load("x.{en,de}")


@pytest.mark.parametrize("format", ["text", "tsv", "csv", "jsonl", "parquet"])
def test_invalid_utf8_can_be_skipped_in_training_but_never_in_a_test_set(format, tmp_path, load):
    path = WRITERS[format](tmp_path, [("a", "b"), ("zwQi", "c"), ("d", "zwQi"), ("e", "f")])
    for file in tmp_path.glob("x.*"):
        file.write_bytes(file.read_bytes().replace(b"zwQi", b"zw\xe4i"))
    loaded = load(path, errors="skip")
    assert pairs_of(loaded) == [("a", "b"), ("e", "f")]
    assert loaded.dropped == {"invalid utf-8": 2}
    for options in ({"errors": "strict"}, {"errors": "skip", "keep_all": True}):
        with pytest.raises(CorpusError, match="not valid UTF-8"):
            load(path, **options)


def test_lone_surrogate_in_json_is_invalid(tmp_path, load):
    (tmp_path / "x.jsonl").write_text('{"en": "a\\ud800", "de": "b"}\n')
    with pytest.raises(CorpusError, match=r"x\.jsonl:1: not valid UTF-8 \(lone surrogate U\+D800"):
        load("x.jsonl")


@pytest.mark.parametrize(("num_src", "num_tgt"), [(2, 5), (5, 2), (0, 1), (1, 0)])
def test_unequal_line_counts_name_both(num_src, num_tgt, tmp_path, load):
    (tmp_path / "x.en").write_text("a\n" * num_src)
    (tmp_path / "x.de").write_text("b\n" * num_tgt)
    with pytest.raises(CorpusError) as caught:
        load("x.{en,de}", keep_all=True)
    assert f"x.en has {num_src} lines" in str(caught.value) or f"x.en has {num_src}:" in str(caught.value)
    assert f"x.de has {num_tgt} lines" in str(caught.value) or f"x.de has {num_tgt}:" in str(caught.value)
    assert caught.value.exit_code == 7


BROKEN = [  # file, content, message
    ("x.tsv", b"a\tb\nonly one\n", r"x\.tsv:2: 1 column"),
    ("x.tsv", b"", "no pairs; it is empty"),
    ("x.tsv", b"\xef\xbb\xbf", "no pairs; it is empty"),
    ("x.tsv", b" \tb\n\n", r"no pairs are left \(dropped: 2 blank\)"),
    ("x.csv", b'a,b\n"c,d\n', r"x\.csv:2: not CSV"),
    ("x.csv", b'a,b\n"c,d\ne,f\n', r"x\.csv:2: not CSV"),
    ("x.csv", b"a,b\nc\n", r"x\.csv:2: 1 column"),
    ("x.jsonl", b'{"en": "a", "de": "b"}\n{"en": \n', r"x\.jsonl:2: not JSON"),
    ("x.jsonl", b"[" * 100_000 + b"\n", r"x\.jsonl:1: not JSON"),
    ("x.jsonl", b'["a", "b"]\n', r"x\.jsonl:1: a JSON list"),
    ("x.jsonl", b'{"en": "a", "de": 3}\n', r'x\.jsonl:1: "de" is a int'),
    ("x.jsonl", b'{"en": "a", "fr": "b"}\n', r"x\.jsonl:1: no columns 'en' and 'de'; there are \"en\", \"fr\""),
    ("x.jsonl", b'{"translation": {"en": "a", "fr": "b"}}\n', r"there are \"en\", \"fr\""),
    ("x.parquet", b"PAR1 no PAR1", r"x\.parquet: cannot read as Parquet"),
    ("x.tsv.gz", b"not gzip", r"x\.tsv\.gz: damaged or incomplete gzip"),
    ("x.tsv.gz", gzip.compress(b"a\tb\n" * 99, mtime=0)[:-9], r"x\.tsv\.gz: damaged or incomplete gzip"),
    ("x.tsv.gz", gzip.compress(b"a\tb\n", mtime=0)[:12] + b"\xff" * 20, r"x\.tsv\.gz: damaged or incomplete gzip"),
    ("x.tmx", b"<tmx><body><tu>", r"x\.tmx:1: not well-formed"),
    ("x.tmx", b"", r"x\.tmx:1: not well-formed"),
    ("x.tmx", b'<?xml version="1.0" encoding="Shift_JIS"?><tmx/>', r"x\.tmx:1: its encoding .*multi-byte.* as UTF-8"),
    (
        "x.tmx",
        b'<?xml version="1.0" encoding="Klingon"?><tmx/>',
        r"x\.tmx:1: its encoding .*Klingon.*; save it as UTF-8",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_file_gives_one_clear_message(name, content, message, tmp_path, load):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())  # nothing half-made stays behind


def test_text_compressed_otherwise_than_by_gzip_is_refused(tmp_path, load):
    for name in ("x.en.xz", "x.de.xz"):
        (tmp_path / name).write_bytes(b"\xfd7zXZ\n")
    with pytest.raises(
        CorpusError, match=r"x\.en\.xz: is compressed in a way that is not read here; decompress it, or"
    ):
        load("x.{en,de}.xz")


def test_a_target_beside_a_format_of_one_file_is_not_ignored(load):
    with pytest.raises(ConfigError, match=r"a\.tsv: target names the second of two text files, and format is 'tsv'"):
        load(CorpusSource("a.tsv", target="b.tsv", format="tsv"))


def test_missing_columns_say_which_exist(tmp_path, load):
    write_csv(tmp_path, PAIRS)
    with pytest.raises(CorpusError, match=r"x\.csv:1: no columns 'fr'; there are \"en\", \"de\""):
        load(CorpusSource("x.csv", columns=("en", "fr")))
    for format in ("parquet", "saved", "hub"):
        with pytest.raises(CorpusError, match=r"no columns 'en' and 'fr'; there are \"id\", \"de\", \"en\""):
            load(WRITERS[format](tmp_path, PAIRS), tgt="fr")


def test_parquet_column_that_is_no_text(tmp_path, load):
    pq.write_table(pa.table({"en": ["a"], "de": [1]}), tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match="found type int64, but both must be text"):
        load("x.parquet")


MISSING = [  # path, message
    ("train.{en,de}", r"train\.en: no such file; did you mean .*train\.en\.gz\?"),
    ("zzzz.tsv", r"zzzz\.tsv: no such file in "),
    ("nowhere/a.tsv", r"nor is there a folder .*nowhere"),
    ("folder.tsv", "is a folder, not a file"),
    ("trian", r"no such file"),
    ("hf:./nowhere@train", "nowhere: no such file"),
    ("folder.tsv/saved", "no such file"),
]


@pytest.mark.parametrize(("path", "message"), MISSING)
def test_missing_file_is_named_with_the_nearest(path, message, tmp_path, load):
    (tmp_path / "train.en.gz").touch()
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(CorpusError, match=message):
        load(path)


def test_a_pipe_is_refused_as_it_gives_its_content_once(load):
    reading, writing = os.pipe()
    os.write(writing, b"a\tb\n")
    os.close(writing)
    with pytest.raises(CorpusError, match=rf"/dev/fd/{reading}: is not a regular file; .* write it to a file first"):
        load(CorpusSource(f"/dev/fd/{reading}", format="tsv"))
    os.close(reading)


CONFUSED = [  # source, message
    (CorpusSource("x.txt"), r"does not show the format.*train\.\{en,de\}"),
    (CorpusSource("x.txt", format="text"), "one pair of braces"),
    (CorpusSource("{a,b}.{en,de}"), "one pair of braces"),
    (CorpusSource("x.{en,de}", columns=(0, 1)), "two text files have no columns"),
    (CorpusSource("x.jsonl", columns=(0, 1)), "by name, not by number"),
]


@pytest.mark.parametrize(("source", "message"), CONFUSED)
def test_source_that_cannot_be_is_a_config_error(source, message, tmp_path, load):
    (tmp_path / "x.txt").touch()
    with pytest.raises(ConfigError, match=message):
        load(source)


@pytest.mark.parametrize("nothing", [(), "", [""]])
def test_no_corpus_is_a_config_error(nothing, load):
    with pytest.raises(ConfigError, match="no corpus is named"):
        load(nothing)


def test_unreadable_cache_folder_is_a_file_error(tmp_path):
    write_tsv(tmp_path, PAIRS)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(FileError, match="cache"):
        load_corpus("x.tsv", DataConfig(folder=str(tmp_path)), cache_dir=tmp_path / "cache")


# Translation memories


def test_tmx_markup_layout_and_language_variants(tmp_path, load):
    tmx(
        tmp_path,
        '<tu><tuv xml:lang="EN-gb"><seg>colour</seg></tuv><tuv lang="de"><seg>Farbe</seg></tuv>'
        '<tuv xml:lang="en"><seg>a <bpt i="1">&lt;b&gt;<sub>not this</sub></bpt><hi>bold</hi>\n   word &amp; more</seg>'
        '</tuv><tuv xml:lang="fr"><seg>x</seg></tuv></tu>'
        '<tu><tuv xml:lang="en_US"><seg>&#x41;</seg></tuv><tuv xml:lang="de-AT"><seg>B</seg></tuv></tu>',
    )
    assert pairs_of(load("x.tmx")) == [("a bold word & more", "Farbe"), ("A", "B")]


def test_tmx_spaces_that_are_no_layout_stay(tmp_path, load):
    tmx(
        tmp_path,
        '<tu><tuv xml:lang="en"><seg>\t\u3000x\r\n y\xa0</seg></tuv>'
        '<tuv xml:lang="de"><seg> a\u202f: b </seg></tuv></tu>',
    )
    assert pairs_of(load("x.tmx")) == [("\u3000x y\xa0", "a\u202f: b")]


def test_tmx_columns_are_language_codes(tmp_path, load):
    tmx(tmp_path, '<tu><tuv xml:lang="fr"><seg>a</seg></tuv><tuv xml:lang="en"><seg>b</seg></tuv></tu>')
    assert pairs_of(load(CorpusSource("x.tmx", columns=("fr", "en")))) == [("a", "b")]


LAUGHS = '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
HOSTILE = [  # document type, segment, message
    (LAUGHS, "&b;", "document type declares"),
    ('<!DOCTYPE tmx [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "&a;", "document type declares"),
    ('<!DOCTYPE tmx [<!ENTITY % a SYSTEM "http://localhost/x"> %a;]>', "x", "document type declares"),
    ('<!DOCTYPE tmx SYSTEM "tmx14.dtd">', "&nbsp;", "entity &nbsp; is refused"),
    ("", "&nbsp;", "undefined entity"),
]


@pytest.mark.parametrize(("doctype", "segment", "message"), HOSTILE)
def test_tmx_entities_are_refused(doctype, segment, message, tmp_path, load):
    unit = f'<tu><tuv xml:lang="en"><seg>{segment}</seg></tuv><tuv xml:lang="de"><seg>b</seg></tuv></tu>'
    tmx(tmp_path, unit, doctype)
    with pytest.raises(CorpusError, match=rf"x\.tmx:1: .*{message}"):
        load("x.tmx")


def test_tmx_unit_without_a_language_is_named(tmp_path, load):
    tmx(tmp_path, '\n<tu><tuv xml:lang="en"><seg>a</seg></tuv><tuv xml:lang="fr"><seg>b</seg></tuv></tu>')
    with pytest.raises(CorpusError, match=r'x\.tmx:2: the unit has no "de" variant; it has en, fr'):
        load("x.tmx")


# The hub


def test_offline_hub_says_what_to_do(load, monkeypatch):
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", no_network)
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: pytest.fail("retries would take minutes"))
    with pytest.raises(CorpusError, match=r"cannot reach the Hugging Face hub .*HF_HUB_OFFLINE=1.*hf:\./FOLDER@train"):
        load("hf:owner/name:config@train")


def test_hub_name_has_its_parts(load):
    assert hub.parse_hub_name("hf:owner/name:en-de@train") == ("owner/name", "en-de", "train")
    assert str(hub.parse_hub_name("hf:owner/name@dev")) == "hf:owner/name@dev"
    for text in ("hf:owner/name", "hf:@train", "hf:owner/name@"):
        with pytest.raises(CorpusError, match="written hf:owner/name@split"):
            load(text)


def test_hub_refuses_other_builders_and_unknown_splits(tmp_path, load):
    path = write_hub(tmp_path, PAIRS)
    with pytest.raises(CorpusError, match=r'cannot load .*Unknown split "dev"'):
        load(path.replace("@train", "@dev"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "train.txt").write_text("a\n")
    with pytest.raises(CorpusError, match="only Parquet and JSON"):
        load("hf:./pictures@train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="cannot open"):
        load("hf:./empty@train")


def test_what_datasets_says_in_paragraphs_is_one_line(tmp_path, load):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "one.jsonl").write_text('{"en": "a", "de": "b"}\n')
    (tmp_path / "mixed" / "two.jsonl").write_text('{"en": "a", "fr": "b"}\n')
    with pytest.raises(CorpusError, match=r"cannot load .*column names") as caught:
        load("hf:./mixed@train")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_no_fault_of_the_corpus(tmp_path, load, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = write_hub(tmp_path, PAIRS)
    monkeypatch.setattr("datasets.DatasetBuilder.download_and_prepare", full)
    with pytest.raises(FileError, match="cannot load: No space left"):
        load(path)


# The cache


def test_second_call_opens_the_arrow_file_and_reads_nothing(tmp_path, load, monkeypatch):
    path = write_tsv(tmp_path, [*PAIRS, ("", "blank")])
    first = load(path)
    monkeypatch.setattr(corpus_module, "build_cache", lambda *_, **__: pytest.fail("built again"))
    second = load(path)
    assert pairs_of(second) == pairs_of(first)
    assert (second.dropped, second.files) == (first.dropped, first.files)
    assert second.dataset._fingerprint == first.dataset._fingerprint
    assert second.dataset.cache_files[0]["filename"].startswith(str(tmp_path / "cache"))


def test_changed_file_or_option_is_noticed(tmp_path, load):
    path = write_tsv(tmp_path, PAIRS)
    before = load(path)
    (tmp_path / "x.tsv").write_text("new\tneu\n")
    after = load(path)
    assert pairs_of(after) == [("new", "neu")]
    assert before.files != after.files
    assert pairs_of(before) == PAIRS  # its own Arrow file is still there
    assert pairs_of(load(CorpusSource(path, columns=(1, 0)))) == [("neu", "new")]


def test_two_builders_at_once_do_no_harm(tmp_path, load):
    path = write_tsv(tmp_path, PAIRS * 3000)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: pairs_of(load(path)), range(4)))
    assert results == [PAIRS * 3000] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "en,de\nI saw it, then left.,Ich sah es und ging.\n"),
        ("x.csv", "a,b\nc,d,e\n"),
        ("x.tsv", "\na\tb\nc\td\te\n"),
    ],
)
def test_a_row_longer_than_the_first_is_refused(name, text, tmp_path, load):
    (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match=rf"{name}:\d: 3 columns, but the first row has 2; in CSV quote"):
        load(name)


def test_separators_at_the_end_of_a_row_do_no_harm(tmp_path, load):
    (tmp_path / "x.csv").write_text("en,de\na,b,\nc,d,,\n")
    assert pairs_of(load("x.csv")) == [("a", "b"), ("c", "d")]
    (tmp_path / "x.csv").write_text("en,de,\nI saw it, then left.,Ich ging.\n")
    with pytest.raises(CorpusError, match="in CSV quote a cell"):
        load("x.csv")


def test_columns_that_are_given_may_have_anything_behind_them(tmp_path, load):
    (tmp_path / "x.tsv").write_text("a\tb\nc\td\ta remark\n")
    assert pairs_of(load(CorpusSource("x.tsv", columns=(0, 1)))) == [("a", "b"), ("c", "d")]


def test_what_a_killed_process_left_goes_after_a_day_without_a_write(tmp_path, load):
    for name, folder_hours, file_hours in (("left", 30, 25), ("slow", 30, 1), ("young", 1, 1)):
        folder = tmp_path / "cache" / f".building-{name}"
        folder.mkdir(parents=True)
        for path, hours in ((folder / "pairs.arrow", file_hours), (folder, folder_hours)):
            path.touch()
            os.utime(path, (time.time() - 3600 * hours,) * 2)
    load(write_tsv(tmp_path, PAIRS))
    assert {path.name for path in (tmp_path / "cache").glob(".*")} == {".building-slow", ".building-young"}


def zeroed(data: bytes) -> bytes:
    """As a power cut leaves it: the length is right, the second half was never written."""
    return data[: len(data) // 2].ljust(len(data), b"\0")


@pytest.mark.parametrize("damage", [None, lambda data: b"", lambda data: data[: len(data) // 2], zeroed])
@pytest.mark.parametrize("name", ["pairs.json", "pairs.arrow"])
def test_a_damaged_cache_is_made_again(name, damage, tmp_path, load, monkeypatch):
    monkeypatch.setattr(corpus_module, "ROWS_PER_WRITE", 1)
    path = write_tsv(tmp_path, PAIRS)
    load(path)
    (cached,) = (tmp_path / "cache").iterdir()
    data = (cached / name).read_bytes()
    (cached / name).unlink()
    if damage:
        (cached / name).write_bytes(damage(data))
    assert pairs_of(load(path)) == PAIRS


def test_batches_keep_the_order_across_writes(tmp_path, load, monkeypatch):
    monkeypatch.setattr(corpus_module, "ROWS_PER_WRITE", 3)
    pairs = [(f"a{n}", f"b{n}") for n in range(10)]
    assert pairs_of(load(write_text(tmp_path, pairs))) == pairs


# The configuration


def test_data_section_is_validated():
    adapter = TypeAdapter(DataConfig)
    data = adapter.validate_python(
        {"train": ["a.tsv", {"path": "b.csv", "columns": ["x", 2]}], "dev": {"path": "c.jsonl"}, "test": "d.tmx"}
    )
    assert data.train == ("a.tsv", CorpusSource("b.csv", columns=("x", 2)))
    assert data.dev == CorpusSource("c.jsonl")
    assert data.test == "d.tmx"
    for wrong in ({"sorce": "en"}, {"train": {"path": "a", "colums": [0, 1]}}, {"errors": "ignore"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    for wrong in ({"path": ""}, {"path": "a", "columns": [-1, 0]}, {"path": "a", "format": "xml"}):
        with pytest.raises(ValidationError):
            adapter.validate_python({"train": wrong})


def test_importing_the_options_is_light():
    code = "import sys, mtattn.corpus; print(sorted({'datasets', 'pyarrow', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_tables_hold_every_row_in_order_whatever_the_dataset_is_made_of(tmp_path):
    rows = [str(number) for number in range(25_000)]
    for side in ("en", "de"):
        (tmp_path / f"t.{side}").write_text("".join(f"{row}\n" for row in rows))
    whole = load_corpus("t.{en,de}", DataConfig(folder=str(tmp_path)), cache_dir=tmp_path / "cache").dataset
    made_of = {
        "a file": whole,
        "two files": datasets.concatenate_datasets([whole, whole]),
        "part of a file": whole.select(range(5, 12_000)),
        "chosen rows": whole.select([7, 3, 24_999]),
        "memory": datasets.Dataset.from_dict({"src": rows[:30], "tgt": rows[:30]}),
    }
    for name, dataset in made_of.items():
        tables = list(read_tables(dataset, 4_000))
        assert [text for table in tables for text in table["src"].to_pylist()] == dataset[:]["src"], name
        assert max(table.num_rows for table in tables) <= 14_000
