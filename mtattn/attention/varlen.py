"""Attention of sentences that stand one after the other in a row, without padding and without T^2 scores.

Where a mask is `spans`, perhaps with `causal`, a query sees its own span alone: the scores are blocks along a diagonal,
and nothing else is computed. In half precision on a GPU one kernel does it (FlashAttention-2, Dao 2023); elsewhere the
spans are attended to one by one.

Letters: B batch, H heads, Hkv key heads, T queries, S keys, E d_head.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import Causal, Spans
from .predicate import And, Dense, Mask


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Dense | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attend within spans. Arguments as for `attend`.

    Raises:
        ValueError: the mask is not `spans`, alone or with `causal`; or bias, softcap or dropout is given.
    """
    if bias is not None or softcap is not None or dropout:
        raise ValueError("attend: impl='varlen' has no bias, softcap or dropout; use impl='auto'")
    spans, is_causal = spans_of(mask)
    if spans is None:
        raise ValueError("attend: impl='varlen' needs a mask that is spans(...), or causal() & spans(...)")
    batch, heads, queries, _ = q.shape
    spans.check(queries, k.shape[2])
    if not has_kernel(q):
        return _one_by_one(q, k, v, spans, is_causal, scale)
    from torch.nn.attention.varlen import varlen_attn  # loads a compiler, which a CPU can do without

    starts = _of_all_rows(spans.starts, batch, queries), _of_all_rows(spans.key_starts, batch, k.shape[2])
    if heads != k.shape[1]:
        k, v = (x.repeat_interleave(heads // k.shape[1], 1) for x in (k, v))
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [B T, H, E], [B S, H, E] twice
    window = (-1, 0 if is_causal else -1)
    output = varlen_attn(q, k, v, *starts, spans.longest, spans.longest, scale=scale, window_size=window)
    assert isinstance(output, Tensor)  # [B T, H, E]
    return output.view(batch, queries, heads, -1).transpose(1, 2)  # [B, H, T, E]


def spans_of(mask: Mask | Dense | None) -> tuple[Spans | None, bool]:
    """(the spans of a mask that is `spans` or `causal & spans`, whether it is causal); (None, False) for any other."""
    if isinstance(mask, Spans):
        return mask, False
    if type(mask) is And:
        left, right = mask.parts
        for spans, other in ((left, right), (right, left)):
            if isinstance(spans, Spans) and isinstance(other, Causal):
                return spans, True
    return None, False


def has_kernel(q: Tensor) -> bool:
    """Whether torch has a kernel for spans where q is, in its precision."""
    return q.is_cuda and q.element_size() < 4


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, spans: Spans, is_causal: bool, scale: float) -> Tensor:
    outputs = []
    ends = zip(spans.starts.tolist(), spans.key_starts.tolist(), strict=True)
    for (start, key_start), (end, key_end) in pairwise(ends):
        own = q[:, :, start:end]  # [B, H, t, E]
        if start == end or key_start == key_end:
            outputs.append(torch.zeros_like(own))
            continue
        keys, values = (x[:, :, key_start:key_end] for x in (k, v))  # [B, Hkv, s, E]
        own = F.scaled_dot_product_attention(
            own, keys, values, is_causal=is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(own)
    return torch.cat(outputs, 2)


def _of_all_rows(starts: Tensor, batch: int, length: int) -> Tensor:
    # The rows are laid end to end: where each span of each row starts, and where the last one ends.
    if batch == 1:
        return starts
    rows = torch.arange(batch, dtype=starts.dtype, device=starts.device)[:, None] * length
    return torch.cat([(starts[:-1] + rows).flatten(), starts[-1:] + (batch - 1) * length])
