"""Hugging Face folders that classes of `transformers` run: Pegasus and Marian give what the model gives."""

import json
from dataclasses import replace

import pytest
import torch

from mtattn.checkpoint import read_config
from mtattn.config import Config, load_config
from mtattn.corpus import DataConfig
from mtattn.decode import DecodeConfig
from mtattn.export import export_model
from mtattn.export.exporter import Trained
from mtattn.export.huggingface import write
from mtattn.export.parity import Native, compare
from mtattn.export.stock import CLASSES, LAYER, StockEngine, obstacles, stock_weights
from mtattn.filtering import FilterConfig
from mtattn.loading import load_model, model_folder
from mtattn.model import ModelConfig, PositionConfig
from mtattn.progress import Reporter
from mtattn.tokenizer import TokenizerConfig
from mtattn.translate import Translator

GREEDY = DecodeConfig(beam_size=1, max_len_ratio=1.0, max_len_extra=4)
STOCK = {"norm": "layernorm", "position": PositionConfig("sinusoidal"), "qk_norm": False}
LINES = [
    "Anna is baking a cake.",
    "Where is my old umbrella?",
    "</s> <2de> is text",
    "\u00a0wide  spaces ",
    "\U0001f600 \x07",
]


@pytest.fixture(params=[(norm, bias) for norm in CLASSES for bias in (True, False)], ids=str)
def trained(request, make_model, tokenizer, tmp_path):
    norm_position, bias = request.param
    activation = "relu" if bias else "gelu"
    options = {**STOCK, "norm_position": norm_position, "bias": bias, "activation": activation}
    model = make_model(tokenizer.src_vocab_size, **options)
    data = DataConfig(folder="bundled:toy", dev="dev.{en,de}")
    return Trained(model, tokenizer, Config(model=model.config, data=data, decode=GREEDY), tmp_path / "run")


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="only the export to its classes needs it")


def test_it_computes_what_the_model_does(transformers, trained, tokenizer, tmp_path, toy_lines):
    write(trained, tmp_path, "float32")
    engine = StockEngine(tmp_path, tokenizer)
    assert type(engine.model).__name__ == CLASSES[trained.config.model.norm_position].name
    src, tgt = tokenizer.encode_src(toy_lines[0][:12]), tokenizer.encode_tgt(toy_lines[1][:12])
    parity = compare(Native(trained.model, tokenizer), engine, src, tgt, GREEDY)
    assert parity.max_difference < 1e-4
    assert parity.equal_translations == 1.0


def test_nothing_is_missing_there_or_left_over(transformers, trained, tmp_path):
    write(trained, tmp_path, "float32")
    _, found = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()), found


def test_its_tokenizer_and_search_give_the_same_text(transformers, trained, tmp_path):
    write(trained, tmp_path, "float32")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer(line).input_ids for line in LINES] == trained.tokenizer.encode_src(LINES)
    translator = Translator(trained.model, trained.tokenizer, GREEDY)
    for line, ours in zip(LINES, translator.translate(LINES), strict=True):
        inputs = tokenizer([line], return_tensors="pt")
        limit = inputs.input_ids.shape[1] + GREEDY.max_len_extra
        ids = model.generate(**inputs, max_length=None, max_new_tokens=limit)
        assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [ours.text.strip()]


def test_mtattn_runs_the_folder_too(trained, tmp_path):
    write(trained, tmp_path, "float32")
    model, tokenizer, config = load_model(tmp_path)
    assert (
        read_config(model_folder(tmp_path)) == config == trained.config
        and tokenizer.to_files() == trained.tokenizer.to_files()
    )
    assert all(bool((a == b).all()) for a, b in zip(model.parameters(), trained.model.parameters(), strict=True))
    readme = " ".join((tmp_path / "README.md").read_text().split())
    assert CLASSES[config.model.norm_position].name in readme
    assert "the text of `mtattn translate --beam 1`, except" in readme
    assert f"over {config.filter.max_len} tokens, which mtattn splits" in readme
    assert "over 1 times the text's tokens plus 4, which mtattn cuts" in readme


