"""The formula, written to be read: the oracle that every fast path of `attend` is compared with.

    scores  = cap(q k^T * scale) + bias          [B, H, T, S]
    weights = softmax over the allowed keys      [B, H, T, S]
    output  = weights v                          [B, H, T, E]

A query that may see no key at all is "dead"; its output is zero.
Letters: B batch, H query heads, Hkv key heads, G = H / Hkv, T queries, S keys, E d_head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .predicate import Dense, Mask


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Dense | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attend as the formula says, with memory that grows as T * S. Arguments as for `attend`."""
    scores = dot_product_scores(q, k, scale)  # [B, H, T, S]
    dense = materialised(mask, q.shape[2], k.shape[2], q.device)
    weights = masked_softmax(scores, dense, bias, softcap)  # [B, H, T, S]
    return weighted_sum(weights, v, dense, dropout)  # [B, H, T, E]


def dot_product_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return q k^T * scale [B, H, T, S]; several query heads may share a key head."""
    batch, heads, queries, _ = q.shape
    q = fold_groups(q if scale == 1.0 else q * scale, k)  # [B, Hkv, G*T, E]
    return (q @ k.transpose(-2, -1)).view(batch, heads, queries, k.shape[2])  # [B, H, T, S]


def masked_softmax(scores: Tensor, mask: Dense | None, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Return softmax(cap(scores) + bias) over the allowed keys; `scores` is overwritten.

    A dead query sees all keys here, so that nothing is NaN; `weighted_sum` zeroes its output, which is smaller.
    """
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        # In place, and added rather than filled in: the backward of such an addition costs nothing.
        scores += mask.additive(scores.dtype)
    return scores.softmax(-1)


def weighted_sum(weights: Tensor, v: Tensor, mask: Dense | None, dropout: float) -> Tensor:
    """Return dropout(weights) v [B, H, T, E], with zeros for dead queries."""
    if dropout:
        weights = F.dropout(weights, dropout)
    output = (fold_groups(weights, v) @ v).view(*weights.shape[:-1], v.shape[-1])  # [B, H, T, E]
    return output if mask is None or mask.dead is None else output.masked_fill(mask.dead, 0.0)


def materialised(mask: Mask | Dense | None, num_queries: int, num_keys: int, device: torch.device) -> Dense | None:
    """Return the mask as a tensor."""
    return mask.dense(num_queries, num_keys, device) if isinstance(mask, Mask) else mask


def fold_groups(x: Tensor, kv: Tensor) -> Tensor:
    """Turn [B, Hkv*G, T, X] into [B, Hkv, G*T, X]: query heads that share a key head become more queries.

    So grouped-query attention is a matrix product with k and v as they are, never repeated in memory.
    """
    if x.shape[1] == kv.shape[1]:
        return x
    groups = x.shape[1] // kv.shape[1]
    return x.reshape(*kv.shape[:2], groups * x.shape[2], x.shape[3])
