"""A moment of training as plain tensors and JSON, and back: all that a step's outcome depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtattn.batching import Position
from mtattn.errors import ModelError
from mtattn.optim import Layout, Optimizer


@dataclass
class TrainState:
    """What the loop remembers between steps beside weights, optimisers and the random generator."""

    step: int = 0
    position: Position = field(default_factory=Position)
    elapsed_s: float = 0.0
    lr: float = 0.0  # AdamW's, in the last step
    tgt_tokens: int = 0
    best_bleu: float = -1.0
    best_step: int = 0
    signature: str = ""  # sacreBLEU's, of the dev set's BLEU
    stale: int = 0  # validations since the best one
    skipped: int = 0  # steps whose gradient was not finite
    skipped_in_a_row: int = 0
    rollbacks: int = 0  # times that training went back to a checkpoint; each halves the learning rate
    valid_due: bool = False
    valid_step: int = -1  # of the last validation
    changed_dev: list[str] = field(default_factory=list)  # dev sets whose first scores are of other sentences
    nats: float = 0.0  # loss since the last "train" line, and the tokens it sums over
    num_tokens: int = 0
    metrics_bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)  # what did not fit into memory whole; see mtattn.splitting

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "TrainState":
        """The inverse of `to_json`.

        Raises:
            ModelError: these are not its values.
        """
        try:
            return cls(**{**values, "position": Position(**values["position"])})
        except (KeyError, TypeError) as error:
            raise ModelError(f"state.json: not a training state of this mtattn: {error}") from None


def optimizer_tensors(optimizers: Sequence[Optimizer], layout: Layout) -> dict[str, Tensor]:
    """The optimisers' whole statistics; names are OPTIMISER.PARAMETER.STATISTIC, numbered in their own order."""
    return {
        f"{i}.{key}": layout.saved(tensor, optimizer.row_dim)
        for i, optimizer in enumerate(optimizers)
        for key, tensor in sorted(optimizer.tensors().items())  # in one order on all ranks
    }


def load_optimizers(optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor], layout: Layout) -> None:
    """The inverse of `optimizer_tensors`; names that are not of that form are left alone."""
    for i, optimizer in enumerate(optimizers):
        own = {key.removeprefix(f"{i}."): tensor for key, tensor in tensors.items() if key.startswith(f"{i}.")}
        optimizer.load({key: layout.own(tensor, optimizer.row_dim) for key, tensor in own.items()})


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's random generators that training on this device draws from."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        tensors["random.mps"] = torch.mps.get_rng_state()
    return tensors


def load_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_tensors`; a checkpoint from another kind of device has no state for this one."""
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    elif "random.mps" in tensors and device.type == "mps":
        torch.mps.set_rng_state(tensors["random.mps"])
