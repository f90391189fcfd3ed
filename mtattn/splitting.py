"""Out of memory is no reason to stop: a batch that does not fit is computed in parts whose gradients add up to its own.

The loss is a sum over tokens, divided by the tokens of the whole step, so parts give the gradient of the whole.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mtattn.batch import Batch
from mtattn.errors import ConfigError
from mtattn.gradient import Gradient
from mtattn.snapshot import load_random, random_tensors

SYMPTOMS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""What CUDA, MPS, torch's CPU allocator on Linux and on Windows, and cuBLAS say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: torch raises a class of its own for CUDA alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(symptom in str(error) for symptom in SYMPTOMS)


class Splitter:
    """Adds up the gradient of a step's batches, in as many parts as memory makes necessary.

    Args:
        gradient: adds the gradient of a batch to the model's.
        model: the model whose gradients these are.
        parts: "pairs x source x target" of a batch that did not fit -> parts that it is computed in. Read, and added
            to: what was learnt is kept, in the checkpoint too, so that a resumed run computes every batch in the same
            parts. A shape that is not there takes as many as make its parts smaller than any that did not fit.
        named: how to name the training pairs of a batch to the user.
        warn: told once about each shape that does not fit.
    """

    def __init__(
        self,
        gradient: Gradient,
        model: nn.Module,
        device: torch.device,
        *,
        pad_id: int,
        parts: dict[str, int],
        named: Callable[[Batch], str],
        warn: Callable[[str], None],
    ) -> None:
        self.gradient, self._model, self._device, self._pad_id = gradient, model, device, pad_id
        self._parts, self._named, self._warn = parts, named, warn

    def add_up(self, group: Sequence[Batch], num_tokens: int) -> Tensor:
        """Give the model the gradient of the group's loss divided by `num_tokens`; the model has none before.

        When memory runs out, the batch at fault is cut into twice as many parts and the whole group starts over from no
        gradient and the same random numbers: whatever a failed attempt had added is gone with it.

        Returns:
            The group's nats, a scalar on the device.

        Raises:
            ConfigError: a single pair does not fit.
        """
        known, random = dict(self._parts), random_tensors(self._device)
        while (nats := self._attempt(group, num_tokens)) is None:
            self._forget(random)
        for shape in (shape for shape, parts in self._parts.items() if parts != known.get(shape)):
            self._warn(
                f"out of memory: batches of {shape} (pairs x source x target) are computed in {self._parts[shape]} "
                "parts from now on, larger ones too, with the same gradient; a smaller train.batch_tokens is faster"
            )
        return nats

    def rehearse(self, group: Sequence[Batch], reserve: int = 0) -> None:
        """Compute batches as a step would and drop the gradient: weights and random numbers stay as they are.

        Args:
            group: the largest batch there is, so that memory runs out before the first step if it ever does.
            reserve: bytes to hold meanwhile, for what only the first step will allocate.
        """
        random = random_tensors(self._device)
        held = torch.empty(reserve, dtype=torch.uint8, device=self._device)
        self.add_up(group, max(1, sum(batch.num_tokens for batch in group)))
        del held
        self._forget(random)

    def fits(self, batch: Batch) -> bool:
        """Whether a batch can be computed in one part; nothing is kept, not even that it cannot."""
        random = random_tensors(self._device)
        found = self._attempt([batch], batch.num_tokens) is not None
        self._parts.pop(_shape(batch), None)
        self._forget(random)
        return found

    def _attempt(self, group: Sequence[Batch], num_tokens: int) -> Tensor | None:
        """The group's nats; None when memory ran out, and the batch at fault then has more parts."""
        nats = torch.zeros((), device=self._device)
        for batch in group:
            try:
                for part in self._split(batch):
                    nats += self.gradient(part, num_tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._split_further(batch, part)
                return None  # only now is the error gone, and with it the tensors that its traceback held
        return nats

    def _split(self, batch: Batch) -> list[Batch]:
        parts = self._num_parts(batch)
        # Every n-th pair: neighbours in a batch are of like length, so each part gets short ones and long ones.
        return [batch] if parts == 1 else [batch.rows(slice(i, None, parts), self._pad_id) for i in range(parts)]

    def _num_parts(self, batch: Batch) -> int:
        """As many as were learnt for this shape, or as the sizes of what did not fit suggest."""
        if known := self._parts.get(_shape(batch)):
            return known
        smallest = min((_size(shape) * 2 / parts for shape, parts in self._parts.items()), default=math.inf)
        parts = 1
        while _size(_shape(batch)) / parts >= smallest:
            parts *= 2
        return min(parts, len(batch.src))

    def _split_further(self, batch: Batch, failed: Batch) -> None:
        pairs, shape = len(batch.src), _shape(batch)
        parts = self._num_parts(batch)
        if parts == pairs:
            raise ConfigError(
                f"out of memory on a single row: {self._named(failed)}, {failed.src.shape[1]} source and "
                f"{failed.tgt_out.shape[1]} target pieces; lower filter.max_len, make [model] smaller, or train on a "
                "device with more memory"
            ) from None
        self._parts[shape] = min(2 * parts, pairs)

    def _forget(self, random: dict[str, Tensor]) -> None:
        self._model.zero_grad(set_to_none=False)
        load_random(random, self._device)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of the old sizes would stand in the way of the new ones


def _shape(batch: Batch) -> str:
    return f"{len(batch.src)} x {batch.src.shape[1]} x {batch.tgt_out.shape[1]}"


def _size(shape: str) -> int:
    """Positions of both sides, which the memory that a batch takes is about proportional to."""
    pairs, src, tgt = map(int, shape.split(" x "))
    return pairs * (src + tgt)
