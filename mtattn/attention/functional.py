"""`attend`: scaled dot-product attention, one function with several ways to compute it.

    attend(q, k, v) = softmax(q k^T * scale + bias) v          (Vaswani 2017, equation 1)

Each way is a function in `IMPLS`, and equals `reference`, the formula written to be read.
Letters: B batch, H query heads, Hkv key heads, T queries, S keys, E d_head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .banded import banded, pays_off
from .chunked import chunked
from .flex import flex
from .predicate import Dense, Mask
from .reference import dot_product_scores, masked_softmax, materialised, reference, weighted_sum
from .sdpa import sdpa

Impl = Callable[[Tensor, Tensor, Tensor, "Mask | Dense | None", "Tensor | None", float, "float | None", float], Tensor]
"""(q, k, v, mask, bias, scale, softcap, dropout) -> output; what an entry of IMPLS is."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | Mask | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Attend: for each query, the mean of the values weighted by softmax(cap(q k^T * scale) + bias).

    A query that may attend to nothing gives zeros, and zero gradients, on every path.

    Args:
        q: [B, H, T, E].
        k: [B, Hkv, S, E]; Hkv divides H. Hkv = H is multi-head, 1 is multi-query (Shazeer 2019), between is
            grouped-query attention (Ainslie 2023): head h reads key head h // (H / Hkv).
        v: [B, Hkv, S, Ev]; Ev is E as a rule.
        mask: None, a `Mask`, or a bool tensor that broadcasts to [B, H, T, S] (rank 2 or 4); True = may attend.
        bias: added to the scores after the cap; floating, broadcasts to [B, H, T, S]; may need gradients.
        scale: factor of q k^T; 1 / sqrt(E) when None.
        softcap: c of cap(x) = c tanh(x / c), which keeps scores within (-c, c) (Gemma 2); None for no cap.
        dropout: probability in [0, 1) with which a weight is dropped.
        impl: "auto" or a key of `IMPLS`; `chosen_impl` says what "auto" takes.

    Returns:
        [B, H, T, Ev].

    Raises:
        ValueError: a shape, type or range does not fit, or `impl` cannot do what is asked.
    """
    rule = check_inputs(q, k, v, mask, bias, softcap, dropout)
    if impl == "auto":
        impl = _choose(q, k, v, rule, bias, softcap, dropout)
    elif impl not in IMPLS:
        raise ValueError(f"attend: impl must be one of auto, {', '.join(IMPLS)}, got {impl!r}")
    bias = None if bias is None else bias.to(q.dtype)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    return IMPLS[impl](q, k, v, rule, bias, scale, softcap, dropout)


def attention_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | Mask | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return the weights [B, H, T, S] that `attend` would use: each row sums to 1, or is 0 where nothing may be seen.

    Args, Raises: as for `attend`.
    """
    check_inputs(q, k, k, mask, bias, softcap)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    return weights_of_scores(dot_product_scores(q, k, scale), mask, bias, softcap)


