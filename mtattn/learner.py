"""What learns: a model's weights, their optimisers and their running average; one step of them all."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mtattn.batch import Batch
from mtattn.checkpoint import load_weights, make_model, weights_of
from mtattn.config import Config
from mtattn.distributed import Ranks
from mtattn.finetune import lowered
from mtattn.gradient import Gradient
from mtattn.model import Transformer
from mtattn.objective import batch_loss
from mtattn.optim import Layout, make_optimizers, set_lr
from mtattn.precision import WorkingModel
from mtattn.snapshot import load_optimizers, load_random, optimizer_tensors, random_tensors
from mtattn.splitting import Splitter
from mtattn.tokenizer import Tokenizer
from mtattn.update import Update


class Learner:
    """A model in training. Call `begin` or `load` before the first step; it can be saved between any two.

    Args:
        config, tokenizer: what it is to be; fresh weights are drawn from torch's generator.
        device: where it is.
        ranks: the processes that share each batch.
        parts, named, warn: see `mtattn.splitting.Splitter`.

    Attributes:
        model: the weights that are optimised, float32.
        average: follows them; None: nothing does.
        peak_lr: AdamW's highest learning rate.
        splitter, update: the two halves of a step.
    """

    shared = "each batch"  # by several ranks, in words
    _recordable = True  # as a CUDA graph: an update waits for no other rank

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        device: torch.device,
        ranks: Ranks,
        *,
        parts: dict[str, int],
        named: Callable[[Batch], str],
        warn: Callable[[str], None],
    ) -> None:
        self._config, self._tokenizer, self._device, self._ranks = config, tokenizer, device, ranks
        self._layout = self._make_layout()
        self.model = self._make()
        self.average = self._make() if config.train.ema else None
        optim = lowered(config)
        self.optimizers, self.peak_lr = make_optimizers(self.model, optim, self._layout), optim.lr
        self._working = self._make_working(getattr(torch, config.train.precision))
        self.update = Update(
            self._working, self.optimizers, self.average, config.optim.clip_norm, record=self._recordable
        )
        self.splitter = Splitter(
            Gradient(self._loss, device),
            self._working.model,
            device,
            pad_id=tokenizer.pad_id,
            parts=parts,
            named=named,
            warn=warn,
        )

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return sum(p.numel() for p in self._working.model.parameters())

    @property
    def released(self) -> Transformer:
        """The weights that are validated and released: the averaged ones, if there are any."""
        return self.model if self.average is None else self.average

    def begin(self, model: Transformer) -> None:
        """Take the weights of a model, such as `self.whole(self.model)`, for those of the first step."""
        weights = {name: self._layout.own(weight) for name, weight in weights_of(model).items()}
        load_weights(self.model, weights)
        if self.average is not None:
            load_weights(self.average, weights)
        self._working.push_weights()

    def rehearse(self, batch: Batch) -> None:
        """Let memory run out now, if ever: compute the largest batch beside the optimisers' state, and drop it."""
        share = self._ranks.share([batch], self.model.pad_id)
        self._ranks.together(lambda: self.splitter.rehearse(share, self._reserve))

    @property
    def _reserve(self) -> int:
        """Bytes that the optimisers are still going to take."""
        begun = any(optimizer.state for optimizer in self.optimizers)
        return 0 if begun else 2 * sum(p.nbytes for p in self.model.parameters())

    def step(self, group: list[Batch], number: int, multiplier: float) -> float | None:
        """One update from the summed gradient of a group of batches.

        Args:
            number: of the step, from 0: the average depends on it, and with several ranks dropout.
            multiplier: of the peak learning rates.

        Returns:
            The group's loss in nats, summed over tokens; None where the gradient was not finite: nothing changed.
        """
        set_lr(self.optimizers, multiplier)
        self._ranks.seed(self._config.train.seed, number)
        total, norm = self._add_up(group, sum(batch.num_tokens for batch in group))
        values: list[float] = torch.stack([total, norm]).tolist()  # the one moment in which the host waits for a GPU
        if not all(map(math.isfinite, values)):
            self.update.drop_gradient()
            return None
        # Polynomial-decay averaging (Shamir and Zhang 2013): the window grows with the run and needs no tuning.
        self.update(norm, 1 / (1 + self._config.train.ema * number))
        return values[0]

    def _loss(self, batch: Batch) -> Tensor:
        return batch_loss(self._working.model.train(), batch, self._config.loss)

    def require_equal(self) -> None:
        """Raise MtattnError if the ranks' weights are not the same."""
        self._ranks.require_equal(self.model)

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights to release, and all else that the next step depends on. All ranks ask for it."""
        rest = optimizer_tensors(self.optimizers, self._layout) | random_tensors(self._device)
        if self.average is not None:
            rest |= {f"raw.{name}": self._layout.saved(tensor) for name, tensor in weights_of(self.model).items()}
        return {name: self._layout.saved(tensor) for name, tensor in weights_of(self.released).items()}, rest

    def load(self, weights: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        load_weights(self.released, {name: self._layout.own(tensor) for name, tensor in weights.items()})
        if self.average is not None:
            raw = {name: self._layout.own(rest[f"raw.{name}"]) for name in weights_of(self.model)}
            load_weights(self.model, raw)
        load_optimizers(self.optimizers, rest, self._layout)
        load_random(rest, self._device)
        self._working.push_weights()

    # --- what is otherwise where each rank has a part of the model alone (mtattn.sharding) ---------------------------

    def _make_layout(self) -> Layout:
        return Layout()

    def _make(self) -> Transformer:
        return make_model(self._config, self._tokenizer).to(self._device)

    def _make_working(self, dtype: torch.dtype) -> WorkingModel:
        return WorkingModel(self.model, dtype)

    def whole(self, held: Transformer) -> Transformer:
        """`model` or `average`, to compute with. All ranks ask for it."""
        return held

    def _add_up(self, group: list[Batch], num_tokens: int) -> tuple[Tensor, Tensor]:
        """Give the model the gradient of the group's loss, of all ranks; (its nats, the gradient's global norm)."""
        share = self._ranks.share(group, self.model.pad_id)
        total = self._ranks.together(lambda: self.splitter.add_up(share, num_tokens))
        self._working.pull_gradients()
        return self._ranks.sum_gradients(self.model, total), self.update.norm()
