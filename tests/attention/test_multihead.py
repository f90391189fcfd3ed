"""MultiHeadAttention and its caches: the same numbers by every way of computing them."""

import pytest
import torch

from mtattn.attention import (
    SCORES,
    ALiBi,
    BeamTree,
    KVCache,
    MultiHeadAttention,
    Rotary,
    T5Bias,
    capture_weights,
    causal,
    key_padding,
    sliding_window,
)

CAUSAL_POSITIONS = {
    "none": lambda: None,
    "rotary": lambda: Rotary(8),
    "t5": lambda: T5Bias(4),
    "alibi": lambda: ALiBi(4),
}


def layer(**options):
    torch.manual_seed(0)
    made = MultiHeadAttention(32, 4, **options).double().eval()
    if isinstance(made.position, T5Bias):
        torch.nn.init.normal_(made.position.table.weight)
    return made


@pytest.mark.parametrize("position", CAUSAL_POSITIONS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_cached_steps_equal_one_causal_pass(position, kv_heads):
    attention = layer(num_kv_heads=kv_heads, position=CAUSAL_POSITIONS[position](), qk_norm=True)
    x = torch.randn(3, 9, 32, dtype=torch.double)
    whole = attention(x, mask=causal())
    cache = KVCache(capacity=2)
    with torch.no_grad():
        parts = [attention(part, mask=causal(), cache=cache) for part in x.split([4, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert len(cache) == 9 and cache.positions.tolist() == list(range(9))


@pytest.mark.parametrize("score", SCORES)
def test_projected_memory_equals_cross_attention(score):
    attention = layer(score=score)
    x, memory = torch.randn(2, 3, 32, dtype=torch.double), torch.randn(2, 5, 32, dtype=torch.double)
    mask = key_padding(torch.tensor([[True] * 5, [True] * 2 + [False] * 3]))
    torch.testing.assert_close(
        attention(x, cache=attention.project_memory(memory), mask=mask), attention(x, memory, mask=mask)
    )


@pytest.mark.parametrize("position", CAUSAL_POSITIONS)
def test_beam_tree_equals_each_hypothesis_alone(position):
    attention, sentences, beams, steps = layer(position=CAUSAL_POSITIONS[position]()), 2, 3, 5
    tree, cache = BeamTree(sentences, beams), KVCache(capacity=1)
    tokens = torch.randn(steps, sentences, beams, 32, dtype=torch.double)
    histories = None
    for step in range(steps):
        parents = torch.randint(beams, (sentences, beams)) if step else None
        mask = tree.extend(parents)
        with torch.no_grad():
            output = attention(tokens[step], mask=mask, cache=cache, positions=tree.positions)
        new = tokens[step][:, :, None]
        if histories is None:
            histories = new
        else:
            moved = histories.gather(1, parents[:, :, None, None].expand(-1, -1, *histories.shape[2:]))
            histories = torch.cat((moved, new), 2)
        alone = attention(histories.flatten(0, 1), mask=causal())[:, -1].view(sentences, beams, 32)
        torch.testing.assert_close(output, alone)


def test_beam_tree_of_one_beam_needs_no_mask():
    tree = BeamTree(2, 1)
    assert tree.extend() is None and tree.extend(torch.zeros(2, 1, dtype=torch.long)) is None
    assert tree.positions.tolist() == [1]


def test_captured_weights_are_those_of_the_output():
    attention = layer()
    x = torch.randn(2, 5, 32, dtype=torch.double)
    with capture_weights(attention) as weights:
        output = attention(x, mask=causal())
    (only,) = weights[""]
    context = (only @ attention.v_proj(x).view(2, 5, 4, 8).transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.out_proj(context), output)
    assert attention.on_weights is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", ["none", "causal", "padding"])
def test_it_equals_torchs_layer_with_the_same_weights(masked, cross, bias):
    ours = layer(bias=bias)
    theirs = torch.nn.MultiheadAttention(32, 4, bias=bias, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in (ours.q_proj, ours.k_proj, ours.v_proj)]))
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([p.bias for p in (ours.q_proj, ours.k_proj, ours.v_proj)]))
            theirs.out_proj.bias.copy_(ours.out_proj.bias)
    x = torch.randn(2, 5, 32, dtype=torch.double, requires_grad=True)
    memory = torch.randn(2, 7, 32, dtype=torch.double, requires_grad=True) if cross else x
    S = memory.shape[1]
    keep = torch.arange(S) < torch.tensor([[S], [2]])
    hidden = {"causal": torch.ones(5, S).triu(1).bool()}.get(masked)
    padding = ~keep if masked == "padding" else None
    mask = {"none": None, "causal": causal(), "padding": key_padding(keep)}[masked]
    expected = theirs(x, memory, memory, attn_mask=hidden, key_padding_mask=padding, need_weights=True)
    with capture_weights(ours) as weights:
        output = ours(x, memory if cross else None, mask=mask)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(weights[""][0].mean(1), expected[1])
    inputs = (x, memory) if cross else (x,)
    gradients = [torch.autograd.grad(y.square().sum(), inputs) for y in (output, expected[0])]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


def test_capture_finds_layers_by_name_and_one_tensor_for_each_call():
    model = torch.nn.ModuleDict({"first": layer(), "second": layer(num_kv_heads=1)})
    x = torch.randn(2, 5, 32, dtype=torch.double)
    with capture_weights(model) as weights:
        model["second"](x)
        model["second"](x[:, :3], x)
    assert [w.shape for w in weights["second"]] == [(2, 4, 5, 5), (2, 4, 3, 5)] and weights["first"] == []
    assert not weights["second"][0].requires_grad
    model["second"](x)
    assert len(weights["second"]) == 2


def test_capture_changes_no_output_and_ends_after_an_error():
    attention = layer(dropout=0.5).train()
    x = torch.randn(2, 5, 32, dtype=torch.double)
    torch.manual_seed(1)
    without = attention(x)
    torch.manual_seed(1)
    with pytest.raises(KeyError), capture_weights(attention) as weights:
        assert attention(x).equal(without)
        torch.testing.assert_close(weights[""][0].sum(-1), torch.ones(2, 4, 5, dtype=torch.double))
        raise KeyError
    assert attention.on_weights is None


def test_dropout_acts_only_while_training():
    attention, x = layer(dropout=0.5), torch.randn(2, 5, 32, dtype=torch.double)
    assert attention(x).equal(attention(x))
    assert not attention.train()(x).equal(attention(x))


def test_qk_norm_makes_scores_blind_to_the_size_of_the_input():
    attention, x = layer(qk_norm=True), torch.randn(2, 5, 32, dtype=torch.double)
    with capture_weights(attention) as weights:
        attention(x)
        attention(100 * x)
    torch.testing.assert_close(*weights[""], atol=1e-4, rtol=1e-4)
    assert attention.q_norm.weight.shape == attention.k_norm.weight.shape == (8,)


def test_d_head_is_free_when_given():
    attention = MultiHeadAttention(30, 4, num_kv_heads=2, d_head=6)
    assert attention.q_proj.weight.shape == (24, 30) and attention.v_proj.weight.shape == (12, 30)
    assert attention(torch.randn(2, 3, 30)).shape == (2, 3, 30)


def test_a_window_moves_with_the_cache():
    attention, window = layer(), causal() & sliding_window(3)
    x, cache = torch.randn(1, 8, 32, dtype=torch.double), KVCache()
    with torch.no_grad():
        steps = [attention(x[:, t : t + 1], mask=window, cache=cache) for t in range(8)]
    torch.testing.assert_close(torch.cat(steps, 1), attention(x, mask=window))


def test_selected_rows_decode_on():
    attention, x = layer(position=Rotary(8)), torch.randn(3, 6, 32, dtype=torch.double)
    cache, rows = KVCache(), torch.tensor([2, 0])
    with torch.no_grad():
        attention(x[:, :4], mask=causal(), cache=cache)
        cache.select(rows)
        rest = attention(x[rows, 4:], mask=causal(), cache=cache)
    torch.testing.assert_close(rest, attention(x, mask=causal())[rows, 4:])


@pytest.mark.parametrize("position", CAUSAL_POSITIONS)
def test_given_positions_stand_for_counted_ones(position):
    attention, x = layer(position=CAUSAL_POSITIONS[position]()), torch.randn(2, 5, 32, dtype=torch.double)
    torch.testing.assert_close(attention(x, positions=torch.arange(5)), attention(x))
    moved = attention(x, positions=torch.arange(40, 45))  # every difference stays the same
    torch.testing.assert_close(moved, attention(x))
    if position != "none":
        assert not torch.allclose(attention(x, positions=torch.tensor([0, 9, 3, 1, 2])), attention(x))


x = torch.zeros(2, 3, 32)
BAD = {
    "heads": (lambda: MultiHeadAttention(30, 4), "num_heads must divide d_model = 30, got 4"),
    "kv heads": (lambda: MultiHeadAttention(32, 4, 3), "num_kv_heads must divide num_heads = 4, got 3"),
    "sizes": (lambda: MultiHeadAttention(32, 0), "at least 1"),
    "d_head": (lambda: MultiHeadAttention(32, 4, d_head=0), "at least 1"),
    "score": (lambda: MultiHeadAttention(32, 4, score="dot"), "score must be one of scaled_dot, .*got 'dot'"),
    "symmetric": (lambda: MultiHeadAttention(32, 4, 2, score="symmetric"), "num_kv_heads must equal num_heads = 4"),
    "impl": (lambda: MultiHeadAttention(32, 4, impl="fast"), "impl must be one of auto, reference"),
    "dropout": (lambda: MultiHeadAttention(32, 4, dropout=1.0), r"dropout must be in \[0, 1\)"),
    "rank": (lambda: MultiHeadAttention(32, 4)(x[0]), r"x must be \[B, length, 32\], got \[3, 32\]"),
    "d_model": (lambda: MultiHeadAttention(32, 4)(x[..., :8]), r"x must be \[B, length, 32\]"),
    "memory": (lambda: MultiHeadAttention(32, 4)(x, x[..., :8]), r"memory must be \[B, length, 32\]"),
    "rotary of another d_head": (lambda: MultiHeadAttention(32, 4, position=Rotary(16)), "a Rotary of d_head = 16"),
    "memory twice": (
        lambda: MultiHeadAttention(32, 4)(x, x, cache=KVCache()),
        "memory or cache, not both",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
