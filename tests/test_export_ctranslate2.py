"""Export to CTranslate2: every kind of model that it takes gives the same log-probabilities, the others are refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtattn.config import Config
from mtattn.decode import DecodeConfig
from mtattn.export.ctranslate2 import EXPORTER, CTranslate2Engine, refusals, write
from mtattn.export.exporter import Trained
from mtattn.export.parity import Native, compare
from mtattn.model import ModelConfig, PositionConfig
from mtattn.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

pytest.importorskip("ctranslate2")
SEARCH = DecodeConfig(beam_size=1, max_len_ratio=1.0, max_len_extra=4)
KINDS = {
    "default": {},
    "gelu": {"activation": "gelu"},
    "swiglu": {"activation": "swiglu"},
    "layernorm without bias": {"norm": "layernorm"},
    "layernorm with bias": {"norm": "layernorm", "bias": True},
    "post-norm": {"norm": "layernorm", "norm_position": "post", "bias": True, "qk_norm": False},
    "sinusoidal": {"position": PositionConfig("sinusoidal")},
    "learned": {"position": PositionConfig("learned", max_len=600)},
    "no positions": {"position": PositionConfig("none")},
    "t5": {"position": PositionConfig("t5", num_buckets=8, max_distance=16)},
    "rotary, linear": {"position": PositionConfig("rotary", scaling="linear", factor=3.0)},
    "rotary, ntk": {"position": PositionConfig("rotary", scaling="ntk", factor=3.0, base=500.0)},
    "grouped queries": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1},
    "symmetric": {"score": "symmetric"},
    "untied": {"tied_embeddings": False},
}


def trained(model, tokenizer: Tokenizer, folder: Path) -> Trained:
    return Trained(model, tokenizer, Config(model=model.config), folder)


@pytest.fixture
def pairs(toy_lines, tokenizer):
    """Sentences of differing lengths, so that a batch has padding."""
    src, tgt = ([line for line in side[:12]] for side in toy_lines)
    return tokenizer.encode_src([*src, "cat"]), tokenizer.encode_tgt([*tgt, "Katze"])


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_same_log_probabilities_and_translations(options, make_model, tokenizer, pairs, tmp_path):
    model = make_model(tokenizer.src_vocab_size, **options)
    assert refusals(model.config) == []
    write(trained(model, tokenizer, tmp_path), tmp_path, "float32")
    parity = compare(Native(model, tokenizer), CTranslate2Engine(tmp_path, tokenizer), *pairs, SEARCH)
    assert parity.max_difference < 1e-4
    assert parity.equal_translations == 1
    assert parity.num_tokens == sum(len(row) for row in pairs[1])


def test_torch_keeps_its_number_of_threads(make_model, tokenizer, tmp_path):
    model = make_model(tokenizer.src_vocab_size)
    write(trained(model, tokenizer, tmp_path), tmp_path, "float32")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        engine = CTranslate2Engine(tmp_path, tokenizer)
        engine.translate(tokenizer.encode_src(["cat"]), SEARCH)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{}, {"norm": "layernorm"}, {"norm": "layernorm", "bias": True}], ids=str)
def test_small_queries_and_keys_are_normalised_alike(options, make_model, tokenizer, pairs, tmp_path):
    model = make_model(tokenizer.src_vocab_size, **options)
    with torch.no_grad():
        for layer in (*model.encoder, *model.decoder):
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                for parameter in projection.parameters():
                    parameter.mul_(1e-3)  # so that their mean square is as small as the epsilon
    write(trained(model, tokenizer, tmp_path), tmp_path, "float32")
    parity = compare(Native(model, tokenizer), CTranslate2Engine(tmp_path, tokenizer), *pairs, SEARCH)
    assert parity.max_difference < 1e-4


def test_separate_vocabularies(make_model, toy_lines, tmp_path):
    tokenizer, _ = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=500, joint=False))
    model = make_model(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size, joint=False)
    write(trained(model, tokenizer, tmp_path), tmp_path, "float32")
    src, tgt = tokenizer.encode_src(toy_lines[0][:5]), tokenizer.encode_tgt(toy_lines[1][:5])
    parity = compare(Native(model, tokenizer), CTranslate2Engine(tmp_path, tokenizer), src, tgt, SEARCH)
    assert parity.max_difference < 1e-4
    assert {"tokenizer.src.model", "tokenizer.tgt.model"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("quantization", ["int8", "bfloat16"])
def test_quantizing_changes_little_and_leaves_the_model_alone(quantization, make_model, tokenizer, pairs, tmp_path):
    model = make_model(tokenizer.src_vocab_size)
    before = [parameter.clone() for parameter in model.parameters()]
    write(trained(model, tokenizer, tmp_path), tmp_path, quantization)
    assert all(bool((a == b).all()) for a, b in zip(before, model.parameters(), strict=True))
    parity = compare(Native(model, tokenizer), CTranslate2Engine(tmp_path, tokenizer), *pairs, SEARCH)
    assert parity.max_difference > 1e-4
    assert parity.mean_difference < 0.3  # random weights of 16 features: far worse than any trained model


@pytest.mark.parametrize("score", ["additive", "cosine", "multiplicative"])
def test_scores_that_it_lacks_are_refused_by_name(score):
    assert score in refusals(ModelConfig(score=score))[0]


def test_alibi_is_refused_by_name():
    assert "alibi" in refusals(ModelConfig(position=PositionConfig("alibi")))[0]


def test_every_reason_is_given():
    config = ModelConfig(score="additive", position=PositionConfig("alibi"))
    assert len(refusals(config)) == 2


def test_a_wrong_weight_shows_in_the_log_probabilities(make_model, tokenizer, pairs, tmp_path):
    model = make_model(tokenizer.src_vocab_size)
    write(trained(model, tokenizer, tmp_path), tmp_path, "float32")
    model.decoder[1].cross_attn.k_proj.weight.data[0] += 0.5
    parity = compare(Native(model, tokenizer), CTranslate2Engine(tmp_path, tokenizer), *pairs, SEARCH)
    assert parity.max_difference > 100 * EXPORTER.limits["float32"].max_difference


def test_the_readme_runs_as_written(make_model, tokenizer, tmp_path, monkeypatch, capsys):
    write(trained(make_model(tokenizer.src_vocab_size), tokenizer, tmp_path), tmp_path, "float32")
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"^    ((?!pip).+)$", readme, re.MULTILINE)
    assert len(code) == 4
    monkeypatch.chdir(tmp_path)
    exec("\n".join(code), {})
    assert capsys.readouterr().out.endswith("\n")


def test_long_sources_are_not_cut(make_model, tokenizer, tmp_path):
    model = make_model(tokenizer.src_vocab_size, encoder_layers=1, decoder_layers=1)
    write(trained(model, tokenizer, tmp_path), tmp_path, "float32")
    src = tokenizer.encode_src(["a dog " * 700])
    assert len(src[0]) > 1100
    engine = CTranslate2Engine(tmp_path, tokenizer)
    short = replace(SEARCH, max_len_ratio=0.0)
    parity = compare(Native(model, tokenizer), engine, src, tokenizer.encode_tgt(["ein Hund"]), short)
    assert parity.max_difference < 1e-4


def test_config_says_how_sources_end(make_model, tokenizer, tmp_path):
    write(trained(make_model(tokenizer.src_vocab_size), tokenizer, tmp_path), tmp_path, "float32")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["add_source_eos"] is True
    assert config["decoder_start_token"] == "<s>"
    assert config["layer_norm_epsilon"] == 1e-6
