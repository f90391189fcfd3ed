"""Masks as rules: which query may attend to which key.

A `Mask` is a predicate over positions. Masks combine with `&`, `|` and `~`, and become a tensor (or a FlexAttention
block mask) only when a computation needs one:

    mask = causal() & key_padding(tgt != pad_id)      # decoder self-attention
    mask = causal() & sliding_window(256)             # each token sees itself and 255 before it

To add a mask, write a subclass with `allows` and list it in `MASKS`. Letters: B batch, H heads, T queries, S keys.
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

    def __init__(self, allowed: Tensor) -> None:
        self.allowed = allowed
        self.dead: Tensor | None = ~allowed.any(-1, keepdim=True)
        if allowed.device.type == "cpu" and not torch.compiler.is_compiling():
            self.drop_dead_if_none()
        self._additive: Tensor | None = None

    def drop_dead_if_none(self) -> None:
        """Forget `dead` when no query is dead. It reads the tensor, for which the host waits on a GPU."""
        if self.dead is not None and not bool(self.dead.any()):
            self.dead = None

    @property
    def finite(self) -> Tensor:
        """`allowed`, but dead queries see every key: their softmax stays finite, and the caller zeroes their output."""
        return self.allowed if self.dead is None else self.allowed | self.dead

    def additive(self, dtype: torch.dtype) -> Tensor:
        """Return `finite` as numbers to add to the scores: 0 where allowed, -inf elsewhere."""
        if self._additive is None or self._additive.dtype != dtype:
            zeros = torch.zeros((), dtype=dtype, device=self.allowed.device)
            self._additive = zeros.masked_fill(~self.finite, -math.inf)
        return self._additive


class Mask:
    """A rule (batch, head, query position, key position) -> may attend; combined with `&`, `|`, `~`.

    Attributes:
        batch: the B that the rule is made for, None when it is the same for every batch row.
        heads: the H that the rule is made for, None when it is the same for every head.
        band: bounds of `k - q` outside which the rule allows nothing; long inputs skip what lies outside.
        trivial: True when the rule is known to allow everything, such as padding of a batch that has none.
    """

    batch: int | None = None
    heads: int | None = None
    band: Band = NO_BAND
    trivial: bool = False

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
        b = torch.arange(self.batch or 1, device=queries.device)[:, None, None, None]
        h = torch.arange(self.heads or 1, device=queries.device)[None, :, None, None]
        allowed = self.allows(b, h, queries[None, None, :, None], keys[None, None, None, :])
        return allowed[(None,) * (4 - allowed.dim())]

    def dense(self, num_queries: int, num_keys: int, device: torch.device | str = "cpu") -> Dense:
        """Materialise the mask; the last result is kept, so the layers that share a mask build it once.

        Raises:
            ValueError: the rule was made for another number of queries or keys.
        """

        def build() -> Dense:
            self.check(num_queries, num_keys)
            dense = Dense(self.block(*(torch.arange(n, device=device) for n in (num_queries, num_keys))))
            dense.drop_dead_if_none()
            return dense

        return self.remember((num_queries, num_keys, torch.device(device)), build)

    def remember(self, key: Hashable, build: Callable[[], Dense]) -> Dense:
        """Return what `build` made for `key`, once for as long as no other key is asked for."""
        if self._remembered is None or self._remembered[0] != key:
            self._remembered = key, build()
        return self._remembered[1]

    def simplified(self) -> Mask | None:
        """Return the mask without its trivial parts, None when nothing is left: what is not there costs nothing."""
        return None if self.trivial else self

    def shifted(self, offset: int) -> Mask:
        """Return the same rule for queries that start at position `offset`, after as many cached keys."""
        return _Shifted(self, offset) if offset else self

    def __and__(self, other: Mask) -> Mask:
        return _And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return _Or(self, other)

    def __invert__(self) -> Mask:
        return _Not(self)


class Causal(Mask):
    """The rule of `causal()`; torch's kernels have a shortcut for it, which is why it has a public class."""

    band = (-math.inf, 0)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q


class _SlidingWindow(Mask):
    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"sliding_window: size must be at least 1 (a token sees itself), got {size}")
        self.size = size
        self.band = (1 - size, size - 1)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() < self.size


