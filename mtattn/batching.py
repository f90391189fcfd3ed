"""Which pairs make a batch, and in which order: buckets of like length to a token budget; a position to resume at."""

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mtattn.batch import Batch, IntArray, Rows, TokenTable, collate, pack
from mtattn.packing import RowShape, fitted, plan_rows
from mtattn.tokenizer import Tokenizer


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
        self._growth = self._grown(sample) if sample else 1.0
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
        plan = plan_epoch(*self._room(*lens), batch_tokens=self._batch_tokens, seed=self._seed, epoch=epoch)
        return [numbers[batch] for batch in plan], []

    def at(self, position: Position) -> Batch:
        """The batch at a position; the same whenever it is asked for."""
        chosen, shape = self.plan(position.epoch)[position.batch], self._shape
        pad_id, bos_id = self._tokenizer.pad_id, self._tokenizer.bos_id
        plain: list[Rows] = [self._src.rows(chosen), self._tgt.rows(chosen)]
        sides = plain
        if self._sample is not None:
            seed = int(np.random.SeedSequence([self._seed, position.epoch, position.batch]).generate_state(1)[0])
            sides = [*self._sample(chosen, seed)]
        if shape is None:
            return collate(sides[0], sides[1], chosen, pad_id=pad_id, bos_id=bos_id)
        rows, room = self._plans(position.epoch)[1][position.batch], (shape.src_len - 1, shape.tgt_len - 1)
        if self._sample is not None:
            sides = [fitted(sides[i], plain[i], rows, room[i]) for i in (0, 1)]
        src, tgt = ((np.concatenate(texts), np.array([*map(len, texts)])) for texts in sides)
        return pack(src, tgt, chosen, rows, pad_id=pad_id, bos_id=bos_id, shape=shape)

    def _room(self, src_lens: IntArray, tgt_lens: IntArray) -> tuple[IntArray, IntArray]:
        """The pieces for which a side of so many, as it is usually spelled, is given room."""
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
