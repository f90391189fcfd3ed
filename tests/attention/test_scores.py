"""Kinds of score: each against its paper's formula, one pair of vectors at a time."""

import math

import pytest
import torch

from mtattn.attention import IMPLS, SCORES, MultiHeadAttention, Rotary, capture_weights, causal, key_padding

H, HKV, E, T, S = 4, 2, 6, 3, 5


def formula(score, q, k, head):
    """The score of two vectors [E] in this head, as the paper has it."""
    group = head // (H // HKV)
    return {
        "scaled_dot": lambda: q @ k / math.sqrt(E),
        "symmetric": lambda: q @ k / math.sqrt(E),
        "multiplicative": lambda: q @ score.weight[head] @ k,
        "cosine": lambda: score.log_temperature[head, 0, 0].exp() * (q @ k) / (q.norm() * k.norm()),
        "additive": lambda: (
            torch.tanh(q @ score.query_weight[head] + k @ score.key_weight[group]) @ score.weight[head, :, 0]
        ),
    }


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_its_formula(name):
    torch.manual_seed(0)
    score = SCORES[name](H, HKV, E).double()
    for parameter in score.parameters():
        torch.nn.init.normal_(parameter)
    q, k = torch.randn(2, H, T, E, dtype=torch.double), torch.randn(2, HKV, S, E, dtype=torch.double)
    scores = score(q, k)
    assert scores.shape == (2, H, T, S)
    for head in range(H):
        for t in range(T):
            for s in range(S):
                expected = formula(score, q[1, head, t], k[1, head // 2, s], head)[name]()
                torch.testing.assert_close(scores[1, head, t, s], expected)


@pytest.mark.parametrize("name", ["multiplicative", "cosine"])
def test_scores_start_like_their_papers(name):
    q, k = torch.randn(1, H, T, E), torch.randn(1, HKV, S, E)
    score = SCORES[name](H, HKV, E)
    if name == "multiplicative":
        torch.testing.assert_close(score(q, k), SCORES["scaled_dot"](H, HKV, E)(q, k))
    else:
        assert score(q, k).abs().max() <= 10.0 and score(q, q[:, ::2])[0, 0].diagonal().allclose(torch.tensor(10.0))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_symmetric_scores_equal_their_transpose(qk_norm, rotary):
    attention = MultiHeadAttention(24, H, score="symmetric", qk_norm=qk_norm, position=Rotary(E) if rotary else None)
    x = torch.randn(2, 5, 24)
    q = attention._queries(x, None)
    k, _ = attention._keys_values(x, None)
    scores = attention.score(q, k)
    torch.testing.assert_close(scores, scores.transpose(-2, -1))
    assert "k_proj.weight" not in attention.state_dict() and attention.k_proj is None and attention.k_norm is None
    plain = MultiHeadAttention(24, H)
    k, _ = plain._keys_values(x, None)
    assert not torch.allclose(plain.score(plain._queries(x, None), k).mT, plain.score(plain._queries(x, None), k))


@pytest.mark.parametrize("name", SCORES)
def test_every_score_runs_trains_and_is_captured(name):
    torch.manual_seed(0)
    attention = MultiHeadAttention(24, H, score=name)
    x = torch.randn(2, 5, 24, requires_grad=True)
    mask = causal() & key_padding(torch.tensor([[True] * 5, [False] * 5]))
    with capture_weights(attention) as weights:
        output = attention(x, mask=mask)
    torch.testing.assert_close(weights[""][0][0].sum(-1), torch.ones(H, 5))
    assert not weights[""][0][1].any() and not output[1].any() and output[0].any()
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in attention.parameters())


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl not in ("flex", "banded", "sdpa")])
def test_every_score_is_the_same_on_every_path(name, impl):
    torch.manual_seed(0)
    attention = MultiHeadAttention(24, H, score=name, softcap=4.0).double()
    x = torch.randn(2, 5, 24, dtype=torch.double)
    expected = attention(x, mask=causal())
    attention.impl = impl
    torch.testing.assert_close(attention(x, mask=causal()), expected)
