"""The model: torch's layers are the reference; the past never sees the future, padding never matters, and a cached step
equals the full pass, for every kind of position, score, norm and sharing."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtattn.attention import POSITIONS, SCORES
from mtattn.model import PRESETS, ModelConfig, PositionConfig, Transformer, evaluating

PAD, V = 0, 23

VARIANTS = {
    "default": {},
    **{f"position {kind}": {"position": PositionConfig(kind)} for kind in POSITIONS},
    "rotary ntk": {"position": PositionConfig("rotary", scaling="ntk", factor=2.0)},
    **{f"score {score}": {"score": score} for score in SCORES},
    "additive, alibi, 2 kv heads": {"score": "additive", "position": PositionConfig("alibi"), "num_kv_heads": 2},
    "cosine, t5": {"score": "cosine", "position": PositionConfig("t5", num_buckets=8, max_distance=20)},
    "1 kv head": {"num_kv_heads": 1},
    "2 kv heads, no qk norm": {"num_kv_heads": 2, "qk_norm": False},
    "layernorm": {"norm": "layernorm"},
    "layernorm, bias": {"norm": "layernorm", "bias": True},
    "post": {"norm_position": "post"},
    "post, layernorm, sinusoidal": {
        "norm_position": "post",
        "norm": "layernorm",
        "position": PositionConfig("sinusoidal"),
    },
    "gelu": {"activation": "gelu"},
    "swiglu, bias": {"activation": "swiglu", "bias": True},
    "untied": {"tied_embeddings": False},
    "uneven": {"encoder_layers": 1, "decoder_layers": 3},
    **{f"attention {impl}": {"attention": impl} for impl in ("reference", "sdpa", "chunked")},
    **{
        f"preset {name}": {"d_model": 16, "d_ff": 24, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2}
        | {key: value for key, value in preset.items() if key in ("norm", "norm_position", "qk_norm", "bias")}
        | {"position": PositionConfig(**preset.get("position", {}))}
        for name, preset in PRESETS.items()
    },
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def variants(make_model) -> dict[str, Transformer]:
    return {name: make_model(V, **options) for name, options in VARIANTS.items()}


def ids(rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(4, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: int, length: int, seed: int) -> Tensor:
    """Ids of which every row but the first ends in padding."""
    out = ids(rows, length, seed)
    for row in range(1, rows):
        out[row, max(1, length - row) :] = PAD
    return out


# Against torch


def torch_attention(ours: nn.Module, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


@torch.no_grad()
def torch_layer(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    """Give one of torch's layers the weights of ours."""
    torch_attention(ours.self_attn, theirs.self_attn)
    residuals = [ours.self_attn_residual, ours.ffn_residual]
    if hasattr(ours, "cross_attn"):
        torch_attention(ours.cross_attn, theirs.multihead_attn)
        residuals.insert(1, ours.cross_attn_residual)
    for number, residual in enumerate(residuals, start=1):
        getattr(theirs, f"norm{number}").load_state_dict(residual.norm.state_dict())
    theirs.linear1.load_state_dict(ours.ffn.up_proj.state_dict())
    theirs.linear2.load_state_dict(ours.ffn.down_proj.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_stack_equals_torch(make_model, norm_position, activation):
    model = make_model(
        V,
        norm="layernorm",
        norm_position=norm_position,
        activation=activation,
        bias=True,
        qk_norm=False,
        position=PositionConfig("none"),
    )
    options = {
        "dim_feedforward": 24,
        "dropout": 0.0,
        "activation": activation,
        "batch_first": True,
        "norm_first": norm_position == "pre",
    }
    src, tgt = padded(3, 7, 1), ids(3, 5, 2)
    x = model.src_embed(src) * 4  # sqrt(d_model)
    for layer in model.encoder:
        x = torch_layer(layer, nn.TransformerEncoderLayer(16, 4, **options))(x, src_key_padding_mask=src == PAD)
    memory = model.encoder_norm(x)
    real = (src != PAD).unsqueeze(-1)
    ours = model.encode(src, model.source_mask(src))
    torch.testing.assert_close(ours * real, memory * real, rtol=1e-5, atol=1e-5)

    future = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    y = model.tgt_embed(tgt) * 4
    for layer in model.decoder:
        theirs = torch_layer(layer, nn.TransformerDecoderLayer(16, 4, **options))
        y = theirs(y, memory, tgt_mask=future, memory_key_padding_mask=src == PAD)
    expected = model.decoder_norm(y) @ model.tgt_embed.weight.T
    torch.testing.assert_close(model(src, tgt), expected, rtol=1e-5, atol=1e-5)


# What every kind of model must hold


@every_variant
def test_gradients_reach_every_weight(variants, variant):
    model = copy.deepcopy(variants[variant])
    logits = model(padded(3, 6, 1), padded(3, 5, 2))
    assert logits.shape == (3, 5, V)
    logits.logsumexp(-1).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith(("k_proj.bias", "position.table.weight")):  # softmax does not feel a shift of all keys
            assert parameter.grad.any(), name


@every_variant
@settings(max_examples=3)
@given(st.integers(0, 99), st.integers(1, 5))
def test_future_never_changes_the_past(variants, variant, seed, kept):
    model, src, tgt = variants[variant], padded(3, 6, seed), ids(3, 6, seed + 1)
    other = tgt.clone()
    other[:, kept:] = ids(3, 6 - kept, seed + 2)
    other[0, kept:] = PAD
    with torch.no_grad():
        torch.testing.assert_close(model(src, tgt)[:, :kept], model(src, other)[:, :kept], rtol=1e-5, atol=1e-5)


@every_variant
@settings(max_examples=3)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9))
def test_padding_never_changes_a_real_token(variants, variant, seed, src_padding, tgt_padding):
    model, src, tgt = variants[variant], ids(1, 5, seed), ids(1, 4, seed + 1)
    longer = (
        torch.cat([src, torch.full((1, src_padding), PAD)], 1),
        torch.cat([tgt, torch.full((1, tgt_padding), PAD)], 1),
    )
    beside = [torch.cat([x, ids(2, x.shape[1], seed + 2)]) for x in longer]  # and with longer neighbours
    with torch.no_grad():
        alone = model(src, tgt)
        torch.testing.assert_close(model(*longer)[:, :4], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(*beside)[:1, :4], alone, rtol=1e-5, atol=1e-5)


