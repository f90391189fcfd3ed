"""The gradient of one batch, added to what a step has so far; recorded for batches that all have one shape."""

from collections.abc import Callable

import torch
from torch import Tensor

from mtattn.batch import Batch
from mtattn.graph import Recorded


class Gradient:
    """Forward and backward of a batch.

    Packed batches (`mtattn.packing`) all have the shape of the first, so that on a GPU the work is recorded once: each
    is copied to where the first one lay, and the recording replayed. What has another shape, such as part of a batch
    that did not fit into memory, is computed without.

    Args:
        loss: the nats of a batch that lies on the device, summed over its tokens.
        device: where the model is.

    Attributes:
        recorded: the work on the batch that came last.
    """

    def __init__(self, loss: Callable[[Batch], Tensor], device: torch.device) -> None:
        self._loss, self._device = loss, device
        self._held: Batch | None = None
        self._num_tokens = torch.ones((), device=device)
        self.recorded = Recorded(self._of_held, device)

    def __call__(self, batch: Batch, num_tokens: int) -> Tensor:
        """Add the gradient of the batch's loss / num_tokens to the parameters'.

        Returns:
            The batch's nats, a scalar on the device, which the next call may overwrite.
        """
        if self._held is None and batch.packing is not None:
            self._held = batch.to(self._device, copy=True)
        if self._held is None or batch.packing is None or batch.src.shape != self._held.src.shape:
            return self._add(batch.to(self._device), num_tokens)
        for held, new in zip(self._held.tensors(), batch.tensors(), strict=True):
            held.copy_(new, non_blocking=True)
        self._num_tokens.fill_(num_tokens)
        return self.recorded()

    def _of_held(self) -> Tensor:
        assert self._held is not None
        return self._add(self._held, self._num_tokens)

    def _add(self, batch: Batch, num_tokens: int | Tensor) -> Tensor:
        loss = self._loss(batch)
        torch.autograd.backward(loss / num_tokens)
        return loss.detach()
