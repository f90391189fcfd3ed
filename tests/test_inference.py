"""The prepared model is the model: the same logits, whatever its kind, whoever is alive and whoever leaves."""

import pytest
import torch

from mtattn.decode import DecodeConfig, search
from mtattn.inference import PreparedModel, unsupported
from mtattn.linear import LINEARS, unavailable
from mtattn.model import DecoderState, PositionConfig

V, PAD = 31, 0
SUPPORTED = {
    "default": {},
    "no qk_norm": {"qk_norm": False},
    "layernorm, post, bias": {"norm": "layernorm", "norm_position": "post", "bias": True, "qk_norm": False},
    "rmsnorm, bias": {"bias": True},
    "gelu": {"activation": "gelu"},
    "swiglu": {"activation": "swiglu", "bias": True},
    "grouped": {"num_kv_heads": 2},
    "multi-query": {"num_kv_heads": 1, "qk_norm": False},
    "symmetric": {"score": "symmetric"},
    "untied": {"tied_embeddings": False},
    **{kind: {"position": PositionConfig(kind, max_len=64)} for kind in ("none", "sinusoidal", "learned")},
    "ntk": {"position": PositionConfig("rotary", scaling="ntk", factor=2.0)},
}
FALLS_BACK = {
    "score is 'additive'": {"score": "additive"},
    "score is 'cosine'": {"score": "cosine"},
    "score is 'multiplicative'": {"score": "multiplicative"},
    r"\(t5\) change scores": {"position": PositionConfig("t5")},
    r"\(alibi\) change scores": {"position": PositionConfig("alibi")},
}
SRC = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 2, PAD, PAD], [4, 4, 9, 2, PAD], [11, 12, 13, 14, 2]])


def logits_of(state, num_beams: int, seed: int = 0) -> list[torch.Tensor]:
    """What a step returns over ten steps in which hypotheses change places and die, and sentences leave and move."""
    g, n, found = torch.Generator().manual_seed(seed), len(SRC), []
    alive = torch.ones(n, num_beams, dtype=torch.bool)
    for step in range(10):
        tokens = torch.randint(3, V, (n, num_beams), generator=g)
        parents = None
        if step and num_beams > 1:
            parents = torch.randint(0, num_beams, (n, num_beams), generator=g)
            parents = torch.where(alive.gather(1, parents), parents, alive.int().argmax(1, keepdim=True))
            alive = torch.rand(n, num_beams, generator=g) < (0.6 if step > 2 else 2)
            alive[torch.arange(n), torch.randint(0, num_beams, (n,), generator=g)] = True
        logits = state(tokens, parents, None if bool(alive.all()) else alive)
        found.append(logits.reshape(-1, V).clone())
        for leaves, kept in ((3, [2, 0, 3]), (5, [2, 1]), (7, [1])):
            if step == leaves:
                state.select(torch.tensor(kept))
                n, alive = len(kept), alive[kept]
    return found


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("kind", SUPPORTED)
def test_equals_the_model(make_model, kind, num_beams):
    model = make_model(V, **SUPPORTED[kind])
    prepared = PreparedModel(model)
    assert prepared.reason == ""
    with torch.inference_mode():
        for found, expected in zip(
            logits_of(prepared.start(SRC), num_beams), logits_of(model.start(SRC), num_beams), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reason", FALLS_BACK)
def test_says_why_the_model_itself_does_the_work(make_model, reason):
    model = make_model(V, **FALLS_BACK[reason])
    prepared = PreparedModel(model)
    assert isinstance(prepared.start(SRC), DecoderState)
    with pytest.raises(ValueError, match=f"quantization = 'int8' is not possible.*{reason}"):
        PreparedModel(model, "int8")
    assert "not float32" in unsupported(make_model(V).double())


def test_what_the_machine_lacks_is_refused(make_model, monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    with pytest.raises(ValueError, match="quantization = 'float16' is not possible on this machine"):
        PreparedModel(make_model(V), "float16")


@pytest.mark.parametrize("quantization", [kind for kind in LINEARS if kind != "none" and not unavailable(kind)])
def test_quantized_is_near_and_no_sentence_feels_another(make_model, quantization):
    model = make_model(V, d_model=64, d_ff=128)
    expected, found = logits_of(model.start(SRC), 3), logits_of(PreparedModel(model, quantization).start(SRC), 3)
    for a, b in zip(expected, found, strict=True):
        assert 0 < (a - b).abs().mean() < 0.05 * a.std()
    alone = PreparedModel(model, quantization).start(SRC[:1])(torch.tensor([[7, 8, 9]]), None)
    together = PreparedModel(model, quantization).start(SRC)(torch.tensor([[7, 8, 9]]).expand(4, -1), None)
    torch.testing.assert_close(alone[0], together[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_search_finds_what_it_finds_with_the_model(make_model, beam_size):
    model = make_model(V)
    config, lens = DecodeConfig(beam_size=beam_size, nbest=beam_size), (SRC != PAD).sum(1)
    ours, theirs = (
        search(start(SRC), lens, config, bos_id=1, eos_id=2, pad_id=PAD)
        for start in (PreparedModel(model).start, model.start)
    )
    assert [[h.ids for h in hyps] for hyps in ours] == [[h.ids for h in hyps] for hyps in theirs]
    for a, b in zip((h for hyps in ours for h in hyps), (h for hyps in theirs for h in hyps), strict=True):
        assert a.token_log_probs == pytest.approx(b.token_log_probs, abs=1e-4)


def test_new_weights_are_noticed(make_model):
    model = make_model(V)
    prepared, tokens = PreparedModel(model), torch.tensor([[5]] * 4)
    before = prepared.start(SRC)(tokens, None).clone()
    with torch.no_grad():
        model.out_embed.weight.mul_(2)
    after = prepared.start(SRC)(tokens, None)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model.start(SRC)(tokens, None), rtol=1e-4, atol=1e-4)
