"""Pairs of sentences laid end to end in one row a side, instead of padded to a common length.

Every packed batch has the same shape, whatever its sentences: what a GPU needs to replay a step that it recorded once
(`mtattn.graph`), and there is next to no padding. A mask keeps the sentences apart, and each counts its own positions.
What is left of a row is filled with pairs of padding, none longer than a real one, so that every token belongs to a
pair on both sides.

Legend: S, T lengths of the source and the target row, P pairs in a row, those of padding included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mtattn.attention import Mask, causal, spans

TILE = 128  # queries that the attention kernel takes at a time: up to so many, a longer span costs nothing
MULTIPLE = 64  # of which row lengths are one: products of such sizes run at full speed

Row = Sequence[int] | np.ndarray[Any, Any]
Int32Array = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Packing:
    """Where the pairs of a packed batch stand, for the model to see them apart."""

    src_starts: Tensor  # int32 [P + 1], where each source begins, and where the last one ends
    tgt_starts: Tensor  # int32 [P + 1]
    src_positions: Tensor  # int32 [S], each token's position in its own sentence, from 0
    tgt_positions: Tensor  # int32 [T]
    longest: int  # no sentence has more tokens

    @classmethod
    def of(cls, tensors: Sequence[Tensor], longest: int) -> "Packing":
        """The one that has these `tensors`."""
        return cls(tensors[0], tensors[1], tensors[2], tensors[3], longest)

    def tensors(self) -> list[Tensor]:
        """All tensors of it, in the order of its fields."""
        return [self.src_starts, self.tgt_starts, self.src_positions, self.tgt_positions]

    def encoder_mask(self) -> Mask:
        """Which source tokens see which."""
        return spans(self.src_starts, longest=self.longest)

    def decoder_mask(self) -> Mask:
        """Which target tokens see which."""
        return causal() & spans(self.tgt_starts, longest=self.longest)

    def cross_mask(self) -> Mask:
        """Which source tokens each target token sees."""
        return spans(self.tgt_starts, self.src_starts, longest=self.longest)


@dataclass(frozen=True)
class RowShape:
    """The one shape that all packed batches of a run have.

    src_len, tgt_len: S and T. num_pairs: P. num_padding: how many of the P are padding. longest: as Packing's.
    """

    src_len: int
    tgt_len: int
    num_pairs: int
    num_padding: int
    longest: int

    @classmethod
    def for_lengths(cls, src_lens: Row, tgt_lens: Row, batch_tokens: int) -> "RowShape":
        """Rows of `batch_tokens` target tokens and as many source tokens as go with them.

        Args:
            src_lens, tgt_lens: pieces of each pair of the corpus.
        """
        src, tgt = np.asarray(src_lens), np.asarray(tgt_lens)
        longest = -(-max(int(src.max()), int(tgt.max())) // TILE) * TILE
        # One part in fifty more than the mean on the source side: then it is nearly always the target that is full.
        tokens = [max(longest, int(n)) for n in (1.02 * batch_tokens * src.mean() / tgt.mean(), batch_tokens)]
        num_padding = -(-(max(tokens) + MULTIPLE) // (longest - 1))
        src_len, tgt_len = (-(-(n + num_padding) // MULTIPLE) * MULTIPLE for n in tokens)
        return cls(src_len, tgt_len, int(1.2 * tgt_len / tgt.mean()) + 1 + num_padding, num_padding, longest)

    @property
    def room(self) -> tuple[int, int, int]:
        """(source tokens, target tokens, pairs) of real sentences in a batch, at most."""
        return self.src_len - self.num_padding, self.tgt_len - self.num_padding, self.num_pairs - self.num_padding


def lay_out(lens: Row, length: int, num_pairs: int, num_padding: int) -> tuple[Int32Array, Int32Array]:
    """Where sentences of these lengths stand in a row, and padding after them: (starts [P + 1], positions [length]).

    Sentences of no token stand between the real ones and the padding, so that there are `num_pairs` in every row.
    """
    left = length - int(np.sum(lens))
    padding = np.full(num_padding, left // num_padding)
    padding[: left % num_padding] += 1
    sizes = np.zeros(num_pairs, dtype=np.int64)
    sizes[: len(lens)] = lens
    sizes[num_pairs - num_padding :] = padding
    starts = np.concatenate([[0], np.cumsum(sizes)])
    positions = np.arange(length) - np.repeat(starts[:-1], sizes)
    return starts.astype(np.int32), positions.astype(np.int32)


def cut(order: Sequence[int], src_lens: Sequence[float], tgt_lens: Sequence[float], shape: RowShape) -> list[list[int]]:
    """Consecutive runs of `order` that each fit into a row; lengths are those of the pairs in this order."""
    batches: list[list[int]] = []
    room: tuple[float, float, float] = (0, 0, 0)
    for number, src_len, tgt_len in zip(order, src_lens, tgt_lens, strict=True):
        room = room[0] - src_len, room[1] - tgt_len, room[2] - 1
        if min(room) < 0:
            batches.append([])
            room = shape.room[0] - src_len, shape.room[1] - tgt_len, shape.room[2] - 1
        batches[-1].append(number)
    return batches


def fitted(sampled: Sequence[Row], plain: Sequence[Row], room: int, longest: int) -> list[Row]:
    """Each row as it was sampled, as long as there is room for what it is longer than the plain one; else that.

    Args:
        sampled, plain: the same texts, cut into pieces by chance and as usual; the plain ones fit.
        room: tokens for all. longest: tokens for one.
    """
    spare = room - sum(map(len, plain))
    rows = []
    for drawn, usual in zip(sampled, plain, strict=True):
        more = len(drawn) - len(usual)
        fits = more <= spare and len(drawn) <= longest
        spare -= more if fits else 0
        rows.append(drawn if fits else usual)
    return rows
