"""Which number format this machine multiplies fastest, found by measuring; float32 weights behind bfloat16 ones."""

import copy
import timeit
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from mtattn.model import Transformer

Precision = Literal["float32", "bfloat16"]
HOPELESS = 20  # times slower in the first product: it is emulated, and five of them would take seconds
WORTH_IT = 1.3  # bfloat16 must multiply this much faster: its casts and softmax cost some of the gain


def choose_precision(device: torch.device) -> tuple[Precision, str]:
    """("bfloat16" or "float32", the reason in words) for training on this device.

    On a CPU the answer differs by model even within one family: with AMX bfloat16 products run about four times as fast
    as float32 ones, with AVX-512 alone they do not, so both are timed (a few milliseconds). float16 is never chosen:
    its range overflows in training.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "this GPU computes in it") if supported else ("float32", "this GPU has no bfloat16")
    if device.type != "cpu":
        return "float32", f"not measured on {device.type}"
    full, half = _seconds(torch.float32, repeat=5), _seconds(torch.bfloat16, repeat=1)
    if half < HOPELESS * full:
        half = _seconds(torch.bfloat16, repeat=5)
    ratio = full / half
    chosen: Precision = "bfloat16" if ratio >= WORTH_IT else "float32"
    return chosen, f"bfloat16 products ran {ratio:.2g} times as fast as float32 here; {WORTH_IT} makes it worth while"


def _seconds(dtype: torch.dtype, repeat: int) -> float:
    a, b = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    return min(timeit.repeat(lambda: a @ b, number=1, repeat=repeat))


class WorkingModel:
    """The model that forward and backward run in: the master itself in float32, else a bfloat16 copy of it.

    The master keeps float32 weights, which small updates need; the copy is refreshed once a step, so that no
    product casts a weight again. Gradients of both stay where they are, as recorded work (`mtattn.graph`) needs.
    """

    def __init__(self, master: Transformer, dtype: torch.dtype) -> None:
        self.master = master
        self.model = master if dtype == torch.float32 else copy.deepcopy(master).to(dtype)
        self._copies: list[Tensor] = list(self.model.parameters())
        self._masters: list[Tensor] = list(master.parameters())
        self._copied_gradients, self._gradients = gradients_of(self._copies), gradients_of(self._masters)

    @property
    def _shared(self) -> bool:
        return self.model is self.master

    @torch.no_grad()
    def push_weights(self) -> None:
        """Round the master's weights into the copy."""
        if not self._shared:
            torch._foreach_copy_(self._copies, self._masters)

    def pull_gradients(self) -> None:
        """Give the master the copy's gradients, in float32, and leave the copy none."""
        if not self._shared:
            torch._foreach_copy_(self._gradients, self._copied_gradients)
            torch._foreach_zero_(self._copied_gradients)


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of parameters, which have one of zeros from now on where they had none."""
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
