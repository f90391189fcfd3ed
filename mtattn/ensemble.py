"""Several models as one: the mean of their probabilities at each step (Sutskever et al. 2014, arXiv:1409.3215)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtattn.decode import Step


class Ensemble:
    """A decoding step that averages others: log p = log(1/M sum_m p_m), the mean of M distributions.

    It satisfies `mtattn.decode.Step`, so that a search does not know how many models it asks. Its logits are
    log-probabilities, float32, whatever the members' are.

    Args:
        steps: the members', of the same sentences, over one vocabulary; at least one.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps

    def __call__(self, tokens: Tensor, parents: Tensor | None, alive: Tensor | None = None) -> Tensor:
        """tokens [N, K], parents [N, K] or None -> [N, K, V], or [R, V] of the R places that are alive."""
        log_probs = (step(tokens, parents, alive).float().log_softmax(-1) for step in self.steps)
        total = next(log_probs)  # [N, K, V] or [R, V]
        for more in log_probs:
            total = torch.logaddexp(total, more)
        return total - math.log(len(self.steps))

    def select(self, sentences: Tensor) -> None:
        """Keep only these sentences, in this order."""
        for step in self.steps:
            step.select(sentences)
