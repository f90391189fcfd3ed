"""Fine-tuning's settings, and its data: each epoch has every new pair and a fresh draw of old ones."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mtattn.batch import IntArray
from mtattn.corpus import DataConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """The `[finetune]` section: training starts from another model's weights (`mtattn train --from MODEL`).

    model: the run directory or released model to start from; "" starts from random weights.
    weights: sha256 of that model's weights; filled in when the run begins.
    earlier: the models that it was fine-tuned from itself, as `ancestors` names them; filled in when the run begins.
    lr_factor: optim.lr and optim.muon_lr are multiplied by this.
    mix: share of an epoch's pairs that are old ones, from the corpus that `model` was trained on, 0 <= mix < 1.
    old: the [data] section of `model`: the corpus to mix in, and the dev set whose score is watched.
    old_seed, old_hold_out: how `model` chose its dev set when it had no dev corpus (train.seed, train.hold_out).
    """

    model: str = ""
    weights: str = ""
    earlier: tuple[str, ...] = ()
    lr_factor: float = 0.2
    mix: float = 0.0
    old: DataConfig = field(default_factory=DataConfig)
    old_seed: int = 1
    old_hold_out: int = 500
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not 0 < self.lr_factor < math.inf:
            raise ValueError(f"lr_factor is {self.lr_factor}; allowed: more than 0, and finite")
        if not 0 <= self.mix < 1:
            raise ValueError(f"mix is {self.mix}; allowed: 0 <= mix < 1 (0.5: as many old pairs as new ones)")
        if self.old_hold_out < 1:
            raise ValueError(f"old_hold_out is {self.old_hold_out}; allowed: 1 or more")
        if not 0 <= self.old_seed < 2**63:
            raise ValueError(f"old_seed is {self.old_seed}; allowed: 0 to 2^63 - 1")
        if self.mix and not self.model:
            raise ValueError("mix means old data of a model to start from; name it with --from MODEL")

    @property
    def ancestors(self) -> tuple[str, ...]:
        """All models that were fine-tuned on the way here, the last first: "`runs/base` (weights 0123456789ab)"."""
        return (f"`{self.model}` (weights {self.weights[:12]})", *self.earlier) if self.model else ()


@dataclass(frozen=True)
class Mixture:
    """Which pairs make up an epoch.

    Args:
        new: numbers of the new pairs; all of them are in every epoch.
        old: numbers of the old pairs, of which each epoch has a draw of its own.
        mix: the share of the old ones in an epoch, as far as there are so many.
        seed: of the draws.
    """

    new: IntArray
    old: IntArray
    mix: float
    seed: int

    @property
    def num_old(self) -> int:
        """Old pairs in an epoch."""
        return min(len(self.old), round(len(self.new) * self.mix / (1 - self.mix)))

    def __call__(self, epoch: int) -> IntArray:
        """The numbers of one epoch's pairs; the same whenever it is asked for."""
        random = np.random.default_rng([self.seed, epoch, 1])
        return np.concatenate([self.new, random.choice(self.old, self.num_old, replace=False)])
