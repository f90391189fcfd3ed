"""Comparing a copy with its model: what counts as different, and what becomes of a copy that is."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from mtattn.config import Config, load_config
from mtattn.corpus import DataConfig
from mtattn.decode import DecodeConfig
from mtattn.errors import ConfigError, FileError, ModelError
from mtattn.export import EXPORTERS, RECORD, capabilities, export_model
from mtattn.export.exporter import Trained, extra
from mtattn.export.huggingface import write
from mtattn.export.parity import EXACT, Native, Parity, compare, require_parity
from mtattn.model import ModelConfig, PositionConfig
from mtattn.progress import Reporter
from mtattn.tokenizer import TokenizerConfig, train_tokenizer

GREEDY = DecodeConfig(beam_size=1)


class Scripted:
    """An engine that answers from a list."""

    def __init__(self, log_probs, translations):
        self.log_probs, self.translations = log_probs, translations

    def score(self, src, tgt):
        return self.log_probs

    def translate(self, src, config):
        return self.translations


def test_compare_counts_tokens_and_sentences():
    ours = Scripted([[-1.0, -2.0], [-3.0]], [[5], [6]])
    theirs = Scripted([[-1.0, -2.5], [-3.1]], [[5], [7]])
    parity = compare(ours, theirs, [[4, 2], [4, 2]], [[5, 2], [2]], GREEDY)
    assert parity.max_difference == pytest.approx(0.5)
    assert parity.mean_difference == pytest.approx(0.2)
    assert (parity.equal_translations, parity.num_sentences, parity.num_tokens) == (0.5, 2, 3)


def test_without_references_the_native_translations_are_scored(model, tokenizer):
    src = tokenizer.encode_src(["a dog", "the cat sleeps"])
    native = Native(model, tokenizer)
    parity = compare(native, native, src, None, GREEDY)
    assert parity.max_difference == 0
    assert parity.num_tokens == sum(len(ids) + 1 for ids in native.translate(src, GREEDY))


def test_native_scores_are_those_of_the_search(model, tokenizer):
    src = tokenizer.encode_src(["a dog", "the cat sleeps on the sofa"])
    native = Native(model, tokenizer)
    ids = native.translate(src, GREEDY)
    together = native.score(src, [[*row, 2] for row in ids])
    alone = [native.score([row], [[*best, 2]])[0] for row, best in zip(src, ids, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize(
    "parity",
    [
        Parity(2e-4, 0.0, 1.0, 1, 1),
        Parity(1e-5, 2e-5, 1.0, 1, 1),
        Parity(0.0, 0.0, 0.9, 1, 1),
        Parity(math.nan, 0.0, 1.0, 1, 1),
    ],
)
def test_each_limit_refuses(parity):
    with pytest.raises(ModelError, match="does not compute what the model does"):
        require_parity(parity, EXACT)


def test_what_is_within_the_limits_passes():
    require_parity(Parity(1e-4, 1e-5, 0.99, 1, 1), EXACT)


def test_a_copy_that_differs_is_not_kept(released, tmp_path, monkeypatch):
    lines = tmp_path / "lines.en"
    lines.write_text("a dog\nthe cat sleeps\n")

    def engine(folder, tokenizer):
        from mtattn.loading import load_model

        model, own, _ = load_model(folder)
        model.tgt_embed.weight.data[7] += 1.0
        return Native(model, own)

    good = EXPORTERS["huggingface"]
    monkeypatch.setitem(EXPORTERS, "huggingface", replace(good, load=engine))
    with pytest.raises(ModelError, match="Nothing was written"):
        export_model(released, "huggingface", tmp_path / "out", Reporter(), lines=lines)
    assert not list(tmp_path.glob("out*"))


def test_what_other_engines_cannot_forbid_is_not_compared(model, tokenizer, tmp_path, monkeypatch):
    decode = DecodeConfig(max_len_extra=9, min_len=9, no_repeat_ngram_size=1)
    write(Trained(model, tokenizer, Config(model=model.config, decode=decode), tmp_path), tmp_path / "run", "float32")
    (tmp_path / "lines").write_text("a dog\nthe cat sleeps\n")

    class Plain(Native):
        def translate(self, src, config):
            return super().translate(src, replace(config, min_len=0, no_repeat_ngram_size=0))

    good = EXPORTERS["huggingface"]
    engine = lambda folder, tokenizer: Plain(model, tokenizer)  # noqa: E731
    monkeypatch.setitem(EXPORTERS, "huggingface", replace(good, load=engine))
    parity = export_model(tmp_path / "run", "huggingface", tmp_path / "out", Reporter(), lines=tmp_path / "lines")
    assert parity.equal_translations == 1


def test_the_record_says_how_the_copy_compares(released, tmp_path):
    parity = export_model(released, "huggingface", tmp_path / "out", Reporter())
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["to"] == "huggingface"
    assert record["parity"]["num_sentences"] == parity.num_sentences == 200


def test_an_earlier_export_is_replaced_with_force_alone(released, tmp_path):
    out, lines = tmp_path / "out", tmp_path / "lines.en"
    lines.write_text("a dog\n\nthe cat sleeps\n")
    assert export_model(released, "huggingface", out, Reporter(), lines=lines).num_sentences == 2
    with pytest.raises(ConfigError, match="--force"):
        export_model(released, "huggingface", out, Reporter(), lines=lines)
    export_model(released, "huggingface", out, Reporter(), lines=lines, force=True)
    assert (out / RECORD).is_file()


def test_an_earlier_export_is_back_where_the_new_one_cannot_stand(released, tmp_path, monkeypatch):
    out, lines, rename = tmp_path / "out", tmp_path / "lines.en", Path.rename
    lines.write_text("a dog\n")
    export_model(released, "huggingface", out, Reporter(), lines=lines)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fails_once_the_old_is_aside(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_once_the_old_is_aside)
    with pytest.raises(FileError, match="No space left"):
        export_model(released, "huggingface", out, Reporter(), lines=lines, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.glob("out*")} == {"out"}


def test_what_somebody_keeps_beside_it_stays(released, tmp_path):
    kept, lines = tmp_path / "out.old", tmp_path / "lines.en"
    kept.mkdir()
    (kept / "mine").write_text("years of work")
    for text, ends in ((" \n", ConfigError), ("a dog\n", None), ("a dog\n", ConfigError)):
        lines.write_text(text)
        with pytest.raises(ends) if ends else nullcontext():
            export_model(released, "huggingface", tmp_path / "out", Reporter(), lines=lines, force=True)
        assert (kept / "mine").is_file()


def test_force_replaces_nothing_but_an_export(released, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for out in (precious, released, tmp_path):
        with pytest.raises(ConfigError, match="no earlier export"):
            export_model(released, "huggingface", out, Reporter(), force=True)
    assert (precious / "thesis.txt").is_file()


@pytest.fixture
def short(make_model, toy_lines, tmp_path):
    """A released model that splits what has more than 9 pieces; its dev corpus has two pairs that fit, of five."""
    tokenizer, _ = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=600))  # of U+200B nothing is left
    model = make_model(tokenizer.src_vocab_size)
    for code in ("en", "de"):
        (tmp_path / f"dev.{code}").write_text("a dog\n\u200b\n" + "very " * 20 + "long\na cat\n", encoding="utf-8")
    with (tmp_path / "dev.en").open("a") as en, (tmp_path / "dev.de").open("a") as de:
        en.write("a bird\n")
        de.write("ein " * 20 + "Vogel\n")
    data = DataConfig(folder=str(tmp_path), dev="dev.{en,de}")
    config = load_config(None, ["filter.max_len=9"])
    config = replace(config, model=model.config, data=data, decode=DecodeConfig(max_len_ratio=0.2, max_len_extra=2))
    write(Trained(model, tokenizer, config, tmp_path), tmp_path / "short", "float32")
    return tmp_path / "short"


def test_lines_that_the_model_would_split_or_leave_blank_are_not_compared(short, tmp_path, monkeypatch):
    assert export_model(short, "huggingface", tmp_path / "dev", Reporter()).num_sentences == 2
    lines = tmp_path / "lines.en"
    lines.write_text("a dog\n" + "very " * 20 + "long\na cat\na bird\n")
    assert export_model(short, "huggingface", tmp_path / "all", Reporter(), lines=lines).num_sentences == 3
    monkeypatch.setattr("mtattn.export.PARITY_LINES", 2)
    assert export_model(short, "huggingface", tmp_path / "two", Reporter(), lines=lines).num_sentences == 2


@pytest.mark.parametrize("use_lines", [True, False])
def test_nothing_to_compare_on_is_said(short, tmp_path, use_lines):
    for path in (tmp_path / "dev.en", tmp_path / "dev.de"):
        path.write_text("very " * 20 + "long\n\n")
    lines = tmp_path / "dev.en" if use_lines else None
    where = "dev.en" if use_lines else "the dev corpus"
    with pytest.raises(ConfigError, match=f"{where}: holds no text of up to 9 pieces"):
        export_model(short, "huggingface", tmp_path / "out", Reporter(), lines=lines)


def test_a_folder_beside_it_is_not_taken_for_a_leftover(released, tmp_path):
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(ConfigError, match=r"out\.tmp: is in the way; delete it if"):
            export_model(released, "huggingface", tmp_path / "out", Reporter(), force=force)
    assert (tmp_path / "out.tmp" / "thesis.txt").is_file()


def test_the_current_folder_can_be_filled(released, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "lines").write_text("a dog\n")
    monkeypatch.chdir(tmp_path / "here")
    export_model(released, "huggingface", Path(), Reporter(), lines=tmp_path / "lines")
    assert (tmp_path / "here" / RECORD).is_file()


def test_bad_requests_are_refused_before_anything_is_written(released, tmp_path):
    out, empty = tmp_path / "out", tmp_path / "empty.en"
    empty.write_text("\n\n")
    with pytest.raises(ConfigError, match="float32"):
        export_model(released, "huggingface", out, Reporter(), quantization="int3")
    with pytest.raises(ConfigError, match="no text"):
        export_model(released, "huggingface", out, Reporter(), lines=empty)
    with pytest.raises(FileError, match="missing"):
        export_model(released, "huggingface", out, Reporter(), lines=tmp_path / "missing.en")
    assert not out.exists()


def test_a_model_that_cannot_go_there_is_refused(make_model, tokenizer, tmp_path):
    model = make_model(tokenizer.src_vocab_size, position=PositionConfig("alibi"))
    folder = tmp_path / "alibi"
    write(Trained(model, tokenizer, Config(model=model.config), folder), folder, "float32")
    with pytest.raises(ConfigError, match="alibi"):
        export_model(folder, "ctranslate2", tmp_path / "out", Reporter())


def test_capabilities_name_every_way_out():
    found = capabilities(Config())
    assert found.keys() == EXPORTERS.keys()
    assert all(verdict.split(",")[0] == "yes" for verdict in found.values())
    assert "cosine" in capabilities(Config(model=ModelConfig(score="cosine")))["ctranslate2"]


def test_a_missing_extra_says_what_to_install():
    with pytest.raises(ConfigError, match=r"pip install 'mtattn\[export\]'"):
        extra("no_such_module_anywhere")
