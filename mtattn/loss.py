"""Label-smoothed cross entropy as (sum in nats, number of tokens), in a form that never holds all logits.

Every loss here returns a sum and a count and the caller divides once: gradient accumulation, ragged last batches
and several ranks then give the gradient of one big batch.

Legend: N tokens, D d_model, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = {False: 256, True: 8192}
"""Rows of logits at a time, by whether they are on a GPU: 256 x 8,000 of them are 8 MB, which a shared
cache holds, and enough rows for a fast product; a GPU is filled by thousands of rows."""


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
        if not 0 <= self.rdrop < math.inf:
            raise ValueError(f"rdrop is {self.rdrop}; allowed: 0 (off) or more")


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, pad_id: int, label_smoothing: float = 0.0, chunk: int = 0
) -> tuple[Tensor, Tensor]:
    """Label-smoothed cross entropy of the logits hidden @ weight.T, holding `chunk` rows of them at a time.

    The sum over tokens of -(1-e) log p(y) - e/V sum_v log p(v), as `torch.nn.functional.cross_entropy` has it.

    The gradients are computed in the forward pass, chunk by chunk, while a chunk's logits are still in the cache:
    nothing of size N x V outlives its chunk, and only four passes over a chunk are not matrix products.

    Args:
        hidden: [N, D], the decoder's output; float32 or bfloat16.
        weight: [V, D], the output embedding, same dtype.
        targets: [N], int64; positions equal to `pad_id` count for nothing.
        pad_id: the padding id.
        label_smoothing: e, in [0, 1).
        chunk: rows; 0: as CHUNK says for the device.

    Returns:
        (sum in nats, number of tokens that are not padding), both scalars.
    """
    apply = cast(Callable[..., Tensor], _LinearCrossEntropy.apply)
    total = apply(hidden, weight, targets, pad_id, label_smoothing, chunk or CHUNK[hidden.is_cuda])
    return total, (targets != pad_id).sum()


def linear_rdrop(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    pad_id: int,
    label_smoothing: float = 0.0,
    rdrop: float,
    chunk: int = 0,
) -> tuple[Tensor, Tensor]:
    """R-Drop (Wu et al. 2021) over two passes of one batch: mean cross entropy + rdrop/4 (KL(p1|p2) + KL(p2|p1)).

    The sum over both passes is halved, so that one batch of n tokens still counts as n tokens. The paper's loss for
    one example is nll1 + nll2 + a/2 (KL + KL); half of it is what stands here, with a = `rdrop`.

    Args:
        hidden: [2N, D]: rows i and N+i are the two passes of the same token.
        weight: [V, D].
        targets: [N], int64.
        rdrop: a, more than 0.

    Returns:
        (sum in nats, number of tokens).
    """
    apply = cast(Callable[..., Tensor], _LinearRDrop.apply)
    total = apply(hidden, weight, targets, pad_id, label_smoothing, rdrop, chunk or CHUNK[hidden.is_cuda])
    return total / 2, (targets != pad_id).sum()


class _SavesGradients(torch.autograd.Function):
    """A loss whose forward pass has worked out the gradients of its first two arguments."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_total, grad_weight * grad_total, *[None] * (len(ctx.needs_input_grad) - 2)


