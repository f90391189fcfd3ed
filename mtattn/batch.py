"""Some pairs as tensors: token ids of many texts, those of a few of them padded or packed side by side.

Legend: B batch, S source, T target (both with EOS).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtattn.packing import Ids, Packing, RowShape, lay_out
from mtattn.packing import IntArray as IntArray  # for those who use what is here

Flat = tuple[IntArray, IntArray]
"""Some texts: their ids, one after the other, and how many ids each has."""
Rows = Sequence[Ids]


class TokenTable:
    """Token ids of many texts by number, read from Arrow's memory-mapped chunks without a copy.

    Args:
        chunks: (flat ids, offsets) of consecutive texts; text j of a chunk is ids[offsets[j] : offsets[j + 1]].
    """

    def __init__(self, chunks: Sequence[tuple[IntArray, IntArray]]) -> None:
        self._chunks = chunks
        self.lens: IntArray = np.concatenate([np.diff(offsets) for _, offsets in chunks])
        self._starts = np.cumsum([0, *(len(offsets) - 1 for _, offsets in chunks)])

    def __len__(self) -> int:
        return len(self.lens)

    def rows(self, numbers: IntArray) -> list[IntArray]:
        """The ids of some texts."""
        chunks = np.searchsorted(self._starts, numbers, side="right") - 1
        places = numbers - self._starts[chunks]
        found = []
        for chunk, j in zip(chunks.tolist(), places.tolist(), strict=True):
            ids, offsets = self._chunks[chunk]
            found.append(ids[offsets[j] : offsets[j + 1]])
        return found

    def flat(self, numbers: IntArray) -> IntArray:
        """The ids of some texts, one after the other, as int64."""
        return np.concatenate(self.rows(numbers), dtype=np.int64)


@dataclass
class Batch:
    """Ids of some pairs. The target is shifted: the decoder reads `tgt_in` and predicts `tgt_out`.

    Padded, a pair is a row. Packed, a row holds several, and `packing` says where.
    """

    src: Tensor  # [B, S], int64; packed, int32, as are the next two
    tgt_in: Tensor  # [B, T], begins with BOS
    tgt_out: Tensor  # [B, T], ends with EOS
    num_tokens: int  # target tokens without padding
    indices: IntArray  # [n], the pairs' numbers among the examples
    packing: Packing | None = None
    pair_rows: IntArray | None = None  # [n], the row of each pair; None: pair i is row i

    def tensors(self) -> list[Tensor]:
        """All tensors of it, each with a row for each row: those of batches of one shape correspond."""
        return [self.src, self.tgt_in, self.tgt_out, *(self.packing or ())]

    def _with(self, tensors: Sequence[Tensor], num_tokens: int, indices: IntArray, rows: IntArray | None) -> "Batch":
        packing = None if self.packing is None else Packing(*tensors[3:])
        return Batch(tensors[0], tensors[1], tensors[2], num_tokens, indices, packing, rows)

    def to(self, device: torch.device, copy: bool = False) -> "Batch":
        """The same batch on another device; with `copy`, in other memory also where it is there already."""
        moved = [tensor.to(device, non_blocking=True, copy=copy) for tensor in self.tensors()]
        return self._with(moved, self.num_tokens, self.indices, self.pair_rows)

    def rows(self, chosen: slice, pad_id: int) -> "Batch":
        """Some of its rows, as wide as the whole."""
        tensors = [tensor[chosen] for tensor in self.tensors()]
        num_tokens = int((tensors[2] != pad_id).sum())
        if self.pair_rows is None:
            return self._with(tensors, num_tokens, self.indices[chosen], None)
        rows = np.arange(len(self.src))[chosen]
        kept = np.isin(self.pair_rows, rows)
        return self._with(tensors, num_tokens, self.indices[kept], np.searchsorted(rows, self.pair_rows[kept]))


def pair_names(batches: Sequence[Batch], numbers: IntArray, num_new: int) -> str:
    """The pairs of some batches as a user can count them: "training pairs 3, 17, blank or invalid ones not counted".

    Args:
        numbers: an example's number -> its row in the corpus, which lacks what was dropped on reading.
        num_new: rows of the user's own corpus; those of an old corpus, mixed in, follow and are counted by themselves.
    """
    rows = sorted(int(numbers[i]) + 1 for batch in batches for i in batch.indices)
    named = []
    if new := [row for row in rows if row <= num_new]:
        named.append(f"training {_numbered(new)}")
    if old := [row - num_new for row in rows if row > num_new]:
        named.append(f"{_numbered(old)} of the old corpus")
    return f"{' and '.join(named)}, blank or invalid ones not counted"


def _numbered(rows: Sequence[int]) -> str:
    return f"pair{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:10]))}{', ...' if len(rows) > 10 else ''}"


def pad(rows: Rows, pad_id: int) -> Tensor:
    """Rows of ids to one int64 tensor [B, L], L the longest row."""
    out = np.full((len(rows), max(len(row) for row in rows)), pad_id, dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


def collate(src: Rows, tgt: Rows, indices: IntArray, *, pad_id: int, bos_id: int) -> Batch:
    """Pad both sides and shift the target by one."""
    tgt_out = pad(tgt, pad_id)  # [B, T]
    # EOS as an input would stand where the next label is padding, so the shift may keep it: the loss never sees it.
    tgt_in = torch.cat([tgt_out.new_full((len(tgt), 1), bos_id), tgt_out[:, :-1]], dim=1)  # [B, T]
    return Batch(pad(src, pad_id), tgt_in, tgt_out, sum(len(row) for row in tgt), indices)


def pack(
    src: Flat, tgt: Flat, indices: IntArray, rows: IntArray, *, pad_id: int, bos_id: int, shape: RowShape
) -> Batch:
    """Put several pairs into each row, and shift each target by one.

    Args:
        src, tgt: the pairs' sides, row by row.
        rows: [n], the row of each pair, ascending.
    """

    def laid(values: IntArray, places: IntArray, length: int, empty: int) -> Tensor:
        out = np.full(shape.rows * length, empty, dtype=np.int32)
        out[places] = values
        return torch.from_numpy(out).view(shape.rows, length)

    packing, ids = [], []
    for (side, lens), length in ((src, shape.src_len), (tgt, shape.tgt_len)):
        places, positions = lay_out(lens, rows, length)
        ids.append(laid(side, places, length, pad_id))
        packing.append(laid(np.repeat(np.arange(1, len(lens) + 1), lens), places, length, 0))
        packing.append(laid(positions, places, length, 0))
    shifted = np.where(positions == 0, bos_id, np.roll(tgt[0], 1))  # of the target, which came last
    tgt_in = laid(shifted, places, shape.tgt_len, pad_id)
    return Batch(ids[0], tgt_in, ids[1], int(tgt[1].sum()), indices, Packing(*packing), rows)
