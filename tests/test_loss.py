"""Losses: torch's, and R-Drop's formula in float64, are the reference; padding and chunks change nothing."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtattn.loss import LossConfig, linear_cross_entropy, linear_rdrop

PAD, V, D = 0, 11, 6


def draw(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [N, D], weight [V, D] and targets [N] of which about a third are padding."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype) for n in (rows, V))
    targets = torch.randint(1, V, (rows,), generator=g) * (torch.rand(rows, generator=g) > 0.3)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def torch_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, targets, ignore_index=PAD, label_smoothing=smoothing, reduction="sum")


def rdrop_formula(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, rdrop: float) -> Tensor:
    """Half of Wu et al. (2021): nll1 + nll2 + rdrop / 2 (KL(p1|p2) + KL(p2|p1)), summed over real tokens."""
    first, second = ((h @ weight.T).log_softmax(-1) for h in hidden.chunk(2))
    nll = sum(torch_cross_entropy(log_p, targets, smoothing) for log_p in (first, second))
    divergence = F.kl_div(second, first, log_target=True, reduction="none")  # torch's order: KL(first | second)
    divergence = divergence + F.kl_div(first, second, log_target=True, reduction="none")
    return (nll + rdrop / 2 * divergence.sum(-1)[targets != PAD].sum()) / 2


def values_and_gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss, *torch.autograd.grad(loss, inputs)]


@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from([0.0, 0.1, 0.9]), st.integers(0, 99))
def test_linear_cross_entropy_equals_torch(rows, chunk, smoothing, seed):
    hidden, weight, targets = draw(rows, seed)
    ours, count = linear_cross_entropy(hidden, weight, targets, pad_id=PAD, label_smoothing=smoothing, chunk=chunk)
    theirs = torch_cross_entropy(hidden @ weight.T, targets, smoothing)
    assert int(count) == int((targets != PAD).sum())
    for mine, reference in zip(*(values_and_gradients(x, hidden, weight) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


@given(
    st.integers(1, 40), st.integers(1, 50), st.sampled_from([0.0, 0.1]), st.sampled_from([0.5, 5.0]), st.integers(0, 99)
)
def test_linear_rdrop_equals_the_formula(rows, chunk, smoothing, rdrop, seed):
    hidden, weight, _ = draw(2 * rows, seed)
    targets = draw(rows, seed)[2]
    ours, count = linear_rdrop(hidden, weight, targets, pad_id=PAD, label_smoothing=smoothing, rdrop=rdrop, chunk=chunk)
    theirs = rdrop_formula(hidden, weight, targets, smoothing, rdrop)
    assert int(count) == int((targets != PAD).sum())
    for mine, reference in zip(*(values_and_gradients(x, hidden, weight) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


def test_gradcheck():
    hidden, weight, targets = draw(4)
    targets[1] = PAD
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, pad_id=PAD, label_smoothing=0.1, chunk=3)[0], (hidden, weight)
    )
    assert torch.autograd.gradcheck(
        lambda h, w: linear_rdrop(h, w, targets[:2], pad_id=PAD, label_smoothing=0.1, rdrop=1.0, chunk=1)[0],
        (hidden, weight),
    )


def test_rdrop_of_two_equal_passes_is_cross_entropy():
    hidden, weight, targets = draw(9)
    twice, _ = linear_rdrop(hidden.repeat(2, 1), weight, targets, pad_id=PAD, label_smoothing=0.1, rdrop=3.0)
    once, _ = linear_cross_entropy(hidden, weight, targets, pad_id=PAD, label_smoothing=0.1)
    torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_losses_in_lower_precision_follow_float64(dtype):
    hidden, weight, targets = draw(64, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    for loss, of in ((linear_cross_entropy, targets), (linear_rdrop, targets[:32])):
        options = {"pad_id": PAD, "label_smoothing": 0.1, **({"rdrop": 1.0} if loss is linear_rdrop else {})}
        ours = values_and_gradients(loss(hidden, weight, of, **options)[0], hidden, weight)
        theirs = values_and_gradients(loss(*exact, of, **options)[0], *exact)
        assert [x.dtype for x in ours] == [torch.float32, dtype, dtype]  # the sum itself is never half precision
        for mine, reference in zip(ours, theirs, strict=True):
            error = (mine.double() - reference).norm() / reference.norm()
            assert error < (1e-5 if dtype == torch.float32 else 2e-2)  # bfloat16 has 8 bits: 0.4 % a rounding


def test_padding_counts_for_nothing():
    hidden, weight, targets = draw(20)
    noise = torch.where((targets == PAD).unsqueeze(-1), 100 * torch.randn(20, D, dtype=torch.float64), 0)
    real = targets != PAD
    outcomes = []
    for h, t in ((hidden, targets), (hidden + noise, targets), (hidden[real], targets[real])):
        loss, count = linear_cross_entropy(h, weight, t, pad_id=PAD, label_smoothing=0.1)
        outcomes.append([loss, count, *torch.autograd.grad(loss, (hidden, weight))])
    for other in outcomes[1:]:
        for mine, reference in zip(other, outcomes[0], strict=True):
            torch.testing.assert_close(mine, reference)
    assert not outcomes[0][2][~real].any()


def test_padding_alone_is_zero():
    hidden, weight, targets = draw(5)
    loss, count = linear_cross_entropy(hidden, weight, torch.zeros_like(targets), pad_id=PAD, label_smoothing=0.1)
    assert (loss.item(), count.item()) == (0.0, 0)
    assert not any(x.any() for x in torch.autograd.grad(loss, (hidden, weight)))


def test_sums_add_up_to_one_big_batch():
    hidden, weight, targets = draw(30)
    whole = values_and_gradients(linear_cross_entropy(hidden, weight, targets, pad_id=PAD)[0], hidden, weight)
    parts = sum(
        linear_cross_entropy(hidden[i], weight, targets[i], pad_id=PAD)[0]
        for i in (slice(0, 7), slice(7, 8), slice(8, 30))
    )
    for mine, reference in zip(values_and_gradients(parts, hidden, weight), whole, strict=True):
        torch.testing.assert_close(mine, reference)


def test_large_logits_stay_finite():
    hidden, weight = 100 * torch.ones(3, D), 100 * torch.randn(V, D)
    loss, _ = linear_cross_entropy(hidden.requires_grad_(), weight, torch.tensor([1, 2, 3]), pad_id=PAD)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, hidden)[0].isfinite().all()


def test_upstream_gradient_scales():
    hidden, weight, targets = draw(8)
    plain = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, pad_id=PAD)[0], (hidden, weight))
    scaled = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, pad_id=PAD)[0] / 4, (hidden, weight))
    for mine, reference in zip(scaled, plain, strict=True):
        torch.testing.assert_close(4 * mine, reference)


@pytest.mark.parametrize("options", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"rdrop": -1.0}])
def test_config_says_what_is_allowed(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*allowed"):
        LossConfig(**options)
