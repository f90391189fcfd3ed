"""Label-smoothed cross entropy as (sum in nats, number of tokens), and a form that never holds all logits.

Every loss here returns a sum and a count and the caller divides once: gradient accumulation, ragged last batches
and several ranks then give the gradient of one big batch.

Legend: N tokens, D d_model, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossConfig:
    """The `[loss]` section.

    label_smoothing: share of the probability mass spread evenly over the vocabulary (Szegedy et al. 2016), in [0, 1).
    rdrop: weight of R-Drop's symmetric KL term (Wu et al. 2021, arXiv:2106.14448); 0 turns it off. Each batch then
        passes the model twice under different dropout, so a step costs about twice as much.
    """

    label_smoothing: float = 0.1
    rdrop: float = 0.0
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; allowed: 0 <= label_smoothing < 1")
        if self.rdrop < 0:
            raise ValueError(f"rdrop is {self.rdrop}; allowed: 0 (off) or more")


def cross_entropy(logits: Tensor, targets: Tensor, *, pad_id: int, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Label-smoothed cross entropy, written as its formula: sum over tokens of -(1-e) log p(y) - e/V sum_v log p(v).

    Args:
        logits: [..., V], any float dtype; the arithmetic is float32 or better.
        targets: [...], int64; positions equal to `pad_id` count for nothing.
        pad_id: the padding id.
        label_smoothing: e, in [0, 1).

    Returns:
        (sum in nats, number of tokens that are not padding), both scalars.
    """
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    nll = -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    uniform = -log_probs.mean(-1)
    real = targets != pad_id
    per_token = (1 - label_smoothing) * nll + label_smoothing * uniform
    return (per_token * real).sum(), real.sum()


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, pad_id: int, label_smoothing: float = 0.0, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """`cross_entropy(hidden @ weight.T, targets)` that holds `chunk` rows of logits at a time.

    The gradients are computed in the forward pass, chunk by chunk, while the chunk's logits are still in cache:
    d(loss)/d(logits) = softmax(logits) - (1-e) onehot(y) - e/V, so nothing of size N x V outlives its chunk.

    Args:
        hidden: [N, D], the decoder's output; float32 or bfloat16.
        weight: [V, D], the output embedding, same dtype.
        targets: [N], int64.

    Returns:
        (sum in nats, number of tokens), as `cross_entropy`.
    """
    total: Tensor = _ChunkedLoss.apply(hidden, weight, targets, pad_id, label_smoothing, 0.0, chunk)  # type: ignore[no-untyped-call]
    return total, (targets != pad_id).sum()


def linear_rdrop(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    pad_id: int,
    label_smoothing: float = 0.0,
    rdrop: float,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """R-Drop (Wu et al. 2021) over two passes of one batch: mean cross entropy + rdrop/4 (KL(p1|p2) + KL(p2|p1)).

    The sum over both passes is halved, so that one batch of n tokens still counts as n tokens. The paper's loss for
    one example is nll1 + nll2 + a/2 (KL + KL); half of it is what stands here, with a = `rdrop`.

    Args:
        hidden: [2N, D]: rows i and N+i are the two passes of the same token.
        weight: [V, D].
        targets: [N], int64.

    Returns:
        (sum in nats, number of tokens).
    """
    total: Tensor = _ChunkedLoss.apply(hidden, weight, targets, pad_id, label_smoothing, rdrop, chunk)  # type: ignore[no-untyped-call]
    return total / 2, (targets != pad_id).sum()


class _ChunkedLoss(torch.autograd.Function):
    """The sum of the loss over `passes` copies of the targets; saves its own gradients instead of logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        pad_id: int,
        label_smoothing: float,
        rdrop: float,
        chunk: int,
    ) -> Tensor:
        num_tokens = targets.shape[0]
        passes = hidden.view(-1, num_tokens, hidden.shape[-1])  # [P, N, D], P is 1, or 2 with R-Drop
        grad_hidden = torch.empty_like(passes)
        # bfloat16 would lose the small addends of many chunks; one chunk's own sum is float32 inside the product.
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        total = grad_weight.new_zeros(())
        for start in range(0, num_tokens, chunk):
            rows = slice(start, start + chunk)
            real = (targets[rows] != pad_id).unsqueeze(-1)  # [c, 1]
            log_probs = [_log_probs(h[rows], weight) for h in passes]  # P x [c, V]
            pull = _consistency(log_probs, real, rdrop) if rdrop else [None]
            for p, log_prob in enumerate(log_probs):
                loss, grad_logits = _nll_and_grad(log_prob, targets[rows], real, label_smoothing)
                total += loss
                if (extra := pull[p]) is not None:
                    total += extra[0]
                    grad_logits += extra[1]
                grad_logits = grad_logits.to(weight.dtype)  # [c, V]
                torch.mm(grad_logits, weight, out=grad_hidden[p, rows])  # [c, D]
                grad_weight += grad_logits.T @ passes[p, rows]  # [V, D]
        ctx.save_for_backward(grad_hidden.view_as(hidden), grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_total, grad_weight * grad_total, None, None, None, None, None


def _log_probs(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = hidden @ weight.T  # [c, V]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _nll_and_grad(log_probs: Tensor, targets: Tensor, real: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """(loss sum, d loss / d logits [c, V]) of label-smoothed cross entropy."""
    index = targets.unsqueeze(-1)  # [c, 1]
    per_token = -(1 - smoothing) * log_probs.gather(-1, index)
    if smoothing:
        per_token -= smoothing * log_probs.mean(-1, keepdim=True)
    grad = log_probs.exp().sub_(smoothing / log_probs.shape[-1])
    grad.scatter_add_(-1, index, grad.new_full(index.shape, smoothing - 1))
    return (per_token * real).sum(), grad.mul_(real)


def _consistency(log_probs: list[Tensor], real: Tensor, rdrop: float) -> list[tuple[Tensor, Tensor]]:
    """R-Drop's term for each pass: (its share of the loss, its gradient on that pass's logits).

    With l = log p: KL(p|q) = sum p (l_p - l_q); d KL(p|q)/d logits_p = p (l_p - l_q - KL(p|q)) and
    d KL(q|p)/d logits_p = p - q.
    """
    first, second = log_probs
    gap = first - second  # [c, V]
    p, q = first.exp(), second.exp()
    kl_pq = (p * gap).sum(-1, keepdim=True)  # [c, 1]
    kl_qp = -(q * gap).sum(-1, keepdim=True)  # [c, 1]
    weight = rdrop / 2 * real
    difference = p - q
    grad_first = p * (gap - kl_pq) + difference
    grad_second = q * (-gap - kl_qp) - difference
    return [((kl_pq * weight).sum(), grad_first * weight), ((kl_qp * weight).sum(), grad_second * weight)]
