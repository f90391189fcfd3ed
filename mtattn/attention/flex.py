"""Attention by FlexAttention: torch compiles one kernel for this mask, bias and cap (Dong 2024)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .predicate import Dense, Mask


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Dense | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attend with FlexAttention, which skips the blocks that the mask rules out. Arguments as for `attend`.

    On a CPU it has no backward, and without the compiler it materialises all scores; there it is for comparison.

    Raises:
        ValueError: dropout is not 0, or gradients are needed on a CPU.
    """
    if dropout:
        raise ValueError("attend: impl='flex' has no dropout; use impl='reference', 'sdpa' or 'auto'")
    if q.device.type == "cpu":
        inputs = (q, k, v) if bias is None else (q, k, v, bias)
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            raise ValueError(
                "attend: impl='flex' has no backward on a CPU; to train there use impl='auto', "
                "to run without gradients torch.no_grad()"
            )
        q, k, v = q.detach(), k.detach(), v.detach()  # it looks at requires_grad alone, not at the mode
    output: Tensor = _flex_attention(q.device.type)(
        q,
        k,
        v,
        score_mod=_score_mod(bias, softcap, q, k),
        block_mask=_block_mask(mask, q, k),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return output


def block_mask(mask: Mask, batch: int, heads: int, num_queries: int, num_keys: int, device: torch.device) -> Any:
    """Turn a mask into the BlockMask with which FlexAttention skips whole blocks.

    Returns:
        torch.nn.attention.flex_attention.BlockMask

    Raises:
        ValueError: the mask is made for another number of queries or keys.
    """
    from torch.nn.attention.flex_attention import create_block_mask  # half a second to import, for this path alone

    def allows(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # it insists on a function, not a method
        return mask.allows(b, h, q, k)

    mask.check(num_queries, num_keys)
    return create_block_mask(
        allows,
        batch if mask.batch else None,
        heads if mask.heads else None,
        num_queries,
        num_keys,
        device=str(device),
    )


def _block_mask(mask: Mask | Dense | None, q: Tensor, k: Tensor) -> Any:
    if mask is None:
        return None
    if isinstance(mask, Dense):
        mask = _FromTensor(mask.allowed.expand(*q.shape[:3], k.shape[2]))
    return block_mask(mask, q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.device)


class _FromTensor(Mask):
    def __init__(self, allowed: Tensor) -> None:
        super().__init__()
        self.allowed, self.batch, self.heads = allowed, allowed.shape[0], allowed.shape[1]

    def allows(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.allowed[b, h, q, k]


def _score_mod(bias: Tensor | None, softcap: float | None, q: Tensor, k: Tensor) -> Callable[..., Tensor] | None:
    if bias is None and softcap is None:
        return None
    full = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])  # [B, H, T, S], a view

    def modify(score: Tensor, b: Tensor, h: Tensor, q_at: Tensor, k_at: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if full is None else score + full[b, h, q_at, k_at]

    return modify


@cache
def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=False)
