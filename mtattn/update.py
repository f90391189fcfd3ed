"""From a step's gradient to new weights: clip, optimise, average; on a GPU recorded once and replayed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mtattn.graph import Recorded
from mtattn.model import Transformer
from mtattn.optim import Optimizer
from mtattn.precision import WorkingModel, gradients_of


class Update:
    """What a step does once its gradient is known to be finite.

    Args:
        working: the model that gradients were computed in, and the master whose weights are optimised.
        optimizers: the master's.
        average: follows the master's weights; None: there is none.
        clip_norm: the gradient's global norm is cut to this; 0: it is not.
        record: whether the work may be recorded: not where it waits for other ranks.

    Attributes:
        recorded: the work, for the norm and the weight that came last.
    """

    def __init__(
        self,
        working: WorkingModel,
        optimizers: Sequence[Optimizer],
        average: Transformer | None,
        clip_norm: float,
        *,
        record: bool = True,
    ) -> None:
        self._working, self._optimizers, self._clip_norm = working, optimizers, clip_norm or math.inf
        self._parameters: list[Tensor] = list(working.master.parameters())
        self._gradients = gradients_of(self._parameters)
        self._averages: list[Tensor] = [] if average is None else list(average.parameters())
        self._norm, self._weight = (torch.zeros((), device=self._parameters[0].device) for _ in range(2))
        self.recorded = Recorded(self._apply, self._parameters[0].device) if record else self._apply

    def norm(self) -> Tensor:
        """The gradient's global norm, a scalar on the device."""
        return get_total_norm(self._gradients)

    def __call__(self, norm: Tensor, weight: float) -> None:
        """Change the weights by the gradient, and leave no gradient.

        Args:
            norm: the gradient's.
            weight: of the new weights in their average.
        """
        self._norm.copy_(norm)
        self._weight.fill_(weight)
        self.recorded()

    @torch.no_grad()
    def _apply(self) -> None:
        clip_grads_with_norm_(self._parameters, self._clip_norm, self._norm)
        for optimizer in self._optimizers:
            optimizer.step()
        if self._averages:
            changes = list(torch._foreach_sub(self._parameters, self._averages))
            torch._foreach_mul_(changes, self._weight)
            torch._foreach_add_(self._averages, changes)
        self._working.push_weights()
        self.drop_gradient()

    def drop_gradient(self) -> None:
        """Set the gradient to zero, where it stands."""
        torch._foreach_zero_(self._gradients)
