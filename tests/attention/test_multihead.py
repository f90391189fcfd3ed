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
)

CAUSAL_POSITIONS = {"none": lambda: None, "rotary": lambda: Rotary(8), "t5": lambda: T5Bias(4), "alibi": lambda: ALiBi(4)}


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
