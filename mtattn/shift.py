"""Where two sides of a corpus slipped against each other, seen from the lengths of their lines alone.

A long sentence has a long translation, so within a window of lines the lengths of the two sides correlate (Gale and
Church 1993 align texts by it). Where one side lost a line, the correlation falls to nothing from there on, and moving
that side by one line brings it back. Lines sorted by length hide a shift: inside a window nothing then varies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

WINDOW = 200  # lines; chance alone gives a correlation of 0.4 in such a window once in 10^8 trials
FEWEST = 50  # lines in a window of a small corpus; smaller ones say nothing
NEAR = 20  # lines that a side may have slipped by
RESTORED, RISE = 0.4, 0.35  # correlation after moving one side, and by how much more that is than before
UNRELATED, VARIED = 0.15, 0.25  # correlation of what does not belong together; deviation of log-lengths that can tell
BRIDGE = 3  # windows in a row that may be undecided inside a shifted part

Lengths = NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """From pair `start` up to pair `stop` (numbers from 0), source line n goes with target line n + `by`."""

    start: int
    stop: int
    by: int


@dataclass(frozen=True)
class Window:
    """One window: its first line, its correlation as it stands, the shift that restores it (0: none), its spread."""

    start: int
    correlation: float
    by: int
    spread: float


def scan(src: ArrayLike, tgt: ArrayLike, reach: int = NEAR) -> tuple[list[Window], int]:
    """The windows of a corpus and their size; none where it is too small to say anything.

    Args:
        src, tgt: [N] lengths of the lines in characters.
        reach: shifts to try, in lines, either way.
    """
    x, y = _log(src), _log(tgt)
    size = min(WINDOW, len(x) // 4)
    if size < FEWEST:
        return [], size
    return [_window(x, y, start, size, reach) for start in range(0, len(x) - size + 1, size)], size


def find_shifts(src: ArrayLike, tgt: ArrayLike, reach: int = NEAR) -> list[Shift]:
    """The parts of at least two windows' length that slipped by up to `reach` lines, with their first and last line."""
    x, y = _log(src), _log(tgt)
    windows, size = scan(src, tgt, reach)
    shifts = []
    for by, first, last in _runs([window.by for window in windows]):
        before = slice(max(0, windows[first].start - size), windows[first].start + size)
        after = slice(windows[last].start, min(len(x), windows[last].start + 2 * size))
        start = 0 if first == 0 else before.start + _turn(x, y, before, by)
        ends = last == len(windows) - 1
        stop = len(x) if ends else after.stop - _turn(x[::-1], y[::-1], _mirror(after, len(x)), -by)
        shifts.append(Shift(start, stop, by))
    return shifts


def unrelated_share(windows: Sequence[Window]) -> float:
    """Share of the windows where lengths vary on both sides, do not correlate, and no shift changes that."""
    lost = sum(w.correlation < UNRELATED and w.by == 0 and w.spread >= VARIED for w in windows)
    return lost / max(len(windows), 1)


def _log(lengths: ArrayLike) -> Lengths:
    return np.log(np.asarray(lengths, dtype=np.float64) + 10)  # + 10: a blank line shall not outweigh all others


def _window(x: Lengths, y: Lengths, start: int, size: int, reach: int) -> Window:
    low, high = max(0, start - reach), min(len(y), start + size + reach)
    moved = sliding_window_view(y[low:high], size)  # [shifts, size]
    moved = moved - moved.mean(1, keepdims=True)
    here = x[start : start + size] - x[start : start + size].mean()
    norms = np.linalg.norm(moved, axis=1) * np.linalg.norm(here)
    correlations = (moved @ here) / np.maximum(norms, 1e-9)
    unmoved = float(correlations[start - low])
    best = int(correlations.argmax())
    restored = correlations[best] >= max(RESTORED, unmoved + RISE)
    spread = float(min(here.std(), moved[start - low].std()))
    return Window(start, unmoved, best + low - start if restored else 0, spread)


def _runs(found: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(shift, first window, last window) of each run of one shift; undecided windows inside are bridged."""
    numbered = [(by, i) for i, by in enumerate(found) if by]
    run: list[int] = []
    for by, group in groupby(numbered, key=lambda item: item[0]):
        for _, i in group:
            if run and i - run[-1] > BRIDGE + 1:
                yield from _run(by, run)
                run = []
            run.append(i)
        yield from _run(by, run)
        run = []


def _run(by: int, run: list[int]) -> Iterator[tuple[int, int, int]]:
    if len(run) > 1:  # one window alone may be chance
        yield by, run[0], run[-1]


def _turn(x: Lengths, y: Lengths, part: slice, by: int) -> int:
    """The line of `part`, from its beginning, at which moving y by `by` starts to fit better than leaving it."""
    numbers: NDArray[Any] = np.arange(part.start, part.stop)
    moved = np.clip(numbers + by, 0, len(y) - 1)
    offset = x.mean() - y.mean()
    stay = (x[numbers] - y[numbers] - offset) ** 2
    move = (x[numbers] - y[moved] - offset) ** 2
    gain = np.concatenate([[0.0], np.cumsum(stay - move)])
    return int(gain.argmin())


def _mirror(part: slice, total: int) -> slice:
    return slice(total - part.stop, total - part.start)
