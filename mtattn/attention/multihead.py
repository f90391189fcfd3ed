"""Multi-head attention: project, split into heads, attend in each, join, project (Vaswani 2017, section 3.2.2).

Letters: B batch, T queries, S keys, L cached keys, D d_model, H heads, Hkv key heads, E d_head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .cache import KVCache
from .functional import IMPLS, attend, attend_scores, attention_weights, weights_of_scores
from .norm import RMSNorm
from .positions import Position, Rotary
from .predicate import Mask
from .scores import SCORES, Additive


class MultiHeadAttention(nn.Module):
    """Self- or cross-attention with H query heads and Hkv key and value heads.

    Args:
        d_model: D.
        num_heads: H.
        num_kv_heads: Hkv, divides H; H when None. 1 is multi-query, between is grouped-query attention.
        d_head: E; d_model / num_heads when None.
        score: a key of `SCORES`. "symmetric" projects queries and keys with q_proj, and needs Hkv = H.
        position: a module from `POSITIONS` that acts inside attention: Rotary, T5Bias or ALiBi.
        qk_norm: RMS-normalise queries and keys within each head, with a learned weight (Henry 2020; Dehghani 2023).
        dropout: probability of dropping a weight while training.
        bias: give the four projections a bias.
        impl: "auto" or a key of `IMPLS`, passed to `attend`.
        softcap: bound of the scores, passed to `attend`.

    Raises:
        ValueError: sizes do not divide, or a name is unknown.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        d_head: int | None = None,
        score: str = "scaled_dot",
        position: Position | None = None,
        qk_norm: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
        impl: str = "auto",
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        _check_sizes(d_model, num_heads, num_kv_heads, d_head, score, impl, dropout)
        d_head = d_model // num_heads if d_head is None else d_head
        self.num_heads, self.num_kv_heads, self.d_head = num_heads, num_kv_heads, d_head
        self.dropout, self.impl, self.softcap = dropout, impl, softcap
        if isinstance(position, Rotary) and 2 * len(position.frequencies) != d_head:
            raise ValueError(
                f"MultiHeadAttention: position is a Rotary of d_head = {2 * len(position.frequencies)}, "
                f"but here d_head = {d_head}"
            )
        if position is not None and position.place == "embedding":
            raise ValueError(
                f"MultiHeadAttention: {type(position).__name__} positions are added to embeddings, before any layer; "
                "here they would do nothing"
            )
        self.score = SCORES[score](num_heads, num_kv_heads, d_head)
        self.position = position
        shared = self.score.shares_projection
        self.q_proj = nn.Linear(d_model, num_heads * d_head, bias=bias)
        self.k_proj = None if shared else nn.Linear(d_model, num_kv_heads * d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, num_kv_heads * d_head, bias=bias)
        self.out_proj = nn.Linear(num_heads * d_head, d_model, bias=bias)
        self.q_norm = RMSNorm(d_head) if qk_norm else None
        self.k_norm = RMSNorm(d_head) if qk_norm and not shared else None
        self.on_weights: Callable[[Tensor], None] | None = None  # set by capture_weights

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | Mask | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Attend from x to itself, to `memory`, or to what `cache` holds.

        Args:
            x: [B, T, D].
            memory: [B, S, D], for cross-attention; None for self-attention.
            mask: as in `attend`. A `Mask` counts tokens from the first one in the cache.
            cache: keys and values so far; those of x are added. One made by `project_memory` is read only.
            positions: absolute position of each query, int64 [T] or [B, T]; counts on from the cache when None.

        Returns:
            [B, T, D].

        Raises:
            ValueError: a shape does not fit, or both memory and cache are given.
        """
        self._check("x", x)
        if memory is not None and cache is not None:
            raise ValueError("MultiHeadAttention: give memory or cache, not both")
        reads_memory = cache is not None and cache.is_memory
        past = 0 if cache is None or reads_memory else len(cache)
        if positions is None and past:
            positions = torch.arange(past, past + x.shape[1], device=x.device)
        q = self._queries(x, positions)  # [B, H, T, E]
        # Keys come from x or memory, from a memory that was projected before, or from the cache, with x's added.
        if cache is None:
            source, k_pos = (x, positions) if memory is None else (memory, None)
            k, v = self._keys_values(source, k_pos)  # [B, Hkv, S, E]
        elif reads_memory:
            k, v, k_pos = cache.keys, cache.values, cache.positions  # [B, Hkv, S, E]
        else:
            k, v = cache.append(*self._keys_values(x, positions), positions)  # [B, Hkv, L, E]
            k_pos = cache.positions
        if isinstance(mask, Mask):  # a rule counts queries from 0; a tensor has a column for each cached key already
            mask = mask.shifted(past)
        context = self._attend(q, k, v, mask, self._position_bias(q, k, positions, k_pos))  # [B, H, T, E]
        output: Tensor = self.out_proj(context.transpose(1, 2).flatten(2))  # [B, T, D]
        return output

    def project_memory(self, memory: Tensor) -> KVCache:
        """Project the encoder output [B, S, D] once; pass the result as `cache` of every decoding step."""
        return KVCache.of_memory(*self._keys_values(memory, None))

    def _queries(self, x: Tensor, positions: Tensor | None) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.d_head)).transpose(1, 2)  # [B, H, T, E]
        return self._placed(q, self.q_norm, positions)

    def _keys_values(self, source: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        self._check("memory", source)
        heads = (self.num_kv_heads, self.d_head)
        k = (self.k_proj or self.q_proj)(source).unflatten(-1, heads).transpose(1, 2)  # [B, Hkv, S, E]
        v = self.v_proj(source).unflatten(-1, heads).transpose(1, 2)  # [B, Hkv, S, E]
        return self._placed(k, self.k_norm or self.q_norm, positions), v

    def _placed(self, x: Tensor, norm: nn.Module | None, positions: Tensor | None) -> Tensor:
        x = x if norm is None else norm(x)
        return x if self.position is None else self.position.rotate(x, positions)

    def _position_bias(self, q: Tensor, k: Tensor, q_pos: Tensor | None, k_pos: Tensor | None) -> Tensor | None:
        if self.position is None or self.position.place != "scores":
            return None
        q_pos = torch.arange(q.shape[2], device=q.device) if q_pos is None else q_pos
        k_pos = torch.arange(k.shape[2], device=q.device) if k_pos is None else k_pos
        return self.position.bias(q_pos, k_pos)  # [P, H, T, S]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Mask | None, bias: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if isinstance(self.score, Additive):
            scores = self.score(q, k)  # [B, H, T, S]
            if self.on_weights is not None:
                self.on_weights(weights_of_scores(scores.clone(), mask, bias, self.softcap))
            return attend_scores(scores, v, mask, bias, self.softcap, dropout)
        q, k, scale = self.score.as_dot_product(q, k)
        if self.on_weights is not None:
            self.on_weights(attention_weights(q, k, mask, bias, scale, self.softcap))
        return attend(q, k, v, mask, bias, scale, self.softcap, dropout, self.impl)

    def _check(self, name: str, x: Tensor) -> None:
        d_model = self.q_proj.in_features
        if x.dim() != 3 or x.shape[-1] != d_model:
            raise ValueError(f"MultiHeadAttention: {name} must be [B, length, {d_model}], got {list(x.shape)}")


def _check_sizes(
    d_model: int, num_heads: int, num_kv_heads: int, d_head: int | None, score: str, impl: str, dropout: float
) -> None:
    if min(d_model, num_heads, num_kv_heads, 1 if d_head is None else d_head) < 1:
        raise ValueError(
            "MultiHeadAttention: d_model, num_heads, num_kv_heads and d_head must be at least 1, "
            f"got {d_model}, {num_heads}, {num_kv_heads}, {d_head}"
        )
    if d_head is None and d_model % num_heads:
        raise ValueError(
            f"MultiHeadAttention: num_heads must divide d_model = {d_model}, got {num_heads}; or give d_head"
        )
    if num_heads % num_kv_heads:
        raise ValueError(f"MultiHeadAttention: num_kv_heads must divide num_heads = {num_heads}, got {num_kv_heads}")
    if score not in SCORES:
        raise ValueError(f"MultiHeadAttention: score must be one of {', '.join(SCORES)}, got {score!r}")
    if SCORES[score].shares_projection and num_heads != num_kv_heads:
        raise ValueError(
            f"MultiHeadAttention: score={score!r} projects queries and keys alike, so num_kv_heads must equal "
            f"num_heads = {num_heads}, got {num_kv_heads}"
        )
    if impl not in ("auto", *IMPLS):
        raise ValueError(f"MultiHeadAttention: impl must be one of auto, {', '.join(IMPLS)}, got {impl!r}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"MultiHeadAttention: dropout must be in [0, 1), got {dropout}")