def weights_of_scores(
    scores: Tensor, mask: Tensor | Mask | None = None, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Return softmax(cap(scores) + bias) [B, H, T, S] over the allowed keys, of scores of any kind (overwritten)."""
    dense = materialised(_checked_mask(mask, bias, scores.shape), scores.shape[2], scores.shape[3], scores.device)
    weights = masked_softmax(scores, dense, bias, softcap)
    return weights if dense is None or dense.dead is None else weights.masked_fill(dense.dead, 0.0)


def attend_scores(
    scores: Tensor,
    v: Tensor,
    mask: Tensor | Mask | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend with scores [B, H, T, S] (overwritten) that no dot product gives, such as `Additive`; else as `attend`."""
    dense = materialised(_checked_mask(mask, bias, scores.shape), scores.shape[2], scores.shape[3], scores.device)
    return weighted_sum(masked_softmax(scores, dense, bias, softcap), v, dense, dropout)


IMPLS: dict[str, Impl] = {
    "reference": reference,
    "sdpa": sdpa,
    "banded": banded,
    "chunked": chunked,
    "flex": flex,
}
"""The ways to compute attention; all give the same values and gradients, within rounding."""


def chosen_impl(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | Mask | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> str:
    """Return the key of `IMPLS` that `attend(..., impl="auto")` takes for these arguments."""
    return _choose(q, k, v, check_inputs(q, k, v, mask, bias, softcap, dropout), bias, softcap, dropout)


# What "auto" goes by. Milliseconds on 2 cores (AVX-512), H * E = 256, layout [B, T, H, E], commit 97c7a4a.
#   [B, T]                              [256, 16]      [64, 64]       [16, 256]      [4, 1024]
#   forward + backward, float32:
#     reference / sdpa                  6.6 / 4.8      11.7 / 9.5     27 / 24        150 / 74
#     the same, causal                  9.7 / 6.1      9.7 / 7.5      34 / 25        244 / 49
#     with a learned bias               6.1 / 8.6                     30 / 32        492 / 480
#     with dropout                      10.4 / 11.6                   70 / 71
#   forward + backward, bfloat16        8.8 / 61       11.7 / 32      35 / 54        163 / 124
#   forward alone, float32              2.1 / 1.5      2.6 / 2.0      8.7 / 6.4      79 / 24
#   forward alone, bfloat16             2.1 / 1.6      3.1 / 2.9      11.7 / 9.4     62 / 34
# One decoding step, [32, 5] queries on 20 keys: 0.27 / 0.18.
_HALF_BACKWARD_LENGTH = 512
# Scores beyond this many numbers (1 GiB in float32, and the reference holds several of them) are computed in chunks.
_MOST_SCORES = 2**28


def _choose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Dense | None,
    bias: Tensor | None,
    softcap: float | None,
    dropout: float,
) -> str:
    training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if softcap is not None or (bias is not None and bias.requires_grad and torch.is_grad_enabled()):
        # The fused kernels have no cap, and give no gradient to a bias; their fallback is no faster than the reference.
        many = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] > _MOST_SCORES
        return "chunked" if many and not dropout else "reference"
    if bias is None and pays_off(mask, q.shape[2], k.shape[2]):
        return "banded"
    if q.device.type == "cpu":
        if dropout:
            return "reference"
        if training and q.element_size() < 4 and k.shape[2] < _HALF_BACKWARD_LENGTH:
            return "reference"
    return "sdpa"


def check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | Mask | None,
    bias: Tensor | None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Mask | Dense | None:
    """Raise ValueError for arguments that do not fit each other, and return the mask without its trivial parts."""
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(
            "attend: q, k and v must have rank 4, [batch, heads, length, d_head]; got shapes "
            f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    batch, heads, queries, d_head = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    if k.shape != (batch, kv_heads, keys, d_head) or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"attend: k must be [B, Hkv, S, E] with q's B = {batch} and E = {d_head}, "
            f"and v must share its B, Hkv and S; got k {list(k.shape)}, v {list(v.shape)}"
        )
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"attend: the heads of k and v must divide the {heads} heads of q, got {kv_heads}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attend: q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"attend: dropout must be in [0, 1), got {dropout}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"attend: softcap must be positive or None, got {softcap}")
    return _checked_mask(mask, bias, (batch, heads, queries, keys))


def _checked_mask(mask: Tensor | Mask | None, bias: Tensor | None, shape: tuple[int, ...]) -> Mask | Dense | None:
    if bias is not None:
        _check_broadcast("bias", bias, shape)
        if not bias.is_floating_point():
            raise ValueError(f"attend: bias must be floating point, got {bias.dtype}; a bool tensor belongs in mask")
    if mask is None:
        return None
    if isinstance(mask, Mask):
        for name, made_for, size in (("batch", mask.batch, shape[0]), ("heads", mask.heads, shape[1])):
            if made_for not in (None, size):
                raise ValueError(f"attend: mask is made for {name} = {made_for}, but q has {size}")
        mask.check(*shape[2:])
        return mask.simplified()
    if mask.dtype != torch.bool:
        raise ValueError(f"attend: mask must be bool (True = may attend), got {mask.dtype}; numbers to add go in bias")
    _check_broadcast("mask", mask, shape)
    return Dense(mask)


def _check_broadcast(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    # Rank 3 is refused because [B, T, S] would silently broadcast as [1, B, T, S].
    fits = tensor.dim() in (2, 4) and all(
        size in (1, full) for size, full in zip(tensor.shape, shape[4 - tensor.dim() :], strict=True)
    )
    if not fits:
        raise ValueError(
            f"attend: {name} must be [T, S] or [B, H, T, S] = {list(shape)} where any axis may be 1, "
            f"got {list(tensor.shape)}"
        )
