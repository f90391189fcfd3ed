"""Scores: how well a key answers a query. One class for each kind of attention, listed in `SCORES`.

A score is a module with `forward(q, k)`, the formula of its paper. Those that are a dot product of transformed
queries and keys also say so in `as_dot_product`, and so run on every fast path of `attend`.
Letters: B batch, H heads, Hkv key heads, T queries, S keys, E d_head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reference import dot_product_scores


class ScaledDot(nn.Module):
    """q . k / sqrt(E): scaled dot-product attention (Vaswani 2017, equation 1).

    Args:
        num_heads: H.
        num_kv_heads: Hkv, divides H.
        d_head: E.
    """

    shares_projection = False
    is_dot_product = True

    def __init__(self, num_heads: int, num_kv_heads: int, d_head: int) -> None:
        super().__init__()
        self.scale = 1.0 / math.sqrt(d_head)

    def as_dot_product(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return q', k' and a scale such that the scores are q' k'^T * scale.

        Args:
            q: [B, H, T, E].
            k: [B, Hkv, S, E].
        """
        return q, k, self.scale

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the scores [B, H, T, S] of q [B, H, T, E] and k [B, Hkv, S, E]."""
        return dot_product_scores(*self.as_dot_product(q, k))


class Symmetric(ScaledDot):
    """q . k / sqrt(E), where queries and keys come from one projection: before the softmax the matrix is symmetric.

    i attends to j by the same score as j to i, and a token's score with itself is never negative; it saves one of
    the projections (Reformer shares them too, Kitaev 2020, section 2).
    """

    shares_projection = True


class Multiplicative(ScaledDot):
    """q^T W k with a learned W for each head: the "general" score (Luong 2015, equation 8). W starts as I / sqrt(E).

    Rotary positions turn q and k before W sees them, so that once W is learned they no longer tell distances alone.
    """

    def __init__(self, num_heads: int, num_kv_heads: int, d_head: int) -> None:
        super().__init__(num_heads, num_kv_heads, d_head)
        self.weight = nn.Parameter(torch.eye(d_head).repeat(num_heads, 1, 1) * self.scale)  # [H, E, E]

    def as_dot_product(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        return q @ self.weight, k, 1.0


class Cosine(ScaledDot):
    """exp(t) cos(q, k) with a learned temperature t for each head (Henry 2020; Liu 2022); exp(t) starts at 10."""

    def __init__(self, num_heads: int, num_kv_heads: int, d_head: int) -> None:
        super().__init__(num_heads, num_kv_heads, d_head)
        self.log_temperature = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))

    def as_dot_product(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        return F.normalize(q, dim=-1) * self.log_temperature.exp().to(q.dtype), F.normalize(k, dim=-1), 1.0


class Additive(nn.Module):
    """w . tanh(A q + B k): a small network looks at both (Bahdanau 2015, appendix A.1.2); takes O(T S E) memory.

    Under rotary positions it sees where q and k stand, not only how far apart.
    """

    shares_projection = False
    is_dot_product = False

    def __init__(self, num_heads: int, num_kv_heads: int, d_head: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(d_head)
        self.query_weight = nn.Parameter(torch.empty(num_heads, d_head, d_head).uniform_(-bound, bound))  # [H, E, E]
        self.key_weight = nn.Parameter(torch.empty(num_kv_heads, d_head, d_head).uniform_(-bound, bound))
        self.weight = nn.Parameter(torch.empty(num_heads, d_head, 1).uniform_(-bound, bound))  # [H, E, 1]

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the scores [B, H, T, S] of q [B, H, T, E] and k [B, Hkv, S, E]."""
        q, k = q @ self.query_weight, k @ self.key_weight
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # [B, H, S, E]
        hidden = torch.tanh(q[:, :, :, None] + k[:, :, None])  # [B, H, T, S, E]
        return (hidden @ self.weight[:, None]).squeeze(-1)  # [B, H, T, S]


SCORES: dict[str, type[ScaledDot] | type[Additive]] = {
    "scaled_dot": ScaledDot,
    "multiplicative": Multiplicative,
    "additive": Additive,
    "cosine": Cosine,
    "symmetric": Symmetric,
}
