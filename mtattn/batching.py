"""From encoded pairs to padded batches: bucket by length to a token budget, collate; a position to resume at.

Legend: B batch, S source, T target (both with EOS).
"""

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtattn.packing import IntArray as IntArray  # for those who use what is here
from mtattn.packing import Packing, RowShape, fitted, lay_out, plan_rows
from mtattn.tokenizer import Tokenizer

Flat = tuple[IntArray, IntArray]
"""Some texts: their ids, one after the other, and how many ids each has."""
Rows = Sequence[Sequence[int]]


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

    def row(self, number: int) -> IntArray:
        """The ids of one text."""
        chunk = int(np.searchsorted(self._starts, number, side="right")) - 1
        ids, offsets = self._chunks[chunk]
        j = number - self._starts[chunk]
        return ids[offsets[j] : offsets[j + 1]]

    def rows(self, numbers: IntArray) -> list[IntArray]:
        """The ids of some texts."""
        return [self.row(number) for number in numbers]

    def flat(self, numbers: IntArray) -> IntArray:
        """The ids of some texts, one after the other, without a Python step for each."""
        lens = self.lens[numbers]
        ends = np.cumsum(lens)
        within = np.arange(ends[-1]) - np.repeat(ends - lens, lens)  # the place of each id in its own text
        out = np.empty(ends[-1], dtype=np.int64)
        chunks = np.searchsorted(self._starts, numbers, side="right") - 1
        for chunk in np.unique(chunks):
            ids, offsets = self._chunks[chunk]
            here = np.repeat(chunks == chunk, lens)
            begins = offsets[np.where(chunks == chunk, numbers - self._starts[chunk], 0)]
            out[here] = ids[(np.repeat(begins, lens) + within)[here]]
        return out


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


