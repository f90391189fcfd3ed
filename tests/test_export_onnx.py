"""Export to ONNX: the traced graphs give the model's log-probabilities for any batch and lengths."""

import pytest

from mtattn.attention import Learned, Rotary
from mtattn.config import Config
from mtattn.decode import DecodeConfig
from mtattn.export.exporter import Trained
from mtattn.export.onnx import OnnxEngine, RealRotary, traceable, write
from mtattn.export.parity import Native, compare
from mtattn.model import PositionConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # tracing warns of its own internals
GREEDY = DecodeConfig(beam_size=1, max_len_ratio=1.0, max_len_extra=4)


@pytest.fixture(scope="module", params=["rotary", "learned"])
def exported(request, make_model, tokenizer, tmp_path_factory):
    """A model of one layer a side, with grouped queries, and its folder; tracing takes seconds."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="only the export itself needs it")
    folder = tmp_path_factory.mktemp("onnx")
    sizes = {"num_kv_heads": 2, "encoder_layers": 1, "decoder_layers": 2}
    model = make_model(tokenizer.src_vocab_size, position=PositionConfig(request.param), **sizes)
    write(Trained(model, tokenizer, Config(model=model.config), folder), folder, "float32")
    return model, folder


@pytest.mark.slow
@pytest.mark.parametrize("beam_size", [1, 3])
def test_same_log_probabilities_and_translations(beam_size, exported, tokenizer, toy_lines):
    model, folder = exported
    src, tgt = tokenizer.encode_src([*toy_lines[0][:9], "cat"]), tokenizer.encode_tgt([*toy_lines[1][:9], "Katze"])
    search = DecodeConfig(beam_size=beam_size, max_len_ratio=1.0, max_len_extra=4)
    parity = compare(Native(model, tokenizer), OnnxEngine(folder, tokenizer), src, tgt, search)
    assert parity.max_difference < 1e-4
    assert parity.equal_translations == 1


@pytest.mark.slow
def test_one_sentence_alone(exported, tokenizer):
    model, folder = exported
    src = tokenizer.encode_src(["a dog"])
    parity = compare(Native(model, tokenizer), OnnxEngine(folder, tokenizer), src, None, GREEDY)
    assert parity.max_difference < 1e-4


@pytest.mark.slow
def test_folder_holds_what_running_it_needs(exported):
    model, folder = exported
    assert {path.name for path in folder.iterdir()} == {"encoder.onnx", "step.onnx", "tokenizer.model", "README.md"}
    limited = "may have 1,024 tokens at most" in (folder / "README.md").read_text(encoding="utf-8")
    assert limited == (model.config.position.kind == "learned")


@pytest.mark.parametrize("kind", ["rotary", "t5", "alibi", "sinusoidal", "learned"])
def test_a_traceable_model_is_the_same_model(kind, make_model, tokenizer):
    model = make_model(tokenizer.src_vocab_size, position=PositionConfig(kind))
    copy = traceable(model)
    assert isinstance(model.encoder[0].self_attn.position, Rotary) == (kind == "rotary")
    assert isinstance(copy.encoder[0].self_attn.position, RealRotary) == (kind == "rotary")
    assert not isinstance(copy.src_position, Learned) and not isinstance(copy.tgt_position, Learned)
    src, tgt = tokenizer.encode_src(["a dog", "the cat sleeps"]), tokenizer.encode_tgt(["ein Hund", "die Katze"])
    parity = compare(Native(model, tokenizer), Native(copy, tokenizer), src, tgt, GREEDY)
    assert parity.max_difference < 1e-5
    assert copy.tgt_embed.weight is model.tgt_embed.weight
