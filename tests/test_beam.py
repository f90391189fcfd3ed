"""One step of beam search against the plain way: a stable sort of everything."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtattn.beam import WIDTH, best_continuations, top_continuations

SIZES = (  # a seed, N, K, V
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([1, 2, 7, WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH, 200, 1000]),  # 200 and 1000 in other blocks
)


def sorted_continuations(log_probs: Tensor, live: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The K best by a stable sort, so that of equals the lower place and then the lower token comes first."""
    _, k, v = log_probs.shape
    order = (log_probs + live[:, :, None]).flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return (log_probs + live[:, :, None]).flatten(1).gather(1, order), order // v, order % v


def as_rows(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K, V] as [R, V], and which row is whose."""
    n, k, _ = log_probs.shape
    return log_probs.flatten(0, 1), torch.arange(n * k).view(n, k)


@settings(deadline=None, max_examples=60)
@given(*SIZES)
def test_best_continuations_equal_a_stable_sort(seed, n, k, v):
    g = torch.Generator().manual_seed(seed)
    log_probs = torch.randint(-20, 5, (n, k, v), generator=g).float()  # few values: many are equal
    log_probs[torch.rand(n, k, v, generator=g) < 0.2] = -math.inf
    live = -torch.randint(0, 10, (n, k), generator=g).float()
    expected = sorted_continuations(log_probs, live)
    values, places, tokens = best_continuations(*as_rows(log_probs.clone()), live)
    assert torch.equal(values, expected[0])
    real = values > -math.inf  # where nothing is left, place and token mean nothing
    assert torch.equal(places[real], expected[1][real])
    assert torch.equal(tokens[real], expected[2][real])
    assert ((places >= 0) & (places < k) & (tokens >= 0) & (tokens < v)).all()


@settings(deadline=None, max_examples=60)
@given(*SIZES)
def test_top_continuations_equal_a_sort_but_for_the_order_of_equals(seed, n, k, v):
    g = torch.Generator().manual_seed(seed)
    log_probs, live = -torch.randint(0, 20, (n, k, v), generator=g).float(), -torch.randint(0, 9, (n, k), generator=g)
    log_probs[torch.rand(n, k, v, generator=g) < 0.2] = -math.inf
    live = live.float().masked_fill_(torch.rand(n, k, generator=g) < 0.2, -math.inf)
    sums = log_probs + live[:, :, None]
    values, places, tokens = top_continuations(log_probs, live)
    assert torch.equal(values, sums.flatten(1).sort(descending=True).values[:, :k])
    real = values > -math.inf  # where nothing is left, place and token mean nothing
    assert torch.equal(values[real], sums[torch.arange(n)[:, None], places, tokens][real])
    assert all(len(row[kept].unique()) == kept.sum() for row, kept in zip(places * v + tokens, real, strict=True))
    assert ((places >= 0) & (places < k) & (tokens >= 0) & (tokens < v)).all()


def test_a_hypothesis_that_is_none_is_not_continued():
    log_probs, live = torch.zeros(1, 3, 10), torch.tensor([[-math.inf, 0.0, -math.inf]])
    _, places, tokens = best_continuations(*as_rows(log_probs), live)
    assert places.tolist() == [[1, 1, 1]]
    assert tokens.tolist() == [[0, 1, 2]]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([2, 5, WIDTH + 1, 300]))
def test_empty_places_need_no_rows(seed, v):
    g = torch.Generator().manual_seed(seed)
    log_probs, live = (
        torch.randint(-9, 5, (3, 4, v), generator=g).float(),
        -torch.randint(0, 9, (3, 4), generator=g).float(),
    )
    alive = torch.rand(3, 4, generator=g) < 0.5
    alive[torch.arange(3), torch.randint(0, 4, (3,), generator=g)] = True
    live.masked_fill_(~alive, -math.inf)
    rows = torch.tensor(
        [[next(i for i in (*range(k, 4), *range(k)) if a[i]) for k in range(4)] for a in alive.tolist()]
    )
    rows = (alive.flatten().cumsum(0) - 1).view(3, 4).gather(1, rows)
    expected = best_continuations(*as_rows(log_probs.clone()), live)
    values, places, tokens = best_continuations(log_probs[alive], rows, live)
    assert torch.equal(values, expected[0])
    real = values > -math.inf
    assert torch.equal(places[real], expected[1][real])
    assert torch.equal(tokens[real], expected[2][real])


def test_diversity_counts_the_better_siblings():
    log_probs, live = torch.tensor([[[5.0, 4.0, 3.0], [2.5, 1.0, 0.0], [-9.0, -9.0, -9.0]]]), torch.zeros(1, 3)
    # Of 5, 4, 3 and 2.5 with 1 taken for each better sibling: 5, 4 - 1, 3 - 2, 2.5
    values, places, tokens = best_continuations(*as_rows(log_probs), live, diversity=1.0)
    assert values.tolist() == [[5.0, 4.0, 2.5]]
    assert places.tolist() == [[0, 0, 1]]
    assert tokens.tolist() == [[0, 1, 0]]


@settings(deadline=None, max_examples=40)
@given(*SIZES, st.sampled_from([0.5, 2.0]))
def test_diversity_equals_choosing_among_the_ranked_of_each_hypothesis(seed, n, k, v, diversity):
    g = torch.Generator().manual_seed(seed)
    log_probs, live = -torch.rand(n, k, v, generator=g) * 9, -torch.rand(n, k, generator=g)
    ranked, tokens = log_probs.sort(dim=2, descending=True)
    scores = ranked + live[:, :, None] - diversity * torch.arange(v)
    order = scores.flatten(1).sort(dim=1, descending=True).indices[:, :k]
    values, places, found = best_continuations(*as_rows(log_probs.clone()), live, diversity)
    assert torch.equal(values, (ranked + live[:, :, None]).flatten(1).gather(1, order))
    assert torch.equal(places, order // v)
    assert torch.equal(found, tokens.flatten(1).gather(1, order))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_softmax_is_what_a_search_relies_on(dtype, scale):
    logits = (scale * torch.randn(97, 5000, generator=torch.Generator().manual_seed(0))).to(dtype)
    together = logits.log_softmax(-1, dtype=torch.float32)
    assert together.amax() <= 0  # or a search could stop too early
    for n in (0, 50, 96):  # a sentence does not feel its neighbours
        assert torch.equal(logits[n : n + 1].log_softmax(-1, dtype=torch.float32)[0], together[n])


def test_a_hypothesis_that_is_none_leaves_nothing_when_all_others_are_spent():
    log_probs = torch.tensor([[0.0, 0.0, 0.0], [-math.inf] * 3])
    values, _, _ = best_continuations(log_probs, torch.tensor([[0, 1]]), torch.tensor([[-math.inf, 0.0]]))
    assert values.tolist() == [[-math.inf, -math.inf]]
