"""Attention within a band by torch's fused kernels: time and memory grow as T w, not T^2.

Where a mask keeps k - q within [low, high], as sliding windows do, the queries fall into blocks of c, and each block
needs only the c + high - low keys around it. All blocks are one call of `F.scaled_dot_product_attention`, with the
block as a further batch axis (Longformer, Beltagy 2020).

Letters: B batch, H heads, T queries, S keys, E d_head; n blocks of c queries, w keys to a block.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .predicate import Dense, Mask

BLOCK = 256
"""c, the queries in a block: fewer read their shared keys too often, more compute too much outside the band."""


def banded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Dense | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attend within the mask's band. Arguments as for `attend`; the mask must bound k - q on both sides.

    Raises:
        ValueError: the mask bounds no band, or bias or softcap is given.
    """
    if bias is not None or softcap is not None:
        raise ValueError("attend: impl='banded' has no bias or softcap; use impl='chunked' or 'auto'")
    if not has_band(mask):
        raise ValueError(
            "attend: impl='banded' needs a mask that bounds k - q, such as sliding_window; use impl='auto'"
        )
    batch, heads, queries, _ = q.shape
    rule = cast(Mask, mask)
    low, high = (int(end) for end in rule.band)
    blocks, width = math.ceil(queries / BLOCK), BLOCK + high - low
    key = ("banded", queries, k.shape[2], q.device)
    dense = rule.remember(key, lambda: _band_mask(rule, blocks, width, queries, k.shape[2], q.device))
    output = F.scaled_dot_product_attention(
        F.pad(q, (0, 0, 0, blocks * BLOCK - queries)).reshape(batch * heads, blocks, BLOCK, -1),  # [B*H, n, c, E]
        _stretches(k, heads, low, blocks, width),  # [B*H, n, w, E]
        _stretches(v, heads, low, blocks, width),  # [B*H, n, w, E]
        _every_head(dense.additive(q.dtype), batch, heads),
        dropout,
        scale=scale,
    )
    if dense.dead is not None:
        output = output.masked_fill(_every_head(dense.dead, batch, heads), 0.0)
    return output.reshape(batch, heads, blocks * BLOCK, -1)[:, :, :queries]  # [B, H, T, E]


def has_band(mask: Mask | Dense | None) -> bool:
    """Say whether the mask bounds k - q on both sides."""
    return isinstance(mask, Mask) and all(map(math.isfinite, mask.band))


def pays_off(mask: Mask | Dense | None, num_queries: int, num_keys: int) -> bool:
    """Say whether so many fewer scores are computed, those of filled-up blocks included, that this path is fastest."""
    if not has_band(mask):
        return False
    low, high = cast(Mask, mask).band
    return num_queries * num_keys >= 2 * math.ceil(num_queries / BLOCK) * BLOCK * (BLOCK + high - low)


def _stretches(x: Tensor, heads: int, low: int, blocks: int, width: int) -> Tensor:
    # [B, Hkv, S, E] -> [B*H, n, w, E]: block i gets the keys i*c + low ..., zeros where there are none.
    x = x.repeat_interleave(heads // x.shape[1], dim=1).flatten(0, 1)  # [B*H, S, E]
    x = F.pad(x, (0, 0, -low, (blocks - 1) * BLOCK + width + low - x.shape[1]))  # [B*H, (n-1)*c+w, E]
    return cast(Tensor, _Overlapping.apply(x, blocks, width))  # type: ignore[no-untyped-call]


class _Overlapping(torch.autograd.Function):
    """Stretches of w that start c apart, [N, (n-1)*c+w, E] -> [N, n, w, E]: a view, so that no key is copied.

    The gradient of a position is the sum over the stretches that hold it. As stretch i holds piece j of c positions
    as its piece j - i, that is one addition for each of the w / c pieces; the backward of `unfold` is far slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: int, width: int) -> Tensor:
        ctx.length = x.shape[1]
        x = x.contiguous()
        return x.as_strided((len(x), blocks, width, x.shape[2]), (x.stride(0), BLOCK * x.stride(1), *x.stride()[1:]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        num, blocks, width, d_head = grad.shape
        pieces = grad.new_zeros(num, blocks + math.ceil(width / BLOCK), BLOCK, d_head)
        for i, piece in enumerate(torch.split(grad, BLOCK, dim=2)):
            pieces[:, i : i + blocks, : piece.shape[2]] += piece
        return pieces.flatten(1, 2)[:, : ctx.length], None, None


def _band_mask(mask: Mask, blocks: int, width: int, queries: int, keys: int, device: torch.device) -> Dense:
    # bool [B or 1, H or 1, n, c, w]. Queries past the end, which only fill the last block, copy the last query.
    starts = torch.arange(blocks, device=device)[:, None] * BLOCK  # [n, 1]
    q_at = (starts + torch.arange(BLOCK, device=device)).clamp(max=queries - 1)[:, :, None]  # [n, c, 1]
    k_at = (starts + torch.arange(width, device=device) + int(mask.band[0]))[:, None, :]  # [n, 1, w]
    b = torch.arange(mask.batch or 1, device=device).view(-1, 1, 1, 1, 1)
    h = torch.arange(mask.heads or 1, device=device).view(-1, 1, 1, 1)
    return Dense(mask.allows(b, h, q_at, k_at.clamp(0, keys - 1)) & (k_at >= 0) & (k_at < keys))


def _every_head(part: Tensor, batch: int, heads: int) -> Tensor:
    # [B or 1, H or 1, ...] -> [B*H or 1, ...]
    return part[0] if part.shape[:2] == (1, 1) else part.expand(batch, heads, -1, -1, -1).flatten(0, 1)
