"""Masks: each rule against a plain Python definition, their algebra, and what they know about themselves."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtattn.attention import (
    MASKS,
    attend,
    block_mask,
    causal,
    distance_windows,
    key_padding,
    packed,
    prefix_lm,
    sliding_window,
)

B, H, T, S = 2, 3, 6, 8
KEEP = torch.tensor([[True] * 5 + [False] * 3, [False, True] * 4])
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2], [5, 5, 5, 5, 0, 0, 0, 5]])
RULES = {  # name: (mask, the rule in plain Python)
    "causal": (causal(), lambda b, h, q, k: k <= q),
    "key_padding": (key_padding(KEEP), lambda b, h, q, k: KEEP[b][k]),
    "sliding_window": (sliding_window(2), lambda b, h, q, k: -2 < q - k < 2),
    "prefix_lm": (prefix_lm(torch.tensor([3, 0])), lambda b, h, q, k: k < [3, 0][b] or k <= q),
    "packed": (packed(DOCUMENTS[:, :T], DOCUMENTS), lambda b, h, q, k: DOCUMENTS[b][q] == DOCUMENTS[b][k]),
    "distance_windows": (distance_windows(torch.tensor([1, 2, 9])), lambda b, h, q, k: abs(q - k) < [1, 2, 9][h]),
}


def table(rule, num_queries=T, num_keys=S):
    cells = [[[[bool(rule(b, h, q, k)) for k in range(num_keys)] for q in range(num_queries)] for h in range(H)]
             for b in range(B)]  # fmt: skip
    return torch.tensor(cells)


def dense(mask, num_queries=T, num_keys=S):
    return mask.dense(num_queries, num_keys).allowed.expand(B, H, num_queries, num_keys)


def test_every_mask_is_tested():
    assert set(RULES) == set(MASKS)


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_its_rule(name):
    mask, rule = RULES[name]
    assert dense(mask).equal(table(rule))
    assert dense(~mask).equal(~table(rule))


@pytest.mark.parametrize(("left", "right"), itertools.product(MASKS, MASKS))
def test_masks_combine(left, right):
    (a, rule_a), (b, rule_b) = RULES[left], RULES[right]
    assert dense(a & b).equal(table(rule_a) & table(rule_b))
    assert dense(a | b).equal(table(rule_a) | table(rule_b))
    assert dense(~(a | b)).equal(dense(~a & ~b))


def test_one_prefix_for_all_combines_with_what_differs_by_sentence():
    mask = prefix_lm(3)
    assert dense(mask & key_padding(KEEP)).equal(table(lambda b, h, q, k: (k < 3 or k <= q) and KEEP[b][k]))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.booleans())
def test_nothing_is_allowed_outside_the_band(size, other, offset, both):
    one, two = causal() & sliding_window(size), sliding_window(other)
    mask = (one & two if both else one | two).shifted(offset)
    low, high = mask.band
    positions = torch.arange(12)
    distance = positions - positions[:, None]
    seen = distance[mask.dense(12, 12).allowed[0, 0]]
    # Every bound that is reached within the table is tight: a looser band would only cost time.
    assert seen.min() >= low and seen.max() <= high
    assert low < -11 or seen.min() == low
    assert high > 11 or seen.max() == high


@pytest.mark.parametrize("mask", [causal(), key_padding(KEEP), ~sliding_window(2), prefix_lm(3)])
def test_masks_without_a_bound_say_so(mask):
    assert not all(map(math.isfinite, mask.band))


def test_bands_combine_as_their_masks():
    narrow, wide = sliding_window(3), sliding_window(5)
    assert (narrow & wide).band == (wide & narrow).band == (-2, 2)
    assert (narrow | wide).band == (wide | narrow).band == (-4, 4)
    assert (causal() & wide).band == (-4, 0) and wide.shifted(2).band == (-2, 6)


def test_causal_bounds_one_side():
    assert causal().band == (-math.inf, 0) and (~causal()).band == (-math.inf, math.inf)


def test_shifted_counts_queries_from_the_offset():
    assert dense(causal().shifted(2)).equal(table(lambda b, h, q, k: k <= q + 2))
    mask = causal()
    assert mask.shifted(0) is mask
    moved = (causal() & key_padding(KEEP)).shifted(2)
    assert dense(moved).equal(table(lambda b, h, q, k: k <= q + 2 and KEEP[b][k]))
    assert dense(distance_windows(torch.tensor([1, 2, 9])).shifted(1)).equal(
        table(lambda b, h, q, k: abs(q + 1 - k) < [1, 2, 9][h])
    )


def test_a_mask_is_materialised_once_for_each_size():
    mask = causal()
    first = mask.dense(4, 4)
    assert mask.dense(4, 4) is first
    assert mask.dense(4, 5).allowed.shape == (1, 1, 4, 5)
    assert mask.dense(4, 4).allowed.equal(first.allowed)


def test_a_mask_used_for_inference_can_still_be_trained_with():
    mask, x = causal(), torch.randn(1, 1, 4, 4, requires_grad=True)
    bias = torch.zeros(4, 4)
    with torch.inference_mode():
        attend(x, x, x, mask, bias)
    attend(x, x, x, mask, bias).sum().backward()
    assert x.grad is not None


def test_axes_that_a_rule_ignores_stay_one():
    assert key_padding(KEEP).dense(T, S).allowed.shape == (B, 1, 1, S)
    assert causal().dense(T, S).allowed.shape == (1, 1, T, S)
    assert distance_windows(torch.tensor([1, 2, 9])).dense(T, S).allowed.shape == (1, H, T, S)


def test_dense_knows_its_dead_queries():
    assert causal().dense(3, 3).dead is None
    dead = (~causal()).dense(3, 3).dead
    assert dead.flatten().tolist() == [False, False, True]
    additive = (~causal()).dense(3, 3).additive(torch.float32)
    assert additive[0, 0].tolist() == [[-math.inf, 0, 0], [-math.inf, -math.inf, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", MASKS)
def test_each_mask_becomes_a_block_mask(name):
    from torch.nn.attention.flex_attention import create_mask

    mask, rule = RULES[name]
    made = block_mask(mask, B, H, T, S, torch.device("cpu"))
    again = create_mask(made.mask_mod, B, H, T, S, device="cpu")
    assert again.equal(table(rule))
    assert made.seq_lengths == (T, S)


def test_one_prefix_for_all_becomes_a_block_mask():
    from torch.nn.attention.flex_attention import create_mask

    made = block_mask(prefix_lm(3), B, H, T, S, torch.device("cpu"))
    assert create_mask(made.mask_mod, B, H, T, S, device="cpu").equal(table(lambda b, h, q, k: k < 3 or k <= q))


BAD = {
    "float keep": (lambda: key_padding(torch.ones(2, 3)), r"keep must be a bool tensor \[B, S\]"),
    "keep of rank 1": (lambda: key_padding(torch.ones(3) > 0), "got torch.bool"),
    "window of nothing": (lambda: sliding_window(0), "at least 1"),
    "distance of nothing": (lambda: distance_windows(torch.tensor([1, 0])), r"each at least 1, got \[1, 0\]"),
    "distances of rank 2": (lambda: distance_windows(torch.ones(2, 2)), r"must be \[H\]"),
    "prefix of rank 2": (lambda: prefix_lm(torch.ones(2, 2)), r"an int or a tensor \[B\]"),
    "documents of rank 1": (lambda: packed(torch.ones(3)), "document ids"),
    "documents of two batches": (lambda: packed(torch.ones(2, 3), torch.ones(1, 3)), "document ids"),
    "keys beyond the padding": (lambda: key_padding(KEEP).dense(T, 9), "8 keys, but there are 9"),
    "queries beyond the documents": (lambda: packed(DOCUMENTS).dense(6, 8), "8 queries and 8 keys"),
    "padding inside": (lambda: (~(causal() & key_padding(KEEP))).dense(T, 9), "8 keys"),
    "two batches": (lambda: key_padding(KEEP) & key_padding(KEEP[:1]), "batch = 2, the other for 1"),
    "two head counts": (
        lambda: distance_windows(torch.tensor([1])) | distance_windows(torch.tensor([1, 2])),
        "heads = 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_masks_are_named(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_packed_documents_equal_separate_ones():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 8, 4, dtype=torch.double)
    together = attend(q, k, v, packed(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])) & causal())
    apart = [attend(q[:, :, at], k[:, :, at], v[:, :, at], causal()) for at in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(together, torch.cat(apart, 2))


def test_a_mask_that_is_known_to_be_complete_is_not_looked_at(monkeypatch):
    monkeypatch.setattr("mtattn.attention.predicate.Dense.drop_dead_if_none", lambda self: None)  # as while recording
    mask = causal() & packed(torch.tensor([[1, 1, 0, 0]]))
    assert mask.dense(4, 4).dead is not None
    whole = (causal() & packed(torch.tensor([[1, 1, 0, 0]]))).assume_complete()
    assert whole.dense(4, 4).dead is None
    assert torch.equal(whole.dense(4, 4).allowed, mask.dense(4, 4).allowed)
