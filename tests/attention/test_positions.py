"""Positions: each against its formula, computed here with plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtattn.attention import POSITIONS, ALiBi, Learned, MultiHeadAttention, Rotary, Sinusoidal, T5Bias

D, H, E, T = 12, 4, 8, 7


@pytest.mark.parametrize("name", POSITIONS)
def test_each_acts_in_its_place_alone(name):
    position = POSITIONS[name].build(D, H, E)
    x, heads, at = torch.randn(2, T, D), torch.randn(2, H, T, E), torch.arange(T)
    if isinstance(position, T5Bias):
        torch.nn.init.normal_(position.table.weight)
    acts = {
        "embedding": not position(x).equal(x),
        "query_key": not position.rotate(heads).equal(heads),
        "scores": position.bias(at, at) is not None,
    }
    assert [place for place, does in acts.items() if does] == ([] if name == "none" else [position.place])


@pytest.mark.parametrize("name", POSITIONS)
def test_no_positions_means_counting_from_zero(name):
    position = POSITIONS[name].build(D, H, E)
    x, heads, at = torch.randn(2, T, D), torch.randn(2, H, T, E), torch.arange(T)
    for positions in (at, at.expand(2, T)):
        torch.testing.assert_close(position(x, positions), position(x))
        torch.testing.assert_close(position.rotate(heads, positions), position.rotate(heads))


@pytest.mark.parametrize("name", POSITIONS)
def test_rows_may_have_their_own_positions(name):
    position = POSITIONS[name].build(D, H, E)
    if isinstance(position, T5Bias):
        torch.nn.init.normal_(position.table.weight)
    x, heads, at = torch.randn(2, 3, D), torch.randn(2, H, 3, E), torch.tensor([[0, 4, 2], [9, 1, 1]])
    for row in range(2):
        torch.testing.assert_close(position(x, at)[row], position(x, at[row])[row])
        torch.testing.assert_close(position.rotate(heads, at)[row], position.rotate(heads, at[row])[row])
        if position.bias(at, at) is not None:
            torch.testing.assert_close(position.bias(at, at)[row], position.bias(at[row], at[row])[0])


def test_sinusoidal_is_the_papers_formula():
    waves = Sinusoidal(D)(torch.zeros(1, T, D))[0]
    for pos in range(T):
        for i in range(D // 2):
            angle = pos / 10000 ** (2 * i / D)
            assert waves[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert waves[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_learned_adds_its_table():
    position = Learned(D, max_len=9)
    x = torch.randn(2, 3, D)
    torch.testing.assert_close(position(x, torch.tensor([8, 0, 3])), x + position.table.weight[[8, 0, 3]])


@pytest.mark.parametrize(("scaling", "factor"), [(None, 1.0), ("linear", 4.0), ("ntk", 4.0)])
def test_rotary_is_the_papers_formula(scaling, factor):
    x = torch.randn(1, 1, T, E, dtype=torch.double)
    turned = Rotary(E, base=100.0, scaling=scaling, factor=factor).rotate(x)
    base = 100.0 * (factor ** (E / (E - 2)) if scaling == "ntk" else 1.0)
    for m in range(T):
        for i in range(E // 2):
            angle = (m / factor if scaling == "linear" else m) * base ** (-2 * i / E)
            a, b = x[0, 0, m, 2 * i], x[0, 0, m, 2 * i + 1]
            expected = [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
            torch.testing.assert_close(turned[0, 0, m, 2 * i : 2 * i + 2], torch.stack(expected))


def test_ntk_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all():
    plain, scaled = Rotary(E).frequencies, Rotary(E, scaling="ntk", factor=8.0).frequencies
    assert (plain / scaled)[0].item() == pytest.approx(1.0) and (plain / scaled)[-1].item() == pytest.approx(8.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 5000))
def test_rotary_scores_depend_on_the_difference_alone(m, n, shift):
    torch.manual_seed(0)
    q, k, rotary = torch.randn(1, 1, 1, E, dtype=torch.double), torch.randn(1, 1, 1, E, dtype=torch.double), Rotary(E)

    def score(q_pos, k_pos):
        return (rotary.rotate(q, torch.tensor([q_pos])) * rotary.rotate(k, torch.tensor([k_pos]))).sum().item()

    assert score(m + shift, n + shift) == pytest.approx(score(m, n), abs=1e-9)


def test_rotary_keeps_lengths_and_turns_back_in_the_gradient():
    x = torch.randn(1, 2, T, E, dtype=torch.double, requires_grad=True)
    turned = Rotary(E).rotate(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    (gradient,) = torch.autograd.grad(turned, x, turned.detach())
    torch.testing.assert_close(gradient, x.detach())


def test_rotary_is_exact_far_out_and_in_half_precision():
    far = torch.tensor([100_000])
    x = torch.randn(1, 1, 1, E)
    torch.testing.assert_close(Rotary(E).rotate(x, far), Rotary(E).rotate(x.double(), far).float())
    rotary = Rotary(E).bfloat16()
    torch.testing.assert_close(rotary.rotate(x.bfloat16(), far), Rotary(E).rotate(x.bfloat16().float(), far).bfloat16())


def test_rotary_after_float32_is_exact_in_float64():
    rotary, x = Rotary(E), torch.randn(1, 1, T, E, dtype=torch.double)
    rotary.rotate(x.float())
    assert rotary.rotate(x).equal(Rotary(E).rotate(x))


def test_alibi_is_the_papers_formula():
    bias = ALiBi(8).bias(torch.tensor([3]), torch.arange(5))
    assert bias.shape == (1, 8, 1, 5)
    for head in range(8):
        for k in range(5):
            assert bias[0, head, 0, k].item() == pytest.approx(-(2 ** -(head + 1)) * abs(3 - k))


def test_alibi_of_six_heads_takes_slopes_between():
    # The published code: the series of 4 heads, then every other one of the series of 8.
    slopes = -ALiBi(6).bias(torch.tensor([1]), torch.tensor([0])).flatten()
    assert slopes.tolist() == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


def test_t5_buckets():
    # num_buckets 8, max_distance 16, both directions: 0, 1 exact; 2 .. up logarithmic; later keys from 4 on.
    position = T5Bias(H, num_buckets=8, max_distance=16)
    before = [position.bucket(torch.tensor(-d)).item() for d in (0, 1, 2, 3, 5, 6, 15, 16, 900)]
    assert before == [0, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [position.bucket(torch.tensor(d)).item() for d in (1, 2, 5, 6, 900)] == [5, 6, 6, 7, 7]
    one_way = T5Bias(H, num_buckets=8, max_distance=16, bidirectional=False)
    assert [one_way.bucket(torch.tensor(-d)).item() for d in (0, 3, 4, 5, 6, 8, 16)] == [0, 3, 4, 4, 5, 6, 7]
    assert one_way.bucket(torch.tensor([1, 5])).tolist() == [0, 0]


def test_t5_bias_reads_its_table():
    position = T5Bias(H, num_buckets=8, max_distance=16)
    torch.nn.init.normal_(position.table.weight)
    bias = position.bias(torch.tensor([4]), torch.tensor([4, 3, 7]))
    assert bias.shape == (1, H, 1, 3)
    torch.testing.assert_close(bias[0, :, 0].T, position.table.weight[[0, 1, 6]])


@pytest.mark.parametrize("name", ["rotary", "t5", "alibi"])
def test_cross_attention_may_have_positions(name):
    attention = MultiHeadAttention(32, H, position=POSITIONS[name].build(32, H, E)).eval()
    x, memory = torch.randn(1, 3, 32), torch.randn(1, 5, 32)
    torch.testing.assert_close(attention(x, cache=attention.project_memory(memory)), attention(x, memory))


BAD = {
    "odd d_head": (lambda: Rotary(7), "d_head must be even"),
    "odd d_model": (lambda: Sinusoidal(7), "d_model must be even"),
    "scaling": (lambda: Rotary(8, scaling="yarn"), "None, 'linear' or 'ntk', got 'yarn'"),
    "factor": (lambda: Rotary(8, scaling="ntk", factor=0.5), "factor at least 1"),
    "base": (lambda: Rotary(8, base=0.0), "base must be positive"),
    "no table": (lambda: Learned(D, max_len=0), "max_len must be at least 1"),
    "too long": (lambda: Learned(D, max_len=4)(torch.zeros(1, 5, D)), "position 4 is beyond the table of 4"),
    "too far": (lambda: Learned(D, 4)(torch.zeros(1, 1, D), torch.tensor([4])), "position 4 is beyond"),
    "odd buckets": (lambda: T5Bias(H, num_buckets=7), "num_buckets must be even"),
    "few buckets": (lambda: T5Bias(H, num_buckets=2), "at least 4"),
    "short distance": (lambda: T5Bias(H, num_buckets=32, max_distance=8), "max_distance above"),
    "no heads": (lambda: ALiBi(0), "num_heads must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_positions_are_named(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_learned_takes_every_position_of_its_table():
    assert Learned(D, max_len=4)(torch.zeros(1, 4, D)).shape == (1, 4, D)
