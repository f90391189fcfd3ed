"""Attention within a band by torch's fused kernels: time and memory grow as T w, not T^2.

Where a mask keeps k - q within [low, high], as sliding windows do, the queries fall into blocks of c, and each block
needs only the c + high - low keys around it. All blocks are one call of `F.scaled_dot_product_attention`, with the
block as a further batch axis (Longformer, Beltagy 2020).

Letters: B batch, H heads, T queries, S keys, E d_head; n blocks of c queries, w keys to a block.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .predicate import Dense, Mask

BLOCK = 128
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


def pays_off(mask: Mask | Dense | None, num_keys: int) -> bool:
    """Say whether the stretches of keys are so much shorter than all keys that this path is the fastest."""
    return has_band(mask) and num_keys >= 4 * (BLOCK + cast(Mask, mask).band[1] - cast(Mask, mask).band[0])


def _stretches(x: Tensor, heads: int, low: int, blocks: int, width: int) -> Tensor:
    # [B, Hkv, S, E] -> [B*H, n, w, E]: block i gets the keys i*c + low ..., zeros where there are none. Put together
    # from shifted slices, because the backward of an overlapping view (unfold) is slower than all the rest.
    x = x.repeat_interleave(heads // x.shape[1], dim=1)  # [B, H, S, E]
    shifts = math.ceil(width / BLOCK)
    x = F.pad(x, (0, 0, -low, (blocks + shifts - 1) * BLOCK + low - x.shape[2])).flatten(0, 1)  # [B*H, (n+w/c-1)*c, E]
    slices = [x[:, i * BLOCK : (i + blocks) * BLOCK].view(len(x), blocks, BLOCK, -1) for i in range(shifts)]
    return torch.cat(slices, dim=2)[:, :, :width]  # [B*H, n, w, E]


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
