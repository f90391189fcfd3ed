"""One model in the memory of several devices: each of N ranks keeps an N-th of all rows, with torch's FSDP2.

For models that no single device can train (`train.shard`): weights, their average, gradients and the optimisers'
statistics are cut along their first dimension (ZeRO-3, Rajbhandari et al. 2020). `fully_shard` puts a layer's weights
together just before they are used, and adds up their gradients where they belong; to the rest of `mtattn.learner` it is
a model of fewer rows. Only Muon needs whole matrices, and only those of one shape at a time.

All ranks compute each layer together. So they compute equally many batches, and none can go on in smaller parts when
its memory runs out.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from mtattn.batch import Batch
from mtattn.checkpoint import load_weights, make_model, weights_of
from mtattn.config import Config
from mtattn.distributed import GONE, Ranks, has_lost_a_rank
from mtattn.errors import ConfigError, MtattnError
from mtattn.learner import Learner
from mtattn.model import Transformer
from mtattn.optim import Layout
from mtattn.precision import WorkingModel, gradients_of
from mtattn.snapshot import load_random, random_tensors
from mtattn.splitting import is_out_of_memory

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Shards(Layout):
    """Rank r of N has the r-th of N chunks of rows, as `Tensor.chunk` cuts them; the last may have fewer, or none."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def own(self, whole: Tensor, dim: int = 0) -> Tensor:
        """The rows that this rank has, in memory that is new: a view would keep all of them."""
        return self._rows(whole, dim).clone(memory_format=torch.contiguous_format) if whole.dim() else whole

    def whole(self, own: Tensor, dim: int = 0) -> Tensor:
        """The rows of all ranks, in memory that is new: the sum of what is zero but for each rank's rows."""
        if not own.dim():
            return own
        lengths = torch.zeros(self._ranks.size, dtype=torch.int64)
        lengths[self._ranks.rank] = own.shape[dim]
        shape = list(own.shape)
        shape[dim] = int(self._ranks.sum(lengths).sum())
        whole = own.new_zeros(shape)
        self._rows(whole, dim).copy_(own)
        return self._ranks.sum(whole)

    def saved(self, own: Tensor, dim: int = 0) -> Tensor:
        """On rank 0, which alone writes, `whole`, in host memory: a device has no room for a whole checkpoint."""
        whole = self.whole(own, dim)
        return whole.cpu() if self._ranks.is_main else own

    def _rows(self, whole: Tensor, dim: int) -> Tensor:
        length, rank = whole.shape[dim], self._ranks.rank
        start, end = (min(number * -(-length // self._ranks.size), length) for number in (rank, rank + 1))
        return whole.narrow(dim, start, end - start)


class ShardedModel(WorkingModel):
    """A model that has whole weights for as long as a layer needs them.

    Args:
        parts: this rank's part of each parameter; it is never computed with, and shares its memory from now on.
        whole: a model of the whole shapes, in host memory, whose weights do not matter.
        dtype: what it computes in; weights and sums of gradients are float32.
        ranks: all of them take part in each forward and backward.
    """

    def __init__(self, parts: Transformer, whole: Transformer, dtype: torch.dtype, ranks: Ranks) -> None:
        # Here, for they take as long to import as torch itself.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        self.master, self.model = parts, whole
        mesh = init_device_mesh(parts.out_embed.weight.device.type, (ranks.size,))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for module in (*whole.encoder, *whole.decoder, whole):
            sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
            sharded.set_gradient_divide_factor(1.0)  # a step's loss is divided by the tokens of all ranks already
            sharded.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(whole, "hidden")
        parameters = list(whole.parameters())
        with torch.no_grad():
            for part, parameter, gradient in zip(parts.parameters(), parameters, gradients_of(parameters), strict=True):
                held, held_gradient = (cast("DTensor", tensor).to_local() for tensor in (parameter, gradient))
                part.data, part.grad = held.copy_(part), held_gradient

    def push_weights(self) -> None:
        """Nothing: the parts are its weights."""

    def pull_gradients(self) -> None:
        """Nothing: the parts have its gradients."""


class ShardedLearner(Learner):
    """A learner of which each rank has a part: `model` and `average` are parts, and not to be computed with."""

    shared = "each batch and the model"
    _recordable = False

    def _make_layout(self) -> Layout:
        return Shards(self._ranks)

    def _make(self) -> Transformer:
        model = make_model(self._config, self._tokenizer)
        for parameter in model.parameters():
            parameter.data = self._layout.own(parameter.data).to(self._device)
        return model

    def _make_working(self, dtype: torch.dtype) -> WorkingModel:
        return ShardedModel(self.model, self._blank(), dtype, self._ranks)

    def _blank(self) -> Transformer:
        with torch.random.fork_rng(devices=[]):  # weights that do not matter must not change those to come
            return make_model(self._config, self._tokenizer)

    def whole(self, held: Transformer) -> Transformer:
        """All of `model` or `average`, in the memory of the host."""
        model = self._blank()
        load_weights(model, {name: self._layout.whole(part).cpu() for name, part in weights_of(held).items()})
        return model

    def rehearse(self, batch: Batch) -> None:
        """Let memory run out now, if ever: compute the largest batch beside the optimisers' state, and drop it."""
        random = random_tensors(self._device)
        reserve = torch.empty(self._reserve, dtype=torch.uint8, device=self._device)
        self._add_up([batch], max(1, batch.num_tokens))
        del reserve
        self.update.drop_gradient()
        load_random(random, self._device)

    def require_equal(self) -> None:
        """Nothing: parts differ."""

    def _add_up(self, group: list[Batch], num_tokens: int) -> tuple[Tensor, Tensor]:
        nats = torch.zeros((), device=self._device)
        try:
            for batch in group:
                nats += self.splitter.gradient(self._ranks.some_of(batch, self.model.pad_id), num_tokens)
        except (RuntimeError, MemoryError) as error:
            if has_lost_a_rank(error):
                raise MtattnError(GONE) from error
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                "out of memory: with train.shard a batch is not computed in parts; lower train.batch_tokens, with "
                "--fresh where the run has begun, or start more processes"
            ) from None
        nats, squares = self._ranks.sum(torch.stack([nats, self.update.norm() ** 2]))
        return nats, squares.sqrt()


def require_shardable(config: Config, size: int) -> None:
    """Refuse a model that so many ranks cannot share.

    Raises:
        ConfigError: FSDP2 has no place for weights that belong to several layers; and Muon stacks a rank's parts of
            matrices of one shape, so they must be of one shape on all ranks.
    """
    model = config.model
    if model.position.kind == "t5":
        raise ConfigError("train.shard: all layers share the weights of t5 positions; choose another kind")
    keys = model.d_model // model.num_heads * (model.num_kv_heads or model.num_heads)
    for name, rows in (("d_model", model.d_model), ("d_ff", model.d_ff), ("num_kv_heads", keys)):
        if config.optim.kind == "muon" and rows % size:
            raise ConfigError(
                f"train.shard: {size} processes cannot share matrices of {rows} rows evenly, as Muon must; change "
                f"model.{name} or their number, or set optim.kind = adamw"
            )
