"""The textbook module: its formula, its axes, its messages."""

import math

import pytest
import torch
import torch.nn.functional as F

from mtattn.attention import Attention


@pytest.mark.parametrize("axes", [(), (2,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_torch_for_any_leading_axes(axes, masked):
    Q, K, V = torch.randn(*axes, 5, 8), torch.randn(*axes, 6, 8), torch.randn(*axes, 6, 8)
    mask = torch.ones(5, 6).tril(1).bool() if masked else None
    context, weights = Attention(8)(Q, K, V, mask=mask, return_weights=True)
    torch.testing.assert_close(context, F.scaled_dot_product_attention(Q, K, V, mask))
    torch.testing.assert_close(weights.sum(-1), torch.ones(*axes, 5))
    torch.testing.assert_close(weights @ V, Attention(8)(Q, K, V, mask=mask))


def test_by_hand():
    Q, K, V = torch.tensor([[2.0]]), torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0, 0.0], [20.0, 1.0]])
    share = 1 / (1 + math.exp(-2.0))
    context = Attention(1)(Q[None], K[None], V[None])[0, 0]
    assert context.tolist() == pytest.approx([10 + 10 * share, share])


def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient():
    Q = torch.randn(1, 2, 4, requires_grad=True)
    K = torch.randn(1, 3, 4)
    context, weights = Attention(4)(Q, K, K, torch.tensor([[True] * 3, [False] * 3]), return_weights=True)
    context.sum().backward()
    assert not context[0, 1].any() and not weights[0, 1].any() and not Q.grad[0, 1].any() and Q.grad[0, 0].any()


def test_it_has_no_parameters():
    assert not list(Attention(4).parameters())


x = torch.zeros(2, 3, 4)
BAD = {
    "d_k": (lambda: Attention(0), "d_k must be an int of at least 1, got 0"),
    "a root": (lambda: Attention(2.0), "got 2.0"),
    "Q": (lambda: Attention(5)(x, x, x), r"Q must be \[..., length, 5\], got \[2, 3, 4\]"),
    "K": (lambda: Attention(4)(x, x[0, 0], x), r"K must be \[..., length, 4\], got \[4\]"),
    "V": (lambda: Attention(4)(x, x, x[:, :2]), r"V must be \[..., 3, d_v\]"),
    "mask": (lambda: Attention(4)(x, x, x, mask=torch.zeros(3, 3)), "mask must be bool"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
