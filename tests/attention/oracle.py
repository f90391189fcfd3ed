"""Attention from the paper's formula, in float64 and with nothing of the package: what every path is held to."""

import math

import torch


def oracle(q, k, v, allowed=None, bias=None, scale=None, softcap=None):
    """softmax(cap(q k^T scale) + bias) v for [B, H, T, E]; `allowed` is bool, broadcastable to [B, H, T, S]."""
    k, v = (torch.repeat_interleave(x, q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("bhte,bhse->bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if allowed is None:
        allowed = torch.ones((), dtype=torch.bool)
    allowed = allowed.expand(scores.shape)
    top = scores.masked_fill(~allowed, -math.inf).amax(-1, keepdim=True).clamp(min=-1e300).detach()
    exponentials = torch.where(allowed, (scores - top).clamp(max=0).exp(), 0.0)
    sums = exponentials.sum(-1, keepdim=True)
    weights = exponentials / torch.where(sums > 0, sums, 1.0)
    return torch.einsum("bhts,bhse->bhte", weights, v)


def values_and_gradients(function, inputs, upstream):
    """The output of function(*inputs) and the gradients of (output * upstream).sum(), as one list."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream.to(output.dtype))]


def error(got, expected):
    """Euclidean distance, each tensor's own: steadier than the largest difference."""
    return [torch.linalg.vector_norm(a.double() - b.double()).item() for a, b in zip(got, expected, strict=True)]
