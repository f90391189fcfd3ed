"""Several pairs of sentences in each row of a batch, instead of one that is padded to the longest.

Every packed batch has the same shape, whatever its sentences: what a GPU needs to replay a step that it recorded once
(`mtattn.graph`), and there is little padding. The two sides of a pair stand in the same row; a mask keeps the pairs of
a row apart, and each sentence counts its own positions. A row ends in padding, at least one token on either side, which
sees padding and nothing else: so that no token sees nothing.

Legend: B rows, S, T lengths of a row on the source and the target side, n pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mtattn.attention import Mask, causal, packed

SHORTEST_ROW = 128  # tokens: shorter ones leave more padding, longer ones more scores that are masked
MULTIPLE = 16  # of which row lengths are one, as kernels like it

IntArray = np.ndarray[Any, np.dtype[np.int64]]
Ids = Sequence[int] | np.ndarray[Any, Any]


class Packing(NamedTuple):
    """Which pair each token of a packed batch belongs to, 0 for padding, and its position in its own sentence."""

    src_documents: Tensor  # int32 [B, S]
    src_positions: Tensor  # int32 [B, S]
    tgt_documents: Tensor  # int32 [B, T]
    tgt_positions: Tensor  # int32 [B, T]

    def twice(self) -> "Packing":
        """Of a batch that is repeated: [2 B, ...]."""
        return Packing(*(tensor.repeat(2, 1) for tensor in self))

    def encoder_mask(self) -> Mask:
        """Which source tokens see which."""
        return packed(self.src_documents).assume_complete()

    def decoder_mask(self) -> Mask:
        """Which target tokens see which."""
        return (causal() & packed(self.tgt_documents)).assume_complete()

    def cross_mask(self) -> Mask:
        """Which source tokens each target token sees."""
        return packed(self.tgt_documents, self.src_documents).assume_complete()


@dataclass(frozen=True)
class RowShape:
    """The one shape that all packed batches of a run have: B, S and T."""

    rows: int
    src_len: int
    tgt_len: int

    @classmethod
    def for_lengths(cls, src_lens: IntArray, tgt_lens: IntArray, batch_tokens: int) -> "RowShape":
        """About `batch_tokens` target positions, and as many for sources as the corpus has of them.

        Args:
            src_lens, tgt_lens: pieces of each pair of the corpus.
        """
        ratio = src_lens.mean() / tgt_lens.mean()
        tgt_len = _rounded_up(max(SHORTEST_ROW, tgt_lens.max() + 1, (src_lens.max() + 1) / ratio))
        src_len = _rounded_up(max(src_lens.max() + 1, tgt_len * ratio))
        return cls(max(1, round(batch_tokens / tgt_len)), src_len, tgt_len)


def _rounded_up(length: float) -> int:
    return -int(-length // MULTIPLE) * MULTIPLE


def plan_rows(
    order: IntArray, src_lens: IntArray, tgt_lens: IntArray, shape: RowShape
) -> tuple[list[IntArray], list[IntArray]]:
    """Cut pairs into packed batches: every pair once, and nearly in this order.

    Args:
        order: [n], the numbers of the pairs.
        src_lens, tgt_lens: [n], pieces of each; none longer than a row has room for.

    Returns:
        For each batch the numbers of its pairs, row by row, and the row of each.
    """
    numbers, rows = [], []
    lens = np.stack([src_lens, tgt_lens])  # [2, n]
    ends = np.concatenate([np.zeros((2, 1), dtype=np.int64), lens.cumsum(1)], 1)  # [2, n + 1]
    room = shape.rows * np.array([[shape.src_len - 1], [shape.tgt_len - 1]])
    waiting, start = np.empty(0, dtype=np.int64), 0  # those that found no row in the batch before
    while start < len(order) or len(waiting):
        # As many more as there is room for in all; those for which no row has room wait for the next batch.
        most = ends[:, [start]] + room - lens[:, waiting].sum(1, keepdims=True)  # [2, 1]
        stops = [int(np.searchsorted(end, at, "right")) - 1 for end, at in zip(ends, most[:, 0], strict=True)]
        stop = max(start, min(stops))
        places = np.concatenate([waiting, np.arange(start, stop)])
        found = assign(src_lens[places], tgt_lens[places], shape)
        by_row = np.argsort(found, kind="stable")
        by_row = by_row[found[by_row] >= 0]
        numbers.append(order[places[by_row]])
        rows.append(found[by_row])
        waiting, start = places[found < 0], stop
    return numbers, rows


def assign(src_lens: IntArray, tgt_lens: IntArray, shape: RowShape) -> IntArray:
    """The row of each pair, -1 where none has room: the longest first, each in the first row that has room for it.

    First fit decreasing (Johnson 1973) fills rows to within a few tokens.
    """
    rows = np.full(len(src_lens), -1)
    src_room, tgt_room = (np.full(shape.rows, length - 1) for length in (shape.src_len, shape.tgt_len))
    for i in np.argsort(-(src_lens + tgt_lens), kind="stable"):
        fits = (src_room >= src_lens[i]) & (tgt_room >= tgt_lens[i])
        row = fits.argmax()
        if fits[row]:
            rows[i] = row
            src_room[row] -= src_lens[i]
            tgt_room[row] -= tgt_lens[i]
    return rows


def lay_out(lens: IntArray, rows: IntArray, row_len: int) -> tuple[IntArray, IntArray]:
    """Where the tokens of sentences go that follow each other in their rows, which are ascending.

    Returns:
        The place of each token in the batch, counted row by row, and its position in its sentence.
    """
    ends = np.cumsum(lens)
    starts = ends - lens
    first = np.searchsorted(rows, rows)  # of each sentence's row, the first sentence
    positions = np.arange(ends[-1]) - np.repeat(starts, lens)
    return np.repeat(rows * row_len + starts - starts[first], lens) + positions, positions


def fitted(sampled: Sequence[Ids], plain: Sequence[Ids], rows: IntArray, room: int) -> list[Ids]:
    """Each text as it was sampled, as long as its row has room for what it is longer than the plain one; else that.

    Args:
        sampled, plain: the same texts, cut into pieces by chance and as usual; the plain ones fit.
        rows: [n], the row of each.
        room: tokens in a row.
    """
    spare = room - np.bincount(rows, [*map(len, plain)], rows.max() + 1)
    fitting = []
    for drawn, usual, row in zip(sampled, plain, rows, strict=True):
        more = len(drawn) - len(usual)
        fits = more <= spare[row]
        spare[row] -= more if fits else 0
        fitting.append(drawn if fits else usual)
    return fitting