class _LinearCrossEntropy(_SavesGradients):
    """Cross entropy that saves its own gradients instead of logits.

    With logits z = W h, p = softmax(z) and y the target, d(loss)/dz = p - (1-e) onehot(y) - e/V. The last term
    reaches h and W through W's mean row. And p = exp(z - m) / s is never divided out: the factor 1/s goes to the short
    side of each product.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, pad_id: int, smoothing: float, chunk: int
    ) -> Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        real = (targets != pad_id).to(wide).unsqueeze(-1)  # [N, 1]
        index = targets.unsqueeze(-1)  # [N, 1]
        mean_row = weight.to(wide).mean(0)  # [D]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=wide)
        log_z, scores = torch.empty_like(real), torch.empty_like(real)  # [N, 1]; scores are the targets' logits
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ weight.T).to(wide)  # [c, V]
            scores[rows] = logits.gather(-1, index[rows])
            highest = logits.amax(-1, keepdim=True)  # [c, 1]
            exps = logits.sub_(highest).exp_()  # [c, V]
            sums = exps.sum(-1, keepdim=True)  # [c, 1]
            log_z[rows] = sums.log() + highest
            exps.scatter_add_(-1, index[rows], (smoothing - 1) * sums)  # s (p - (1-e) onehot(y))
            exps, share = exps.to(weight.dtype), real[rows] / sums
            grad_hidden[rows] = (exps @ weight) * share  # [c, D]
            _add_product(grad_weight, exps.T, (hidden[rows] * share).to(weight.dtype))  # [V, D]
        mean_scores = (hidden.to(wide) @ mean_row).unsqueeze(-1)  # [N, 1], the mean logits
        total = (real * (log_z - (1 - smoothing) * scores - smoothing * mean_scores)).sum()
        _add_smoothing(grad_hidden, grad_weight, hidden, real, mean_row, smoothing)
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total


class _LinearRDrop(_SavesGradients):
    """The sum over both passes of cross entropy and consistency; saves its own gradients instead of logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        pad_id: int,
        smoothing: float,
        rdrop: float,
        chunk: int,
    ) -> Tensor:
        num_tokens, weight_of_kl = targets.shape[0], rdrop / 2
        passes = hidden.view(2, num_tokens, -1)  # [2, N, D]
        wide = torch.promote_types(weight.dtype, torch.float32)
        real = (targets != pad_id).to(wide).unsqueeze(-1)  # [N, 1]
        share = real * weight_of_kl  # what _consistency leaves out of gradients goes to the short side of each product
        grad_hidden = torch.empty_like(passes)
        grad_weight = torch.zeros_like(weight, dtype=wide)
        total = grad_weight.new_zeros(())
        for start in range(0, num_tokens, chunk):
            rows = slice(start, start + chunk)
            first, second = (_log_probs(h[rows], weight) for h in passes)  # [c, V]
            nll = sum(_nll(log_probs, targets[rows], smoothing) for log_probs in (first, second))  # [c, 1]
            kl, grads = _consistency(first, second, targets[rows], weight_of_kl, smoothing, weight.dtype)
            total += ((nll + weight_of_kl * kl) * real[rows]).sum()
            for h, own_grad, grad_logits in zip(passes, grad_hidden, grads, strict=True):
                own_grad[rows] = (grad_logits @ weight) * share[rows]  # [c, D]
                _add_product(grad_weight, grad_logits.T, (h[rows] * share[rows]).to(weight.dtype))  # [V, D]
        _add_smoothing(grad_hidden, grad_weight, passes, real, weight.to(wide).mean(0), smoothing)
        ctx.save_for_backward(grad_hidden.view_as(hidden), grad_weight.to(weight.dtype))
        return total


def _add_smoothing(
    grad_hidden: Tensor, grad_weight: Tensor, hidden: Tensor, real: Tensor, mean_row: Tensor, smoothing: float
) -> None:
    """What -e/V of every logit, of each real row of hidden [.., N, D], adds to both gradients, by W's mean row [D]."""
    if smoothing:
        grad_hidden -= (real * smoothing * mean_row).to(hidden.dtype)
        grad_weight -= (hidden * real).sum(tuple(range(hidden.dim() - 1))) * (smoothing / len(grad_weight))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b. `total` is float32 or wider: bfloat16 would lose small addends, though not inside one product."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _log_probs(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = hidden @ weight.T  # [c, V]
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _nll(log_probs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Label-smoothed cross entropy of each row, [c, 1]."""
    nll = -(1 - smoothing) * log_probs.gather(-1, targets.unsqueeze(-1))
    return nll - smoothing * log_probs.mean(-1, keepdim=True) if smoothing else nll


def _consistency(
    first: Tensor, second: Tensor, targets: Tensor, weight: float, smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """The sum of both divergences, [c, 1], and over w the gradient of the whole loss on each pass's logits, 2 x [c, V].

    With l = log p: KL(p|q) = sum p (l_p - l_q); d KL(p|q)/d logits_p = p (l_p - l_q - KL(p|q)) and
    d KL(q|p)/d logits_p = p - q. That of cross entropy is p - (1-e) onehot(y) - e/V, whose last term the caller has.
    So with w the weight, the gradient over w is p (l_p - l_q) + ((1 + w) / w - KL(p|q)) p - q - (1-e)/w onehot(y), and
    the same with p and q exchanged. `first` and `second`, log-probabilities [c, V], are overwritten: at this size
    every pass over memory counts.
    """
    gap = first - second  # [c, V]
    p, q = first.exp_(), second.exp_()
    p_gap, q_gap = p * gap, gap.neg_().mul_(q)  # [c, V]
    index, both = targets.unsqueeze(-1), (1 + weight) / weight
    kl_pq, kl_qp = (x.sum(-1, keepdim=True) for x in (p_gap, q_gap))  # [c, 1]
    target = torch.full_like(kl_pq, (smoothing - 1) / weight)
    grads = []
    for x, own, other, kl in ((p_gap, p, q, kl_pq), (q_gap, q, p, kl_qp)):
        x.addcmul_(own, both - kl).scatter_add_(-1, index, target)
        grads.append(torch.sub(x, other, out=x if x.dtype == dtype else torch.empty_like(x, dtype=dtype)))
    return kl_pq + kl_qp, grads
