"""Shifted alignment: found from lengths alone, with the line where it begins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtattn.shift import NEAR, WINDOW, find_shifts, scan, unrelated_share

Lengths = NDArray[np.int64]
NUM_LINES = 3000


def lengths(seed: int, total: int = NUM_LINES) -> tuple[Lengths, Lengths]:
    """Lengths of sentences and of their translations, which differ by a fifth or so, as those of real corpora do."""
    draw = np.random.default_rng(seed)
    src = np.exp(draw.normal(4, 0.5, total))
    return src.astype(int), (src * np.exp(draw.normal(0.1, 0.2, total))).astype(int)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(400, 2400), st.integers(1, NEAR), st.booleans())
def test_finds_lines_lost_on_one_side(seed: int, at: int, lost: int, on_source: bool) -> None:
    src, tgt = lengths(seed)
    gone = slice(at, at + lost)
    src, tgt = (np.delete(src, gone), tgt[:-lost]) if on_source else (src[:-lost], np.delete(tgt, gone))
    (shift,) = find_shifts(src, tgt)
    assert shift.by == (lost if on_source else -lost)
    assert abs(shift.start - at) <= 25  # a few pairs of like lengths leave the exact line open
    assert shift.stop == len(src)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_finds_where_a_shift_ends(seed: int) -> None:
    src, tgt = lengths(seed)
    tgt = np.insert(np.delete(tgt, 1000), 1999, 50)  # one line lost, and a stray one later
    (shift,) = find_shifts(src, tgt)
    assert shift.by == -1
    assert abs(shift.start - 1000) <= 25
    assert abs(shift.stop - 2000) <= 25


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["plain", "sorted", "constant", "unrelated", "repeated"]))
def test_sees_no_shift_where_there_is_none(seed: int, kind: str) -> None:
    src, tgt = lengths(seed)
    if kind == "sorted":
        order = np.argsort(src)
        src, tgt = src[order], tgt[order]
    elif kind == "constant":
        src = np.full_like(src, 40)
    elif kind == "unrelated":
        tgt = lengths(seed + 1)[1]
    elif kind == "repeated":
        src, tgt = np.repeat(src, 3), np.repeat(tgt, 3)
    assert find_shifts(src, tgt) == []


@pytest.mark.parametrize("total", [0, 1, 150, WINDOW - 1])
def test_a_tiny_corpus_says_nothing(total: int) -> None:
    src, tgt = lengths(0, total)
    assert find_shifts(src, tgt[::-1]) == []
    assert unrelated_share(scan(src, tgt)[0]) == 0


def test_unrelated_sides_are_told_from_sorted_ones() -> None:
    src, tgt = lengths(0)
    order = np.argsort(src)
    assert unrelated_share(scan(src, lengths(1)[1])[0]) > 0.9
    assert unrelated_share(scan(src, tgt)[0]) == 0
    assert unrelated_share(scan(src[order], tgt[order])[0]) < 0.2
