"""RMSNorm: torch's own is the reference, values and gradients."""

import pytest
import torch
from torch import nn

from mtattn.attention.norm import RMSNorm

SHAPES = [(8,), (5, 8), (2, 3, 4, 8), (0, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_torch(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = RMSNorm(8).to(dtype), nn.RMSNorm(8, eps=1e-6).to(dtype)
    with torch.no_grad():
        theirs.weight.copy_(torch.randn(8, generator=generator))
        ours.weight.copy_(theirs.weight)
    values, upstream = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    outcomes = []
    for norm in (ours, theirs):
        x = values.clone().requires_grad_()
        y = norm(x)
        y.backward(upstream)
        outcomes.append((y.detach(), x.grad, norm.weight.grad))
    for mine, reference in zip(*outcomes, strict=True):
        assert mine.dtype == reference.dtype == dtype
        torch.testing.assert_close(mine, reference)


def test_gradcheck():
    norm = RMSNorm(6).double()
    with torch.no_grad():
        norm.weight.normal_()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, x), (x, norm.weight))


def test_zeros_and_large_values_stay_finite():
    for value in (0.0, 1e-20, 1e15):
        x = torch.full((2, 8), value, requires_grad=True)
        y = RMSNorm(8)(x)
        y.sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()


def test_not_contiguous():
    norm, x = RMSNorm(4), torch.randn(4, 5, 6).transpose(0, 2)  # [6, 5, 4]
    x.requires_grad_()
    torch.testing.assert_close(norm(x), nn.functional.rms_norm(x, (4,), eps=1e-6))
    norm(x).backward(torch.randn(4, 5, 6).transpose(0, 2))


def test_second_derivative_is_refused():
    x = torch.randn(2, 4, requires_grad=True)
    (first,) = torch.autograd.grad(RMSNorm(4)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_weights_load_into_torch():
    ours = RMSNorm(4)
    nn.RMSNorm(4).load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == ["weight"]
