"""Samples follow the probabilities they should, depend on their place alone, and never on chance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtattn.decode import DecodeConfig, search
from mtattn.sampling import draw, uniform

PROBS = [0.0, 0.1, 0.4, 0.2, 0.3]  # token 0 is forbidden


def shares(num: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """How often each token is drawn, by random numbers spread evenly over (0, 1]: exact to 1 / num."""
    logits = torch.tensor(PROBS).log().expand(num, 1, -1)
    tokens = draw(logits, (torch.arange(num)[:, None] + 1) / num, temperature, top_k, top_p)
    return (tokens.flatten().bincount(minlength=len(PROBS)) / num).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0, 1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares
        ({"top_k": 1}, [0, 0, 1, 0, 0]),
        ({"top_k": 2}, [0, 0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 99}, [0, 0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.01}, [0, 0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.8}, [0, 0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 3, "top_p": 0.7}, [0, 0, 4 / 7, 0, 3 / 7]),  # of the 0.9 that top_k leaves, 0.63
    ],
)
def test_draw_follows_the_probabilities(options, expected):
    assert shares(3000, **options) == pytest.approx(expected, abs=2e-3)


def test_equally_likely_tokens_are_kept_or_cut_together():
    logits = torch.zeros(100, 1, 4)
    randoms = (torch.arange(100)[:, None] + 1) / 100
    for options in ({"top_k": 1, "top_p": 1.0}, {"top_k": 0, "top_p": 0.3}):
        assert set(draw(logits, randoms, 1.0, **options).flatten().tolist()) == {0, 1, 2, 3}


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2**-24, 0.5, 1 - 2**-24, 1.0]), st.sampled_from([0.1, 1.0, 10.0]))
def test_draw_never_takes_a_forbidden_token(seed, random, temperature):
    g = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(4, 2, 50, generator=g)
    logits[torch.rand(4, 2, 50, generator=g) < 0.5] = -math.inf
    logits[..., 7] = 0
    tokens = draw(logits, torch.full((4, 2), random), temperature, 0, 1.0)
    assert (logits.gather(2, tokens[..., None]) > -math.inf).all()


def test_uniform_numbers_are_uniform_and_independent_of_each_other():
    numbers = torch.stack([uniform(torch.arange(100), 0, step, 10) for step in range(100)])  # [100, 100, 10]
    assert ((numbers > 0) & (numbers <= 1)).all()
    counts = torch.histc(numbers, 100, 0, 1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 150  # chi-squared with 99 degrees of freedom: 99 +- 14
    centred = numbers.double() - 0.5
    for lagged in (
        centred[1:] * centred[:-1],
        centred[:, 1:] * centred[:, :-1],
        centred[:, :, 1:] * centred[:, :, :-1],
    ):
        assert abs(float(lagged.mean())) < 5 / 12 / math.sqrt(lagged.numel())  # five standard deviations from 0


def test_uniform_numbers_depend_on_their_place_alone():
    seeds = torch.tensor([3, -5, 2**40])
    whole = uniform(seeds, 7, 4, 6)
    assert torch.equal(uniform(seeds[[2, 0]], 7, 4, 3), whole[[2, 0], :3])
    assert not torch.equal(uniform(seeds, 8, 4, 6), whole)
    assert not torch.equal(uniform(seeds, 7, 5, 6), whole)
    assert len(whole.unique()) == whole.numel()


class Memoryless:
    """A step whose next token never depends on what was: EOS (2) with probability 0.1, 0.4 for 3, 0.5 for 4."""

    def __call__(self, tokens: Tensor, parents: Tensor | None, alive: Tensor | None = None) -> Tensor:
        return torch.tensor([0.0, 0.0, 0.1, 0.4, 0.5]).log().repeat(*tokens.shape, 1)

    def select(self, sentences: Tensor) -> None:
        pass


def samples(config: DecodeConfig, num: int = 1, seeds: list[int] | None = None) -> list[list[list[int]]]:
    lens = torch.full((num,), 500)
    found = search(Memoryless(), lens, config, bos_id=1, eos_id=2, pad_id=0, seeds=seeds)
    return [[h.ids for h in hyps] for hyps in found]


def test_sampled_sequences_follow_the_model():
    ids = samples(DecodeConfig(search="sample", nbest=400), 5)
    sequences = [sequence for hyps in ids for sequence in hyps]
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.float64)
    assert float(lengths.mean()) == pytest.approx(9, abs=5 * math.sqrt(90 / 2000))  # geometric: mean 9, variance 90
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    assert float((tokens == 3).double().mean()) == pytest.approx(4 / 9, abs=0.02)


def test_the_same_seed_draws_the_same_samples_and_another_seed_others():
    one = DecodeConfig(search="sample", nbest=3, seed=1)
    assert samples(one) == samples(one)
    assert samples(one) != samples(DecodeConfig(search="sample", nbest=3, seed=2))


def test_a_sentences_own_seed_decides_not_its_place():
    config = DecodeConfig(search="sample", nbest=3)
    assert samples(config, 3, [7, 8, 9]) == [samples(config, 1, [seed])[0] for seed in (7, 8, 9)]
    assert samples(config, 2) == samples(config, 2, [0, 1])


def test_samples_are_scored_by_the_model_whatever_the_temperature():
    config = DecodeConfig(search="sample", nbest=3, temperature=0.3, top_k=2)
    lens, probs = torch.tensor([10]), {2: 0.1, 3: 0.4, 4: 0.5}
    for h in search(Memoryless(), lens, config, bos_id=1, eos_id=2, pad_id=0)[0]:
        assert h.token_log_probs == pytest.approx([math.log(probs[i]) for i in h.ids + [2] * h.finished], abs=1e-5)
