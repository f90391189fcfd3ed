"""See the weights of every attention layer of a model, without changing the model or its output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .multihead import MultiHeadAttention


@contextmanager
def capture_weights(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record the attention weights of each layer while the context is open.

        with capture_weights(model) as weights:
            model(...)
        weights["decoder.0.cross_attn"][-1]     # [B, H, T, S], of the last call of that layer

    The weights are computed beside the output from the same queries, keys, mask and bias, before dropout, and
    detached; outside the context a layer does one comparison more than without the feature.

    Args:
        model: a MultiHeadAttention, or any module that contains some.

    Yields:
        The name of each attention layer within `model` ("" for `model` itself) and a list, one tensor
        [B, H, T, S] for each call.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MultiHeadAttention)}
    weights: dict[str, list[Tensor]] = {name: [] for name in layers}
    before = {name: layer.on_weights for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.on_weights = lambda tensor, seen=weights[name]: seen.append(tensor.detach())
        yield weights
    finally:
        for name, layer in layers.items():
            layer.on_weights = before[name]