class _KeyPadding(Mask):
    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        if keep.dtype != torch.bool or keep.dim() != 2:
            raise ValueError(
                f"key_padding: keep must be a bool tensor [B, S] (True = a real token), got {keep.dtype} "
                f"{list(keep.shape)}; write key_padding(ids != pad_id)"
            )
        self.keep = keep
        self.batch = keep.shape[0]
        # Asking a GPU would make the host wait for it, so there the mask is always applied.
        self.trivial = keep.device.type == "cpu" and bool(keep.all())

    def check(self, num_queries: int, num_keys: int) -> None:
        if num_keys != self.keep.shape[1]:
            raise ValueError(f"key_padding: made for {self.keep.shape[1]} keys, but there are {num_keys}")

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.keep[b, k]


class _PrefixLM(Mask):
    def __init__(self, prefix_len: int | Tensor) -> None:
        super().__init__()
        if isinstance(prefix_len, Tensor) and prefix_len.dim() != 1:
            raise ValueError(f"prefix_lm: prefix_len must be an int or a tensor [B], got {list(prefix_len.shape)}")
        self.prefix_len = torch.as_tensor(prefix_len).view(-1)
        self.batch = len(self.prefix_len) if isinstance(prefix_len, Tensor) else None

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) | (k < self.prefix_len.to(k.device)[b])


class _Packed(Mask):
    def __init__(self, documents: Tensor, key_documents: Tensor | None = None) -> None:
        super().__init__()
        self.queries, self.keys = documents, documents if key_documents is None else key_documents
        if self.queries.dim() != 2 or self.keys.dim() != 2 or len(self.queries) != len(self.keys):
            raise ValueError(
                f"packed: document ids must be [B, T] and [B, S], got {list(self.queries.shape)} "
                f"and {list(self.keys.shape)}"
            )
        self.batch = len(self.queries)

    def check(self, num_queries: int, num_keys: int) -> None:
        if (num_queries, num_keys) != (self.queries.shape[1], self.keys.shape[1]):
            raise ValueError(
                f"packed: made for {self.queries.shape[1]} queries and {self.keys.shape[1]} keys, "
                f"but there are {num_queries} and {num_keys}"
            )

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.queries[b, q] == self.keys[b, k]


class _DistanceWindows(Mask):
    def __init__(self, sizes: Tensor) -> None:
        super().__init__()
        if sizes.dim() != 1 or not len(sizes) or bool((sizes < 1).any()):
            raise ValueError(f"distance_windows: sizes must be [H], each at least 1, got {sizes.tolist()}")
        self.sizes = sizes
        self.heads = len(sizes)
        widest = int(sizes.max())
        self.band = (1 - widest, widest - 1)

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() < self.sizes.to(q.device)[h]


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
    return left.batch or right.batch, left.heads or right.heads


def causal() -> Mask:
    """Return the mask of a decoder: a query sees its own position and those before it, k <= q (Vaswani 2017, 3.2.3)."""
    return Causal()


def key_padding(keep: Tensor) -> Mask:
    """Hide padded keys: key k is seen when keep[b, k].

    Args:
        keep: bool [B, S], True for a real token: `ids != pad_id`.
    """
    return _KeyPadding(keep)


def sliding_window(size: int) -> Mask:
    """See the `size - 1` nearest tokens on each side, |q - k| < size (Beltagy 2020); `causal() &` for those before.

    Args:
        size: at least 1; 1 sees the token itself alone.
    """
    return _SlidingWindow(size)


def prefix_lm(prefix_len: int | Tensor) -> Mask:
    """See the whole prefix, then causally: k < prefix_len or k <= q (Raffel 2020, figure 4).

    Args:
        prefix_len: one length for all, or int64 [B].
    """
    return _PrefixLM(prefix_len)


def packed(documents: Tensor, key_documents: Tensor | None = None) -> Mask:
    """See one's own document alone, when several stand in one row: documents[b, q] == key_documents[b, k].

    Args:
        documents: document id of each query, int64 [B, T].
        key_documents: document id of each key, int64 [B, S]; the same as `documents` when None.
    """
    return _Packed(documents, key_documents)


def distance_windows(sizes: Tensor) -> Mask:
    """Give each head its own window, |q - k| < sizes[h]: what ALiBi's slopes do softly (Press 2022), with an edge.

    Args:
        sizes: int64 [H], each at least 1.
    """
    return _DistanceWindows(sizes)


MASKS: dict[str, Callable[..., Mask]] = {
    "causal": causal,
    "key_padding": key_padding,
    "sliding_window": sliding_window,
    "prefix_lm": prefix_lm,
    "packed": packed,
    "distance_windows": distance_windows,
}
