"""Dropout whose random numbers are cheap on a CPU.

torch's CPU dropout draws one float a value, one after the other: 71 ms forward and backward for [4096, 1024] on two
cores, the largest single cost of a training step. One 64-bit draw holds eight independent bytes, and a byte decides
one value: 12 ms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero each value with probability p, scale the rest by 1/(1-p): the mean stays (Srivastava et al. 2014).

    Args:
        p: probability, 0 <= p < 1; on a CPU rounded to k/256, k < 256, and the scale with it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop while training, else return x itself. Shape and dtype stay."""
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * _scaled_mask(x, min(round(self.p * 256), 255))

    def extra_repr(self) -> str:
        """Show p in the model's printout."""
        return f"p={self.p}"


def _scaled_mask(x: Tensor, threshold: int) -> Tensor:
    """0 with probability threshold/256, else 256/(256 - threshold); in x's dtype, so that a product is one pass."""
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    values = draws.view(torch.uint8)[: x.numel()].view(x.shape).to(x.dtype)  # bfloat16 holds each of them, too
    return values.ge_(threshold).mul_(256 / (256 - threshold))  # in place: comparing to bool takes four times as long
