"""Attention as in a textbook: one head, no projections, three steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d_k)) V (Vaswani 2017, equation 1), in three steps that can be pointed at.

    It has no parameters. A Transformer layer adds the result to its input, x + Attention(x): the residual form, which
    stands in the model and not here. `attend` computes the same faster.

    Args:
        d_k: size of a query and of a key, at least 1.

    Raises:
        ValueError: d_k is not a positive int.
    """

    def __init__(self, d_k: int) -> None:
        super().__init__()
        if not isinstance(d_k, int) or d_k < 1:
            raise ValueError(f"Attention: d_k must be an int of at least 1, got {d_k!r}")
        self.d_k = d_k

    def forward(
        self, Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from each query to all keys.

        Args:
            Q: queries [..., T, d_k], with any leading axes: [B, T, d_k], [B, H, T, d_k].
            K: keys [..., S, d_k].
            V: values [..., S, d_v].
            mask: bool, broadcastable to [..., T, S]; True = may attend. A query that may attend to nothing gives zeros.
            return_weights: also return the weights.

        Returns:
            The context [..., T, d_v]; with `return_weights`, the pair (context, weights [..., T, S]).

        Raises:
            ValueError: a last axis is not d_k, K and V differ in length, or the mask is not bool.
        """
        self._check(Q, K, V, mask)
        # Step 1: the weights. How well does each key answer each query? Each row sums to 1.
        scores = Q @ K.transpose(-2, -1) / math.sqrt(self.d_k)  # [..., T, S]
        weights = scores.softmax(dim=-1) if mask is None else _masked_softmax(scores, mask)  # [..., T, S]
        # Step 2: the weighted sum of the values.
        context = weights @ V  # [..., T, d_v]
        # Step 3: the output.
        return (context, weights) if return_weights else context

    def _check(self, Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None) -> None:
        for name, tensor in (("Q", Q), ("K", K)):
            if tensor.dim() < 2 or tensor.shape[-1] != self.d_k:
                raise ValueError(f"Attention: {name} must be [..., length, {self.d_k}], got {list(tensor.shape)}")
        if V.dim() < 2 or V.shape[-2] != K.shape[-2]:
            raise ValueError(f"Attention: V must be [..., {K.shape[-2]}, d_v] like K, got {list(V.shape)}")
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"Attention: mask must be bool (True = may attend), got {mask.dtype}")


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    hidden = ~mask
    # The lowest number instead of -inf: a row that is hidden as a whole stays finite, and is then set to zero.
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(hidden, lowest).softmax(dim=-1).masked_fill(hidden, 0.0)