@every_variant
@settings(max_examples=3)
@given(st.integers(0, 99), st.integers(1, 4))
def test_cached_step_equals_the_full_pass(variants, variant, seed, num_beams):
    model, src = variants[variant], padded(3, 6, seed)
    generator = torch.Generator().manual_seed(seed)
    state = model.start(src)
    so_far = torch.empty(3, num_beams, 0, dtype=torch.int64)
    for step in range(6):
        tokens = torch.randint(4, V, (len(src), num_beams), generator=generator)
        parents = None
        if step and num_beams > 1 and step != 3:
            parents = torch.randint(0, num_beams, tokens.shape, generator=generator)
            so_far = so_far.gather(1, parents[:, :, None].expand_as(so_far))
        so_far = torch.cat([so_far, tokens[:, :, None]], 2)  # [N, K, t]
        cached = state(tokens, parents)
        with torch.no_grad():
            full = model(src.repeat_interleave(num_beams, 0), so_far.flatten(0, 1))[:, -1]
        torch.testing.assert_close(cached.flatten(0, 1), full, rtol=1e-4, atol=1e-4)
        if step == 2:  # one sentence is done, the others change places
            kept = torch.tensor([2, 0])
            state.select(kept)
            src, so_far = src[kept], so_far[kept]


def test_positions_tell_orders_apart(variants):
    src, tgt = ids(1, 6, 1), ids(1, 4, 2)
    for kind in POSITIONS:
        model = variants[f"position {kind}"]
        if kind == "t5":  # its table starts at zero; the fixture made its rows random
            assert model.src_position.table.weight.any()
        with torch.no_grad():
            same = torch.allclose(model(src, tgt), model(src.roll(1, 1), tgt), atol=1e-5)
        assert same == (kind == "none")


# Sharing, initial weights, modes


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_share_storage(make_model, joint, tied):
    model = make_model(V, V if joint else 29, joint=joint, tied_embeddings=tied)
    src, tgt, out = (table.weight.data_ptr() for table in (model.src_embed, model.tgt_embed, model.out_embed))
    assert (src == tgt) == (tied and joint)
    assert (tgt == out) == tied
    assert len(list(model.parameters())) == len({p.data_ptr() for p in model.parameters()})
    assert model(ids(2, 3, 1), ids(2, 4, 2)).shape == (2, 4, V if joint else 29)


