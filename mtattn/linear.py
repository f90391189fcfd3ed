"""Products with weights that no longer change, prepared once for translation: LINEARS says in which precision.

Legend: R rows, I inputs, O outputs. What a row gives depends on that row alone.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

CACHED = 2**18  # floats (1 MiB) worked on at a time, to stay in a core's cache
TINY = 1e-30  # stands for the largest magnitude of a row of zeros, which has none to divide by


class Linear(Protocol):
    """x W^T + b."""

    def __call__(self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """x [R, I] and what to add to the product, [R, O] -> [R, O]; `out` is where to write it, without an add."""


class Float32Linear:
    """The product in float32. Of W and its transpose, a CPU reads the second faster: 1.3 to 2 times for few rows.

    Args:
        weight: [O, I]. bias: [O] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight.detach().t().contiguous(), None if bias is None else bias.detach()

    def __call__(self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """As `Linear` says."""
        if add is not None:
            product = torch.addmm(add, x, self.weight)  # [R, O]
            return product if self.bias is None else product.add_(self.bias)
        if self.bias is not None:
            return torch.addmm(self.bias, x, self.weight, out=out)  # [R, O]
        return torch.mm(x, self.weight, out=out)  # [R, O]


class Bfloat16Linear:
    """The product of numbers of 16 bits: half the memory, and about 4 times faster with AMX; slower without it.

    Sums are float32 and then rounded to bfloat16, as inputs and weights are: by at most 1 / 256 of the value each.

    Args:
        weight: [O, I]. bias: [O] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight.detach().to(torch.bfloat16).t()  # [I, O]
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """As `Linear` says."""
        product = torch.mm(x.to(torch.bfloat16), self.weight)  # [R, O]
        if out is None:
            out = product.float() if add is None else add + product
        else:
            out.copy_(product)
        return out if self.bias is None else out.add_(self.bias)


class Float16Linear:
    """The product with weights of 16 bits, inputs and sums of 32: half the memory to read, which few rows wait for.

    Weights are rounded by at most 1 / 2048 of their value each. FBGEMM has it, which torch brings for x86 with AVX2.

    Args:
        weight: [O, I]. bias: [O] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = torch.ops.quantized.linear_prepack_fp16(weight.detach().contiguous(), bias)  # in FBGEMM's layout

    def __call__(self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """As `Linear` says."""
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.weight)  # [R, O]
        if out is not None:
            return out.copy_(product)
        return product if add is None else product.add_(add)


class Int8Linear:
    """The product of 8-bit integers, summed exactly in 32 bits: a quarter of the memory, and 4 times faster with VNNI.

    Each row of W and each row of x is divided by its own largest magnitude / 127 and rounded, so that a row's result
    does not depend on its neighbours, not even by rounding. Errors are near 1 % of the typical output.

    Args:
        weight: [O, I]. bias: [O] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        scale = weight.detach().abs().amax(1).clamp_min_(TINY) / 127  # [O]
        self.weight = (weight.detach() / scale[:, None]).round_().to(torch.int8).t()  # [I, O]
        self.scale, self.bias = scale / 127, None if bias is None else bias.detach()

    def __call__(self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """As `Linear` says."""
        num_rows, num_outputs = len(x), self.scale.size(0)
        if out is None:
            out = x.new_empty(num_rows, num_outputs)
        step = max(1, CACHED // max(x.size(1), num_outputs))
        for i in range(0, num_rows, step):
            self._product(x[i : i + step], None if add is None else add[i : i + step], out[i : i + step])
        return out

    def _product(self, x: Tensor, add: Tensor | None, out: Tensor) -> None:
        largest = x.abs().amax(1, keepdim=True).clamp_min_(TINY)  # [R, 1]
        product = self._multiply(x, 127 / largest)  # [R, O]
        if add is not None:
            torch.addcmul(add, product, largest, out=out)
        else:
            torch.mul(product, largest, out=out)
        if self.bias is not None:
            out.add_(self.bias)

    def _multiply(self, x: Tensor, factor: Tensor) -> Tensor:
        """Each row of x [R, I] times its factor [R, 1], rounded, times W^T / 127 -> [R, O]."""
        rows = (x * factor).round_().to(torch.int8)  # [R, I]
        return torch._int_mm(rows, self.weight).to(x.dtype).mul_(self.scale)


class NarrowInt8Linear(Int8Linear):
    """Int8Linear for x86 processors without VNNI, on which `torch._int_mm` takes 30 times as long as float32.

    They add products up in pairs, in 16 bits that do not hold 2 * 255 * 127. So weights are rounded to 7 bits, at most
    63 in magnitude; and since these processors multiply unsigned by signed, 128 is added to the inputs.

    Args:
        weight: [O, I]. bias: [O] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        scale = weight.detach().abs().amax(1).clamp_min_(TINY) / 63  # [O]
        rounded = (weight.detach() / scale[:, None]).round_().to(torch.int8)  # [O, I]
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)  # in oneDNN's own layout
        self.scale, self.bias = scale / 127, None if bias is None else bias.detach()
        self.zeros, self.half = torch.zeros(len(scale), dtype=torch.int64), torch.tensor(128.5)

    def _multiply(self, x: Tensor, factor: Tensor) -> Tensor:
        rows = torch.addcmul(self.half, x, factor).to(torch.uint8)  # [R, I]; to() rounds down
        scaled = self.weight, self.scale, self.zeros, None
        plain = 1.0, 0, torch.float32, "none", list[Tensor](), ""  # how the output is scaled, its type, what follows
        product: Tensor = torch.ops.onednn.qlinear_pointwise(rows, 1.0, 128, *scaled, *plain)
        return product


def int8_linear(weight: Tensor, bias: Tensor | None = None) -> Int8Linear:
    """The kind of Int8Linear that suits this processor."""
    found = torch.cpu.get_capabilities()
    narrow = found["architecture"] == "x86_64" and not found["avx512_vnni"]
    return (NarrowInt8Linear if narrow else Int8Linear)(weight, bias)


LINEARS: dict[str, Callable[[Tensor, Tensor | None], Linear]] = {
    "none": Float32Linear,
    "bfloat16": Bfloat16Linear,
    "float16": Float16Linear,
    "int8": int8_linear,
}
"""How products are computed, by the value of decode.quantization."""


def unavailable(quantization: str) -> str:
    """Why this machine cannot multiply so; "" when it can."""
    if quantization == "float16" and torch.backends.quantized.engine not in ("x86", "fbgemm"):
        return "torch multiplies with such weights on x86 processors with AVX2 alone"
    return ""
