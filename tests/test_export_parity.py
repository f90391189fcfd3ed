"""Comparing a copy with its model: what counts as different, and what becomes of a copy that is."""

import json
import math

import pytest

from mtattn.config import Config
from mtattn.decode import DecodeConfig
from mtattn.errors import ConfigError, FileError, ModelError
from mtattn.export import EXPORTERS, RECORD, capabilities, export_model
from mtattn.export.exporter import Exporter, Trained, extra
from mtattn.export.huggingface import write
from mtattn.export.parity import Limits, Native, Parity, compare, require_parity
from mtattn.model import ModelConfig, PositionConfig
from mtattn.progress import Reporter

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
        require_parity(parity, Limits(1e-4, 1e-5, 0.99))


def test_what_is_within_the_limits_passes():
    require_parity(Parity(1e-4, 1e-5, 0.99, 1, 1), Limits(1e-4, 1e-5, 0.99))


def test_a_copy_that_differs_is_not_kept(released, tmp_path, monkeypatch):
    lines = tmp_path / "lines.en"
    lines.write_text("a dog\nthe cat sleeps\n")

    def engine(folder, tokenizer):
        from mtattn.checkpoint import load_model

        model, own, _ = load_model(folder)
        model.tgt_embed.weight.data[7] += 1.0
        return Native(model, own)

    good = EXPORTERS["huggingface"]
    monkeypatch.setitem(EXPORTERS, "huggingface", Exporter(good.refusals, good.write, engine, good.limits))
    with pytest.raises(ModelError, match="Nothing was written"):
        export_model(released, "huggingface", tmp_path / "out", Reporter(), lines=lines)
    assert not list(tmp_path.glob("out*"))


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


def test_force_replaces_nothing_but_an_export(released, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for out in (precious, released, tmp_path):
        with pytest.raises(ConfigError, match="no earlier export"):
            export_model(released, "huggingface", out, Reporter(), force=True)
    assert (precious / "thesis.txt").is_file()


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
    assert capabilities(ModelConfig()) == {name: [] for name in EXPORTERS}
    assert capabilities(ModelConfig(score="cosine"))["ctranslate2"]


def test_a_missing_extra_says_what_to_install():
    with pytest.raises(ConfigError, match=r"pip install 'mtattn\[export\]'"):
        extra("no_such_module_anywhere")
