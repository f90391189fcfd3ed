"""Dropout: the rate, the mean, independence, and nothing at all in evaluation."""

import pytest
import torch

from mtattn.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_rate_and_scale(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(400, 501, dtype=dtype)  # not a multiple of the 8 values that one draw decides
    y = Dropout(p)(x)
    assert y.dtype == dtype
    share = (y == 0).double().mean().item()
    exact = round(p * 256) / 256
    assert share == pytest.approx(exact, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)  # five standard deviations
    kept = y[y != 0].unique()
    assert kept.tolist() == [torch.tensor(1 / (1 - exact), dtype=dtype).item()]
    sigma = (p / (1 - p) / x.numel()) ** 0.5
    rounding = torch.finfo(dtype).eps / 2
    assert y.double().mean().item() == pytest.approx(1, abs=5 * sigma + rounding)


def test_values_are_dropped_independently():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(4096, 64)) != 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < 0.1  # 1 / sqrt(4096) = 0.016 is one standard deviation
    assert ((kept.mean(0) - 0.5).abs() < 0.05).all()


def test_evaluation_and_zero_return_the_input_itself():
    x = torch.randn(5, 3)
    assert Dropout(0.4).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_gradient_passes_where_the_value_does():
    x = torch.randn(50, 7, requires_grad=True)
    y = Dropout(0.25)(x)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.allclose(x.grad[y != 0], torch.tensor(256 / 192))


def test_a_seed_repeats_it():
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outcomes.append(Dropout(0.5)(torch.ones(100)))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


@pytest.mark.parametrize("p", [0.998, 0.9999])
def test_near_one_nothing_is_infinite(p):
    assert Dropout(p)(torch.ones(3000)).isfinite().all()


def test_odd_shapes():
    for shape in ((), (0,), (1,), (3, 0, 2), (2, 3, 5)):
        assert Dropout(0.5)(torch.ones(shape)).shape == shape
    assert Dropout(0.5)(torch.ones(6, 4).T).shape == (4, 6)


def test_printout_shows_the_probability():
    assert repr(Dropout(0.3)) == "Dropout(p=0.3)"