def pad(rows: Sequence[Sequence[int] | IntArray], pad_id: int) -> Tensor:
    """Rows of ids to one int64 tensor [B, L], L the longest row."""
    out = np.full((len(rows), max(len(row) for row in rows)), pad_id, dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


def collate(
    src: Sequence[Sequence[int] | IntArray],
    tgt: Sequence[Sequence[int] | IntArray],
    indices: IntArray,
    *,
    pad_id: int,
    bos_id: int,
) -> Batch:
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


def plan_epoch(
    src_lens: IntArray, tgt_lens: IntArray, *, batch_tokens: int, seed: int, epoch: int, slab: int = 8
) -> list[IntArray]:
    """Cut one epoch into batches of similar lengths: every pair exactly once, in an order that (seed, epoch) fixes.

    Pairs are sorted by target length into slabs of about `slab` batches and by source length inside a slab, so that
    both sides of a batch are nearly even; ties are random, and so is the order of the batches.

    Args:
        src_lens, tgt_lens: [n] pieces of each pair.
        batch_tokens: B * max(S, T) stays within this (a single longer pair is a batch of its own).

    Returns:
        One array of pair numbers a batch.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(tgt_lens))
    order = order[np.argsort(tgt_lens[order], kind="stable")]
    pairs_in_slab = slab * max(1, batch_tokens // max(1, int(tgt_lens.mean())))
    slabs = np.arange(len(order)) // pairs_in_slab
    # Every other slab runs from long to short sources: neighbours across a slab's edge stay alike.
    key = np.where(slabs % 2 == 0, src_lens[order], -src_lens[order])
    order = order[np.lexsort((key, slabs))]
    batches = cut(order, np.maximum(src_lens, tgt_lens)[order], batch_tokens)
    return [batches[i] for i in random.permutation(len(batches))]


def spread(total: int, most: int) -> IntArray:
    """At most `most` of the numbers below `total`, evenly spread."""
    return np.linspace(0, total - 1, min(most, total)).astype(int)


def cut(order: IntArray, longest: IntArray, batch_tokens: int) -> list[IntArray]:
    """Consecutive runs of `order` whose count times longest member stays within the budget."""
    batches: list[IntArray] = []
    start, widest = 0, 0
    for position, length in enumerate(longest.tolist()):
        if position > start and max(widest, length) * (position - start + 1) > batch_tokens:
            batches.append(order[start:position])
            start, widest = position, 0
        widest = max(widest, length)
    batches.append(order[start:])
    return batches


@dataclass
class Position:
    """Where training stands in its data: epochs begun before this one, and batches of this epoch already used."""

    epoch: int = 0
    batch: int = 0


class Batches:
    """An endless, resumable stream of training batches, prepared ahead by a thread.

    Args:
        src, tgt: encoded sides of the training pairs.
        batch_tokens: see `plan_epoch`.
        packed: several pairs share a row (mtattn.packing), instead of one that is padded.
        chosen: function from an epoch to the numbers of the pairs in it; None: all of them in every epoch.
        sample: function from pair numbers and a seed to both sides in random pieces (mtattn.subwords); None: in those
            of src and tgt.
    """

    def __init__(
        self,
        src: TokenTable,
        tgt: TokenTable,
        tokenizer: Tokenizer,
        *,
        batch_tokens: int,
        seed: int,
        packed: bool = False,
        chosen: Callable[[int], IntArray] | None = None,
        sample: Callable[[IntArray, int], tuple[Rows, Rows]] | None = None,
    ) -> None:
        self._src, self._tgt, self._tokenizer = src, tgt, tokenizer
        self._batch_tokens, self._seed = batch_tokens, seed
        self._chosen, self._sample = chosen, sample
        self._growth = self._grown(sample) if packed and sample else 1.0
        self._shape = RowShape.for_lengths(*self._room(src.lens, tgt.lens), batch_tokens) if packed else None
        # Two are kept, since the thread of `stream` may be an epoch ahead of the loop; lru_cache is thread-safe.
        self._plans = lru_cache(maxsize=2)(self._plan)

    def plan(self, epoch: int) -> list[IntArray]:
        """The batches of one epoch, as pair numbers."""
        return self._plans(epoch)[0]

    def _plan(self, epoch: int) -> tuple[list[IntArray], list[IntArray]]:
        # The batches of one epoch, as pair numbers, and where batches are packed, the row of each pair.
        numbers = np.arange(len(self._tgt)) if self._chosen is None else self._chosen(epoch)
        lens = self._src.lens[numbers], self._tgt.lens[numbers]
        if self._shape is not None:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(numbers))
            return plan_rows(numbers[order], *self._room(lens[0][order], lens[1][order]), self._shape)
        plan = plan_epoch(*lens, batch_tokens=self._batch_tokens, seed=self._seed, epoch=epoch)
        return [numbers[batch] for batch in plan], []

    def at(self, position: Position) -> Batch:
        """The batch at a position; the same whenever it is asked for."""
        chosen, shape = self.plan(position.epoch)[position.batch], self._shape
        ids = {"pad_id": self._tokenizer.pad_id, "bos_id": self._tokenizer.bos_id}
        if shape is not None and self._sample is None:
            src, tgt = ((table.flat(chosen), table.lens[chosen]) for table in (self._src, self._tgt))
            return pack(src, tgt, chosen, self._plans(position.epoch)[1][position.batch], shape=shape, **ids)
        if self._sample is None:
            return collate(self._src.rows(chosen), self._tgt.rows(chosen), chosen, **ids)
        seed = int(np.random.SeedSequence([self._seed, position.epoch, position.batch]).generate_state(1)[0])
        sampled = self._sample(chosen, seed)
        if shape is None:
            return collate(sampled[0], sampled[1], chosen, **ids)
        rows, room = self._plans(position.epoch)[1][position.batch], (shape.src_len - 1, shape.tgt_len - 1)
        plain = self._src.rows(chosen), self._tgt.rows(chosen)
        fitting = [fitted(sampled[i], plain[i], rows, room[i]) for i in (0, 1)]
        src, tgt = ((np.concatenate(texts), np.array([*map(len, texts)])) for texts in fitting)
        return pack(src, tgt, chosen, rows, shape=shape, **ids)

    def _room(self, src_lens: IntArray, tgt_lens: IntArray) -> tuple[IntArray, IntArray]:
        """What sides of so many pieces are given room for in a row."""
        return np.ceil(self._growth * src_lens).astype(int), np.ceil(self._growth * tgt_lens).astype(int)

    def _grown(self, sample: Callable[[IntArray, int], tuple[Rows, Rows]]) -> float:
        """How much longer a side is at most when its subwords are sampled, by the mean of some pairs."""
        some = spread(len(self._tgt), 1000)
        sides = zip(sample(some, self._seed), (self._src, self._tgt), strict=True)
        return max(sum(map(len, rows)) / int(table.lens[some].sum()) for rows, table in sides)

    def largest(self, epoch: int = 0) -> Batch:
        """The batch of an epoch that takes the most memory: the most positions, and of these the longest."""
        if self._shape is not None:
            return self.at(Position(epoch, 0))
        longest = [(self._src.lens[chosen].max(), self._tgt.lens[chosen].max()) for chosen in self.plan(epoch)]
        sizes = [(len(c) * (s + t), max(s, t)) for c, (s, t) in zip(self.plan(epoch), longest, strict=True)]
        return self.at(Position(epoch, max(range(len(sizes)), key=sizes.__getitem__)))

    def stream(self, start: Position) -> Generator[tuple[Batch, Position]]:
        """Yield (batch, the position after it) for ever, from `start` on.

        The thread only prepares what `at` would give, so stopping and starting anywhere changes nothing.
        """
        ready: queue.Queue[tuple[Batch, Position] | BaseException] = queue.Queue(maxsize=4)
        stop = threading.Event()

        def prepare() -> None:
            position = start
            try:
                while not stop.is_set():
                    if position.batch >= len(self.plan(position.epoch)):
                        position = Position(position.epoch + 1, 0)
                    batch = self.at(position)
                    position = Position(position.epoch, position.batch + 1)
                    _put(ready, (batch, position), stop)
            except BaseException as error:
                _put(ready, error, stop)

        thread = threading.Thread(target=prepare, name="batches", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


def _put(ready: "queue.Queue[Any]", item: Any, stop: threading.Event) -> None:
    """Queue an item, giving up when the reader has left."""
    while not stop.is_set():
        try:
            return ready.put(item, timeout=0.1)
        except queue.Full:
            continue