def test_the_card_says_how_to_search_alike(trained, tmp_path):
    decode = replace(GREEDY, search="sample", nbest=3, quantization="int8")
    write(replace(trained, config=replace(trained.config, decode=decode)), tmp_path, "float32")
    command = "--beam 1 --set decode.search=beam --set decode.nbest=1 --set decode.quantization=none`"
    assert f"`mtattn translate {command}" in (tmp_path / "README.md").read_text()


def test_what_the_model_never_writes_is_not_written_there(transformers, trained, tmp_path, toy_lines):
    decode = replace(GREEDY, min_len=6, no_repeat_ngram_size=2)
    with torch.no_grad():
        trained.model.tgt_embed.weight[trained.tokenizer.eos_id] *= 10  # or none would end early
    write(replace(trained, config=replace(trained.config, decode=decode)), tmp_path, "float32")
    native, src = Native(trained.model, trained.tokenizer), trained.tokenizer.encode_src(toy_lines[0][:8])
    expected = native.translate(src, decode)
    assert expected != native.translate(src, GREEDY)
    engine = StockEngine(tmp_path, trained.tokenizer)
    for row, ids in zip(src, expected, strict=True):
        options = {"max_length": None, "max_new_tokens": decode.max_len(len(row))}
        found = engine.model.generate(input_ids=torch.tensor([row]), **options)[0, 1:].tolist()
        assert [i for i in found if i != trained.tokenizer.eos_id] == ids
    assert engine.translate(src, decode) == expected
    assert engine.translate(src, GREEDY) == native.translate(src, GREEDY)


def test_longer_texts_than_its_classes_expect(transformers, trained, tokenizer, tmp_path):
    config = replace(trained.config, filter=FilterConfig(max_len=1500))
    write(replace(trained, config=config), tmp_path, "float32")
    src, tgt = tokenizer.encode_src(["a dog " * 400]), tokenizer.encode_tgt(["ein Hund"])
    assert 1024 < len(src[0]) <= 1500
    short = replace(GREEDY, max_len_ratio=0.0)
    parity = compare(Native(trained.model, tokenizer), StockEngine(tmp_path, tokenizer), src, tgt, short)
    assert parity.max_difference < 1e-4
    for file, name in (
        ("config.json", "max_position_embeddings"),
        ("generation_config.json", "max_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        assert json.loads((tmp_path / file).read_text())[name] == 1505  # 1500 + max_len_extra, and BOS


def test_export_compares_it(transformers, trained, tmp_path):
    write(trained, tmp_path / "run", "float32")
    (tmp_path / "lines").write_text("a dog\nthe cat sleeps\n")
    parity = export_model(tmp_path / "run", "huggingface", tmp_path / "out", Reporter(), lines=tmp_path / "lines")
    assert 0 < parity.max_difference < 1e-4  # computed by other code
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] in ("pegasus", "marian")


def test_every_weight_is_in_the_table(make_model):
    model = make_model(23, **STOCK, bias=True)
    ours = sum(parameter.numel() for parameter in model.parameters())
    assert sum(weight.numel() for weight in stock_weights(model).values()) == ours + 23  # final_logits_bias
    assert {name.split(".", 2)[2].rsplit(".", 1)[0] for name in model.state_dict() if name.startswith("decoder.")} == {
        *LAYER
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"norm": "rmsnorm"}, 'model.norm = "layernorm", not "rmsnorm"'),
        ({"position": PositionConfig("rotary")}, 'model.position.kind = "sinusoidal", not "rotary"'),
        ({"qk_norm": True}, "model.qk_norm = false, not true"),
        ({"score": "additive"}, 'model.score = "scaled_dot", not "additive"'),
        ({"activation": "swiglu"}, 'model.activation = "relu", not "swiglu"'),
        ({"num_heads": 4, "num_kv_heads": 2}, "model.num_kv_heads = 4, not 2"),
        ({"tied_embeddings": False}, "model.tied_embeddings = true, not false"),
    ],
)
def test_what_no_class_computes_is_named(change, reason):
    assert obstacles(Config(model=ModelConfig(**{**STOCK, **change}))) == [reason]


def test_two_vocabularies_are_an_obstacle():
    config = Config(model=ModelConfig(**STOCK), tokenizer=TokenizerConfig(joint=False))
    assert obstacles(config) == ["tokenizer.joint = true, not false"]


def test_the_default_is_run_with_mtattn():
    assert obstacles(load_config("toy"))
