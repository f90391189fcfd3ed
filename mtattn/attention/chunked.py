"""Exact attention in linear memory: the online softmax, block by block, in plain torch.

The scores of one block of queries with one block of keys are all that exists at a time. For each query the maximum m
and the sum l of exponentials so far are kept, in float32 at least, and what was summed is rescaled when m grows
(Milakov 2018; Rabe 2021; FlashAttention, Dao 2022, algorithm 1). The backward pass computes each block again from
log(sum of exponentials).

Blocks that the mask's band rules out are never touched, so a sliding window of w costs O(T w).
Letters: B batch, H heads, Hkv key heads, T queries, S keys, E d_head; t and s one block of T and S.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .predicate import NO_BAND, Dense, Mask
from .reference import dot_product_scores, fold_groups

BLOCK = 256
"""Queries and keys in a block. On a 2-core CPU 128 .. 512 are alike; smaller blocks cost calls, larger ones cache."""


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Dense | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attend block by block, with memory linear in T and S, forward and backward. Arguments as for `attend`.

    Raises:
        ValueError: dropout is not 0.
    """
    if dropout:
        raise ValueError("attend: impl='chunked' has no dropout; use impl='reference', 'sdpa' or 'auto'")
    output: Tensor = _Chunked.apply(q, k, v, bias, _Scoring(mask, scale, softcap))  # type: ignore[no-untyped-call]
    return output


class _Scoring(NamedTuple):
    """What turns one block of queries and keys into scores."""

    mask: Mask | Dense | None
    scale: float
    softcap: float | None

    def capped(self, q: Tensor, k: Tensor) -> Tensor:
        """Return cap(q k^T * scale) [B, H, t, s]."""
        scores = dot_product_scores(q, k, self.scale)
        return scores if self.softcap is None else scores.div_(self.softcap).tanh_().mul_(self.softcap)

    def hide(self, scores: Tensor, rows: slice, cols: slice) -> Tensor:
        """Put -inf where a query may not attend, in place."""
        if isinstance(self.mask, Mask):
            queries, keys = (torch.arange(at.start, at.stop, device=scores.device) for at in (rows, cols))
            scores.masked_fill_(~self.mask.block(queries, keys), -math.inf)
        elif self.mask is not None:
            scores.masked_fill_(~_part(self.mask.allowed, rows, cols), -math.inf)
        return scores

    def blocks(self, num_queries: int, num_keys: int) -> Iterator[tuple[slice, list[slice]]]:
        """Yield each block of queries and the blocks of keys that its band of the mask reaches."""
        low, high = self.mask.band if isinstance(self.mask, Mask) else NO_BAND
        for start in range(0, num_queries, BLOCK):
            stop = min(start + BLOCK, num_queries)
            first = int(max(0, start + low))
            last = int(min(num_keys, stop + high))  # one past the last key
            yield slice(start, stop), [slice(at, min(at + BLOCK, last)) for at in range(first, last, BLOCK)]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scoring: _Scoring) -> Tensor:
        output = q.new_zeros(*q.shape[:3], v.shape[3])  # [B, H, T, E]
        wide = torch.promote_types(q.dtype, torch.float32)
        log_sums = q.new_full((*q.shape[:3], 1), math.inf, dtype=wide)  # [B, H, T, 1]; stays inf for dead queries
        for rows, blocks in scoring.blocks(q.shape[2], k.shape[2]):
            largest = torch.full_like(log_sums[:, :, rows], -math.inf)  # m [B, H, t, 1]
            sums = torch.zeros_like(largest)  # l [B, H, t, 1]
            context = torch.zeros_like(output[:, :, rows], dtype=wide)  # [B, H, t, E]
            for cols in blocks:
                scores = scoring.capped(q[:, :, rows], k[:, :, cols]).to(wide)  # [B, H, t, s]
                if bias is not None:
                    scores += _part(bias, rows, cols)
                scoring.hide(scores, rows, cols)
                seen, largest = largest, torch.maximum(largest, scores.amax(-1, keepdim=True))
                shift = largest.masked_fill(largest == -math.inf, 0.0)  # -inf - -inf would be NaN
                weights = scores.sub_(shift).exp_()  # [B, H, t, s], not yet divided by their sum
                rescale = (seen - shift).exp_()
                sums = sums.mul_(rescale).add_(weights.sum(-1, keepdim=True))
                context = context.mul_(rescale).add_(_times(weights.to(v.dtype), v[:, :, cols]))
            alive = sums > 0
            output[:, :, rows] = torch.where(alive, context / sums, 0.0)
            log_sums[:, :, rows] = torch.where(alive, largest + sums.log(), math.inf)
        ctx.save_for_backward(q, k, v, bias, output, log_sums)
        ctx.scoring = scoring
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), scoring = grads, ctx.scoring
        q, k, v, bias, output, log_sums = ctx.saved_tensors
        wide = log_sums.dtype
        grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[3] else None
        mean_grad = (grad.to(wide) * output).sum(-1, keepdim=True)  # [B, H, T, 1]: sum of weight * its gradient
        for rows, blocks in scoring.blocks(q.shape[2], k.shape[2]):
            q_block, grad_block = q[:, :, rows], grad[:, :, rows]
            for cols in blocks:
                k_block = k[:, :, cols]
                capped = scoring.capped(q_block, k_block).to(wide)  # [B, H, t, s]
                scores = capped.clone() if bias is None else capped + _part(bias, rows, cols)
                weights = scoring.hide(scores, rows, cols).sub_(log_sums[:, :, rows]).exp_()
                grad_v[:, :, cols] += _transposed_times(weights.to(v.dtype), grad_block, v)
                grad_weights = dot_product_scores(grad_block, v[:, :, cols], 1.0).to(wide)  # [B, H, t, s]
                grad_scores = grad_weights.sub_(mean_grad[:, :, rows]).mul_(weights)
                if grad_bias is not None:
                    part = _part(grad_bias, rows, cols)
                    part += grad_scores.sum_to_size(part.shape)
                if scoring.softcap is not None:
                    grad_scores *= 1.0 - (capped / scoring.softcap) ** 2  # tanh' = 1 - tanh^2
                grad_scores *= scoring.scale
                grad_scores = grad_scores.to(q.dtype)
                grad_q[:, :, rows] += _times(grad_scores, k_block)
                grad_k[:, :, cols] += _transposed_times(grad_scores, q_block, k)
        grad_bias = None if bias is None or grad_bias is None else grad_bias.to(bias.dtype)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), grad_bias, None


def _part(tensor: Tensor, rows: slice, cols: slice) -> Tensor:
    # A view of the block of a mask or bias whose axes may be 1.
    if tensor.shape[-2] > 1:
        tensor = tensor[..., rows, :]
    return tensor[..., cols] if tensor.shape[-1] > 1 else tensor


def _times(weights: Tensor, kv: Tensor) -> Tensor:
    # [B, H, t, s] x [B, Hkv, s, E] -> [B, H, t, E]
    return (fold_groups(weights, kv) @ kv).view(*weights.shape[:3], -1)


def _transposed_times(weights: Tensor, x: Tensor, kv: Tensor) -> Tensor:
    # [B, H, t, s] x [B, H, t, E] -> [B, Hkv, s, E], summed over the query heads of each key head
    return fold_groups(weights, kv).transpose(-2, -1) @ fold_groups(x, kv)
