"""Preparation: dev is held out when none is named, never leaks, and the tokenizer sees the whole corpus."""

import dataclasses
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from tiny_run import Notes

from mtattn.config import Config, load_config
from mtattn.corpus import DataConfig
from mtattn.errors import ConfigError, CorpusError, FileError
from mtattn.prepare import Prepared, cache_folder, load_split, prepare
from mtattn.progress import Reporter


@pytest.fixture
def corpus(tmp_path, toy_lines):
    """A folder with 200 training pairs, of which number 5 is also in dev and number 7's target in test."""
    src, tgt = (list(lines[:200]) for lines in toy_lines)
    held = {"dev": ([src[5], "", "a dev line"], [tgt[5], "", "eine Zeile"]), "test": (["a test line"], [tgt[7]])}
    for name, sides in {"train": (src, tgt), **held}.items():
        for code, lines in zip(("en", "de"), sides, strict=True):
            (tmp_path / f"{name}.{code}").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def config_of(folder, *overrides: str) -> Config:
    splits = (f"data.{split}={split}.{{en,de}}" for split in ("train", "dev", "test"))
    return load_config(None, [f"data.folder={folder}", *splits, "tokenizer.vocab_size=400", *overrides])


def sides(data: Prepared) -> set[str]:
    """Every sentence that is trained on."""
    src, tgt = data.texts(np.arange(len(data.examples.tgt)))
    return {*src, *tgt}


def test_dev_and_test_are_never_trained_on_nor_filtered(corpus):
    data = prepare(config_of(corpus), None, Reporter())
    dev, test = (load_split(config_of(corpus).data, split) for split in ("dev", "test"))
    assert data.dev == dev
    assert len(dev.src) == 3  # its blank pair too
    assert not sides(data) & {*dev.src, *dev.tgt, *test.src, *test.tgt}
    assert data.examples.dropped["in dev or test"] >= 2
    assert {path.rsplit("/", 1)[1] for path in data.corpus.files} == {"train.en", "train.de"}


def test_leaks_can_be_allowed(corpus):
    data = prepare(config_of(corpus, "filter.leaked=false"), None, Reporter())
    assert "in dev or test" not in data.examples.dropped
    assert {data.dev.src[0], data.dev.tgt[0]} <= sides(data)


@pytest.mark.parametrize("leaked", ["true", "false"])
def test_a_part_is_held_out_when_no_dev_is_named(corpus, capsys, leaked):
    config = config_of(corpus, "data.dev=[]", "train.hold_out=15", f"filter.leaked={leaked}")
    data = prepare(config, None, Reporter())
    assert "no dev corpus is named: 15 of 200 pairs are held out for validation" in capsys.readouterr().err
    assert len(data.dev.src) == len(data.dev.tgt) == 15
    assert not sides(data) & {*data.dev.src, *data.dev.tgt}
    assert prepare(config, data.tokenizer, Reporter()).dev == data.dev
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=2))
    assert prepare(other, data.tokenizer, Reporter()).dev != data.dev


def test_at_most_a_tenth_is_held_out(corpus):
    assert len(prepare(config_of(corpus, "data.dev=[]"), None, Reporter()).dev.src) == 20


def test_texts_are_those_of_the_examples(corpus):
    data = prepare(config_of(corpus), None, Reporter())
    chosen = np.array([3, 0, 11])
    src, tgt = data.texts(chosen)
    assert data.tokenizer.encode_src(src) == [row.tolist() for row in data.examples.src.rows(chosen)]
    assert data.tokenizer.encode_tgt(tgt) == [row.tolist() for row in data.examples.tgt.rows(chosen)]


def test_the_same_corpus_trains_its_tokenizer_once(corpus, monkeypatch):
    report, again = Notes(), Notes()
    first = prepare(config_of(corpus, "tokenizer.vocab_size=3000"), None, report).tokenizer
    with monkeypatch.context() as patch:
        patch.setattr("mtattn.prepare.train_tokenizer", None)
        second = prepare(config_of(corpus, "tokenizer.vocab_size=3000"), None, again).tokenizer
        assert second.to_files() == first.to_files()
        assert again.said == report.said and any("the corpus holds no more" in said for said in report.said)
        with pytest.raises(TypeError):
            prepare(config_of(corpus), None, Reporter())  # another vocabulary
    for model in (cache_folder() / "tokenizers").rglob("*.model"):
        model.write_bytes(b"damaged")
    third = prepare(config_of(corpus, "tokenizer.vocab_size=3000"), None, Reporter()).tokenizer
    assert third.to_files() == first.to_files()


def test_a_given_tokenizer_is_used(corpus, tokenizer):
    assert prepare(config_of(corpus), tokenizer, Reporter()).tokenizer is tokenizer


@pytest.mark.parametrize("joint", ["true", "false"])
def test_the_tokenizer_samples_the_whole_corpus(tmp_path, joint):
    # Only the last lines have a "z": a sample of the first ones would not know it.
    for code, word in (("en", "buzz"), ("de", "zart")):
        lines = ["ab ba abba"] * 150 + [word] * 50
        (tmp_path / f"train.{code}").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    options = ("data.dev=[]", "data.test=[]", "filter.duplicate=false", "filter.leaked=false", "train.hold_out=1")
    config = config_of(tmp_path, *options, f"tokenizer.joint={joint}", "tokenizer.max_sentences=40")
    data = prepare(config, None, Reporter())
    assert not any(
        piece.startswith("<0x") for piece in data.tokenizer.src_pieces(data.tokenizer.encode_src(["buzz"])[0])
    )


def test_what_was_done_is_said(corpus, capsys):
    prepare(config_of(corpus, "tokenizer.vocab_size=9000"), None, Reporter())
    said = capsys.readouterr().err
    assert "training corpus: 200 pairs" in said
    assert "pieces instead of 9000: the corpus holds no more" in said
    assert "in dev or test)" in said
    assert "3 pairs for validation" in said


def test_a_missing_corpus(tmp_path):
    with pytest.raises(CorpusError, match=r"train\.en"):
        prepare(config_of(tmp_path), None, Reporter())


def test_the_cache_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MTATTN_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("MTATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "mtattn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / ".cache" / "mtattn"
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError))
    with pytest.raises(FileError, match="set MTATTN_CACHE"):
        cache_folder()


def test_load_split_keeps_every_line(corpus):
    assert load_split(DataConfig(folder=str(corpus), dev="dev.{en,de}"), "dev").src[1] == ""


def test_a_dev_pair_beyond_the_learned_positions_is_refused(corpus):
    learned = ('model.position={kind="learned", max_len=40}', "filter.max_len=15")
    with open(corpus / "dev.de", "a", encoding="utf-8") as german, open(corpus / "dev.en", "a") as english:
        german.write("ja " * 60 + "\n")
        english.write("yes\n")
    with pytest.raises(
        ConfigError, match=r"dev pair 4 has \d+ pieces, but learned positions exist up to .* = 40; raise"
    ):
        prepare(config_of(corpus, *learned), None, Reporter())
    assert prepare(config_of(corpus, 'model.position={kind="rotary"}'), None, Reporter()).dev.src[3] == "yes"
