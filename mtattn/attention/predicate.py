"""What a mask is: a rule over positions, its algebra, and the tensor that it becomes when a computation needs one.

Letters: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Band = tuple[float, float]
"""Bounds of `k - q` (both ends included) outside which a mask allows nothing; infinite where there is no bound."""

NO_BAND: Band = (-math.inf, math.inf)


class Dense:
    """A materialised mask, and what the computations derive from it once.

    Attributes:
        allowed: bool [B or 1, H or 1, T or 1, S or 1], broadcastable to [B, H, T, S]; True = may attend.
        dead: bool, the same without keys (last axis 1): queries that may attend to nothing. None: known to be none.
    """

    def __init__(self, allowed: Tensor, is_complete: bool = False) -> None:
        self.allowed = allowed
        self.dead: Tensor | None = None if is_complete else ~allowed.any(-1, keepdim=True)
        if allowed.device.type == "cpu" and not torch.compiler.is_compiling():
            self.drop_dead_if_none()
        self._additive: Tensor | None = None

    def drop_dead_if_none(self) -> None:
        """Forget `dead` when no query is dead. It reads the tensor, for which the host waits on a GPU."""
        if self.dead is not None and not bool(self.dead.any()):
            self.dead = None

    def additive(self, dtype: torch.dtype) -> Tensor:
        """Return numbers to add to the scores: 0 where allowed, -inf elsewhere.

        Dead queries see every key: their softmax stays finite, and the caller zeroes their output.
        """
        if self._additive is None or self._additive.dtype != dtype:
            finite = self.allowed if self.dead is None else self.allowed | self.dead
            zeros = torch.zeros((), dtype=dtype, device=self.allowed.device)
            self._additive = zeros.masked_fill(~finite, -math.inf)
        return self._additive


class Mask:
    """A rule (batch, head, query position, key position) -> may attend; combined with `&`, `|`, `~`.

    Attributes:
        batch: the B that the rule is made for, None when it is the same for every batch row.
        heads: the H that the rule is made for, None when it is the same for every head.
        band: bounds of `k - q` outside which the rule allows nothing; long inputs skip what lies outside.
        trivial: True when the rule is known to allow everything, such as padding of a batch that has none.
        is_complete: True when it is known to leave no query without a key.
    """

    batch: int | None = None
    heads: int | None = None
    band: Band = NO_BAND
    trivial: bool = False
    is_complete: bool = False

    def __init__(self) -> None:
        self._remembered: tuple[Hashable, Dense] | None = None

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Say whether query `q` may attend to key `k` in batch row `b` and head `h`.

        Args:
            b, h, q, k: index tensors (int64) of mutually broadcastable shapes. Indices count from 0.

        Returns:
            bool tensor, broadcastable to the common shape; True = may attend.
        """
        raise NotImplementedError

    def check(self, num_queries: int, num_keys: int) -> None:
        """Raise ValueError when the rule does not cover `num_queries` queries or `num_keys` keys."""

    def block(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Evaluate the rule on some queries [t] and some keys [s] only.

        Returns:
            bool [B or 1, H or 1, t or 1, s or 1]; an axis that the rule does not look at stays 1.
        """
        b = torch.arange(1 if self.batch is None else self.batch, device=queries.device)[:, None, None, None]
        h = torch.arange(1 if self.heads is None else self.heads, device=queries.device)[None, :, None, None]
        allowed = self.allows(b, h, queries[None, None, :, None], keys[None, None, None, :])
        return allowed[(None,) * (4 - allowed.dim())]

    def dense(self, num_queries: int, num_keys: int, device: torch.device | str = "cpu") -> Dense:
        """Materialise the mask; the last result is kept, so the layers that share a mask build it once.

        Raises:
            ValueError: the rule was made for another number of queries or keys.
        """

        def build() -> Dense:
            self.check(num_queries, num_keys)
            places = (torch.arange(n, device=device) for n in (num_queries, num_keys))
            dense = Dense(self.block(*places), self.is_complete)
            dense.drop_dead_if_none()  # on a GPU too: once for each mask, not once for each layer
            return dense

        return self.remember((num_queries, num_keys, torch.device(device)), build)

    def remember(self, key: Hashable, build: Callable[[], Dense]) -> Dense:
        """Return what `build` made for `key`, once for as long as no other key is asked for."""
        key = (key, torch.is_inference_mode_enabled())  # what inference mode makes cannot be trained with later
        if self._remembered is None or self._remembered[0] != key:
            self._remembered = key, build()
        return self._remembered[1]

    def simplified(self) -> Mask | None:
        """Return the mask without its trivial parts, None when nothing is left: what is not there costs nothing."""
        return None if self.trivial else self

    def assume_complete(self) -> Mask:
        """Return the mask itself, with the caller's word that it leaves no query without a key.

        Then nobody has to look, for which the host would wait on a GPU, and could not while it records a CUDA graph.
        """
        self.is_complete = True
        return self

    def shifted(self, offset: int) -> Mask:
        """Return the same rule for queries that start at position `offset`, after as many cached keys."""
        return _Shifted(self, offset) if offset else self

    def __and__(self, other: Mask) -> Mask:
        return _And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return _Or(self, other)

    def __invert__(self) -> Mask:
        return _Not(self)


class _Shifted(Mask):
    def __init__(self, mask: Mask, offset: int) -> None:
        super().__init__()
        self.mask, self.offset = mask, offset
        self.batch, self.heads, self.trivial = mask.batch, mask.heads, mask.trivial
        self.band = (mask.band[0] + offset, mask.band[1] + offset)

    def check(self, num_queries: int, num_keys: int) -> None:
        self.mask.check(num_queries + self.offset, num_keys)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.mask.allows(b, h, q + self.offset, k)


class _And(Mask):
    def __init__(self, left: Mask, right: Mask) -> None:
        super().__init__()
        self.parts = left, right
        self.batch, self.heads = _agree(left, right)
        self.band = (max(left.band[0], right.band[0]), min(left.band[1], right.band[1]))
        self.trivial = left.trivial and right.trivial

    def check(self, num_queries: int, num_keys: int) -> None:
        for part in self.parts:
            part.check(num_queries, num_keys)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.parts[0].allows(b, h, q, k) & self.parts[1].allows(b, h, q, k)

    def simplified(self) -> Mask | None:
        left, right = (part.simplified() for part in self.parts)
        if left is None or right is None:
            return left or right
        return self


class _Or(_And):
    def __init__(self, left: Mask, right: Mask) -> None:
        super().__init__(left, right)
        self.band = (min(left.band[0], right.band[0]), max(left.band[1], right.band[1]))
        self.trivial = left.trivial or right.trivial

    def simplified(self) -> Mask | None:
        return None if self.trivial else self

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.parts[0].allows(b, h, q, k) | self.parts[1].allows(b, h, q, k)


class _Not(Mask):
    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask
        self.batch, self.heads = mask.batch, mask.heads

    def check(self, num_queries: int, num_keys: int) -> None:
        self.mask.check(num_queries, num_keys)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ~self.mask.allows(b, h, q, k)


def _agree(left: Mask, right: Mask) -> tuple[int | None, int | None]:
    for name in ("batch", "heads"):
        sizes = getattr(left, name), getattr(right, name)
        if None not in sizes and sizes[0] != sizes[1]:
            raise ValueError(f"masks do not combine: one is made for {name} = {sizes[0]}, the other for {sizes[1]}")
    batch = right.batch if left.batch is None else left.batch
    return batch, right.heads if left.heads is None else left.heads
