"""Prepared products: float32 is torch's own, int8 is near it, and no row feels another."""

import pytest
import torch
import torch.nn.functional as F

from mtattn.linear import LINEARS, Float16Linear, Float32Linear, Int8Linear, NarrowInt8Linear, unavailable

X86 = torch.cpu.get_capabilities()["architecture"] == "x86_64"
INT8 = [Int8Linear, NarrowInt8Linear] if X86 else [Int8Linear]  # whichever this processor is better at
HERE = [kind for kind in LINEARS if not unavailable(kind)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", HERE)
@pytest.mark.parametrize("num_rows", [1, 7, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_torch(kind, num_rows, with_bias):
    x, weight, add = random(num_rows, 64), random(4000, 64, seed=1), random(num_rows, 4000, seed=2)
    bias = random(4000, seed=3) if with_bias else None
    expected, linear = F.linear(x, weight, bias), LINEARS[kind](weight, bias)
    tolerance = 1e-4 if kind == "none" else 0.03 * float(expected.std())  # two roundings to 1 / 127 of the largest
    out = torch.empty_like(expected)
    assert linear(x, out=out).data_ptr() == out.data_ptr()
    for found, wanted in ((linear(x), expected), (out, expected), (linear(x, add), expected + add)):
        assert (found - wanted).abs().mean() < tolerance
        assert (found - wanted).abs().max() < 6 * tolerance


@pytest.mark.parametrize("kind", INT8)
def test_int8_rows_do_not_feel_each_other(kind):
    linear, x = kind(random(50, 32)), random(9, 32, seed=1) * 10.0 ** torch.arange(-4.0, 5)[:, None]
    together = linear(x)
    for i in range(9):
        assert torch.equal(linear(x[i : i + 1])[0], together[i])


@pytest.mark.parametrize("kind", INT8)
def test_int8_of_zeros_is_zero(kind):
    weight = random(5, 8)
    weight[2] = 0
    assert kind(weight)(random(3, 8, seed=1))[:, 2].abs().max() == 0
    assert kind(weight)(torch.zeros(2, 8)).abs().max() == 0


@pytest.mark.parametrize("kind", INT8)
def test_int8_sums_do_not_overflow(kind):
    # All inputs and weights at their largest, of either sign: the sums are as large as sums of 16 bits and 32 can be.
    signs = torch.tensor([1.0, -1.0])
    x, weight = signs[:, None].expand(2, 256).contiguous(), signs[:, None].expand(2, 256).contiguous()
    torch.testing.assert_close(kind(weight)(x), x @ weight.T)


@pytest.mark.skipif("float16" not in HERE, reason=unavailable("float16"))
def test_float16_rounds_weights_and_nothing_else():
    x, weight = random(5, 64) * 1e5, random(40, 64, seed=1)  # inputs and sums that 16 bits do not hold
    torch.testing.assert_close(Float16Linear(weight)(x), x @ weight.half().float().T)


def test_int8_takes_a_quarter_of_the_memory():
    weight = random(64, 32)
    assert 4 * Int8Linear(weight).weight.nbytes == Float32Linear(weight).weight.nbytes