def test_a_fresh_model_of_the_same_seed_is_the_same():
    config = ModelConfig(d_model=16, d_ff=16, num_heads=2, tied_embeddings=False)
    weights = []
    for _ in range(4):  # several, since an order by address may repeat by chance
        torch.manual_seed(3)
        weights.append(Transformer(config, 20, 21, joint=False).state_dict())
    for other in weights[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in weights[0].items())


def test_a_fresh_pre_norm_model_starts_as_the_identity():
    model = Transformer(ModelConfig(d_model=16, d_ff=16, num_heads=2), V, V).eval()
    src = ids(2, 5, 1)
    expected = model.encoder_norm(model.src_embed(src) * 4)
    torch.testing.assert_close(model.encode(src, None), expected)
    assert model(src, src).detach().std().item() == pytest.approx(
        1.0, abs=0.3
    )  # logits near N(0, 1): a loss near log V


def test_source_mask_hides_padding(model):
    assert model.source_mask(ids(2, 4, 1)).trivial
    mask = model.source_mask(torch.tensor([[5, 6, PAD], [7, 8, 9]]))
    assert mask.dense(1, 3).allowed.flatten(0, 2).tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode(make_model, training):
    model = make_model(V, dropout=0.5).train(training)
    with evaluating(model):
        assert not model.training
        assert not model(ids(1, 3, 1), ids(1, 3, 2)).requires_grad
    assert model.training == training


def test_dropout_acts_in_training_alone(make_model):
    for option in ("dropout", "inner_dropout", "attention_dropout"):
        model = make_model(V, **{"dropout": 0.0, "inner_dropout": 0.0, option: 0.5})
        src, tgt = ids(2, 6, 1), ids(2, 6, 2)
        assert torch.equal(model(src, tgt), model(src, tgt))
        model.train()
        assert not torch.allclose(model(src, tgt), model(src, tgt))


# Presets and settings


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_sizes_it_is_known_for(name):
    # One layer of each stack, without embeddings. Six of vaswani's make 44 M; the paper's 65 M has 37,000 pieces.
    known = {"tiny": 459_776, "vaswani": 7_356_416}
    one = {"encoder_layers": 1, "decoder_layers": 1}
    preset = {**PRESETS[name], **one, "position": PositionConfig(**PRESETS[name].get("position", {}))}
    model = Transformer(ModelConfig(**preset), 100, 100)
    embedding = 100 * preset["d_model"]
    assert sum(p.numel() for p in model.parameters()) - embedding == known[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model is 0; allowed: 1 to 65536"),
        ({"d_model": 10**9}, "d_model is 1000000000; allowed"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed"),
        ({"num_heads": 3}, "d_model 256 is not a multiple of num_heads 3"),
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"num_kv_heads": -1}, "num_heads 4 is not a multiple of num_kv_heads -1"),
        ({"d_model": 36}, "9 features a head; rotary positions turn pairs"),
        ({"score": "dot"}, "score is 'dot'; allowed: scaled_dot"),
        ({"score": "symmetric", "num_kv_heads": 2}, "num_kv_heads must be num_heads 4"),
        ({"attention": "fast"}, "attention is 'fast'; allowed: auto, reference"),
        ({"d_model": 9, "num_heads": 3, "position": PositionConfig("sinusoidal")}, "d_model is 9; sinusoidal"),
    ],
)
def test_config_says_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "absolute"}, "kind is 'absolute'; allowed: none, sinusoidal"),
        ({"factor": 0.5}, "factor at least 1"),
        ({"base": -1.0}, "base must be positive"),
        ({"kind": "t5", "num_buckets": 7}, "num_buckets must be even"),
        ({"kind": "t5", "max_distance": 12}, "max_distance above"),
        ({"kind": "learned", "max_len": 10**12}, "max_len is 1000000000000; allowed: 1 to 65536"),
    ],
)
def test_position_says_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        PositionConfig(**options)


def test_checking_a_config_draws_no_random_number():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    PositionConfig("learned")
    PositionConfig("t5")
    assert torch.equal(torch.get_rng_state(), before)
