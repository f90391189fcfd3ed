"""Attention by torch's fused kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .masks import Causal
from .predicate import Dense, Mask
from .reference import materialised


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Dense | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attend with `F.scaled_dot_product_attention`, which knows no softcap. Arguments as for `attend`.

    Raises:
        ValueError: softcap is given.
    """
    if softcap is not None:
        raise ValueError("attend: impl='sdpa' has no softcap; use impl='reference', 'chunked', 'flex' or 'auto'")
    # attn_mask together with is_causal differs between torch's backends, so exactly one of them is ever given.
    is_causal = bias is None and isinstance(mask, Causal) and q.shape[2] == k.shape[2]
    dense = None if is_causal else materialised(mask, q.shape[2], k.shape[2], q.device)
    attn_mask = bias
    if dense is not None:
        # Dead queries see all keys in there, and are zeroed here: backends differ in what they make of an empty row.
        additive = dense.additive(q.dtype)
        attn_mask = additive if bias is None else bias + additive
    output = F.scaled_dot_product_attention(
        q, k, v, attn_mask, dropout, is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return output if dense is None or dense.dead is None else output.masked_fill(dense.dead, 0.0)
