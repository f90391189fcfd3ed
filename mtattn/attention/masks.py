"""Masks as rules: which query may attend to which key.

Rules combine with `&`, `|` and `~`, and become a tensor (or a FlexAttention block mask) only when needed:

    mask = causal() & key_padding(tgt != pad_id)      # decoder self-attention
    mask = causal() & sliding_window(256)             # each token sees itself and the 255 before it

To add one, write a subclass of `Mask` with `allows`, a function that makes it, and a line in `MASKS`. A rule that looks
at `b` or `h` also sets `self.batch` or `self.heads`; otherwise the first row or head answers for all.
Letters: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .predicate import Mask


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
        self.prefix_len = torch.as_tensor(prefix_len)
        self.batch = len(self.prefix_len) if isinstance(prefix_len, Tensor) else None

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        lens = self.prefix_len.to(k.device)
        return (k <= q) | (k < (lens if self.batch is None else lens[b]))


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
