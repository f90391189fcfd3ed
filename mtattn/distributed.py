"""Several processes train one model: each computes its share of every batch, and the gradients are summed.

`torchrun --nproc-per-node N -m -- mtattn train ...` starts N ranks. All of them walk through the same batches; rank r
of N takes every N-th pair from the r-th on. Losses are sums that are divided by the tokens of the whole step, so the
sum of the ranks' gradients is the gradient of the whole batch, and the run is that of one process with the same config:
its steps, its checkpoints, and, but for what dropout draws and up to the rounding of sums, its losses. It can go on
with any other number of ranks.

One all-reduce of all gradients in one buffer does this. DistributedDataParallel would divide by the number of ranks,
where shares differ in tokens, and hook each parameter to overlap communication with the backward pass, which pays off
for models far larger than this project's. As every rank then applies the same gradient, weights stay equal without
being sent; `require_equal` watches over that.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtattn.batch import Batch
from mtattn.errors import ConfigError, MtattnError
from mtattn.interrupts import Interrupted, Interrupts
from mtattn.precision import gradients_of

T = TypeVar("T")
GONE = "another process of this run has gone; its own message says why"
PATIENCE = timedelta(days=1)  # the others wait while rank 0 encodes a corpus; torchrun ends them should it die


class Ranks:
    """The processes of one run, as one of them sees them. With one process, which is the default, nothing happens.

    What is said beside gradients and weights is a few bytes that travel between CPUs, also where those are on GPUs.

    Args:
        rank: this process's number, from 0. Rank 0 alone writes files, validates and speaks.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    # --- shares of a step -----------------------------------------------------------------------------------------

    def share(self, group: Sequence[Batch], pad_id: int) -> list[Batch]:
        """This rank's part of each batch; a batch of fewer pairs than ranks has none for some."""
        if self.size == 1:
            return list(group)
        rows = slice(self.rank, None, self.size)
        return [batch.rows(rows, pad_id) for batch in group if len(batch.src) > self.rank]

    def some_of(self, batch: Batch, pad_id: int) -> Batch:
        """This rank's part of a batch, or where it has none, a row that says nothing."""
        if len(batch.src) > self.rank:
            return self.share([batch], pad_id)[0]
        row = batch.rows(slice(0, 1), pad_id)
        return replace(row, tgt_out=torch.full_like(row.tgt_out, pad_id), num_tokens=0)

    def seed(self, seed: int, step: int) -> None:
        """Seed torch for a step: ranks need dropout of their own, and only rank 0's generator is in a checkpoint."""
        if self.size > 1:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1)[0]))

    def sum_gradients(self, model: nn.Module, nats: Tensor) -> Tensor:
        """Make each rank's gradients their sum over all ranks, where they stand, and return the sum of their nats."""
        if self.size == 1:
            return nats
        gradients = gradients_of(model.parameters())
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), nats.view(1)])  # one reduction for all
        self.sum(flat)
        *sums, total = torch.split(flat, [*(gradient.numel() for gradient in gradients), 1])
        torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(sums, gradients, strict=True)])
        return total[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """Make a tensor its sum over all ranks, where it stands, and return it."""
        if self.size > 1:
            self._reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    # --- agreements -----------------------------------------------------------------------------------------------

    def check(self, interrupts: Interrupts) -> None:
        """Raise Interrupted on every rank as soon as a signal has reached any of them."""
        if self.size == 1:
            return interrupts.check()
        code = 0
        try:
            interrupts.check()
        except Interrupted as interrupted:
            code = interrupted.exit_code
        if code := self._highest(code):
            raise Interrupted(code)

    def together(self, work: Callable[[], T]) -> T:
        """What this rank's work gives; when it fails on any rank, the others leave with the same exit code.

        Raises:
            What the work raised. SystemExit: it failed elsewhere, and that rank says why.
        """
        if self.size == 1:
            return work()
        try:
            done = work()
        except BaseException as error:
            self._highest(_exit_code(error))
            raise
        if code := self._highest(0):
            raise SystemExit(code)
        return done

    def from_main(self, work: Callable[[], T]) -> T:
        """What the work gives on rank 0, where alone it is done; a JSON value. The others wait, and fail as it fails.

        Raises:
            What the work raised; elsewhere Interrupted if it was that, or SystemExit with its exit code.
        """
        if self.size == 1:
            return work()
        if not self.is_main:
            said = self._hear()
            if "interrupted" in said:
                raise Interrupted(said["interrupted"])
            if "failed" in said:
                raise SystemExit(said["failed"])
            return said["done"]  # type: ignore[no-any-return]
        try:
            done = work()
        except BaseException as error:
            self._tell({"interrupted" if isinstance(error, Interrupted) else "failed": _exit_code(error)})
            raise
        self._tell({"done": done})
        return done

    def main_first(self, work: Callable[[], T]) -> T:
        """What this rank's work gives, which rank 0 does before the others: they find what it left on the disk."""
        done: list[T] = []
        self.from_main(lambda: done.append(work()))
        return self.together(lambda: done[0] if done else work())

    def share_weights(self, model: nn.Module) -> None:
        """Give every rank the weights that rank 0 has."""
        if self.size == 1:
            return
        for parameter in model.parameters():
            held = parameter.detach().cpu()
            with _connected():
                dist.broadcast(held, src=0)
            parameter.detach().copy_(held)

    def require_equal(self, model: nn.Module) -> None:
        """Compare a checksum of all weights, which equal sums of gradients must have kept equal.

        Raises:
            MtattnError: they are not.
        """
        if self.size == 1:
            return
        total = sum(int(p.detach().view(torch.int32).sum(dtype=torch.int64)) for p in model.parameters())
        checksum = total % 2**62
        highest, lowest = self._highest(checksum), -self._highest(-checksum)
        if highest != lowest:
            raise MtattnError("the ranks' weights have drifted apart; the last checkpoint is intact, please report it")

    # --- messages -------------------------------------------------------------------------------------------------

    def _highest(self, value: int) -> int:
        held = torch.tensor([value])
        self._reduce(held, dist.ReduceOp.MAX)
        return int(held)

    def _reduce(self, tensor: Tensor, operation: Any) -> None:
        with _connected():
            dist.all_reduce(tensor, operation)

    def _tell(self, said: dict[str, Any]) -> None:
        data = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
        with _connected():
            dist.broadcast(torch.tensor([len(data)]), src=0)
            dist.broadcast(data, src=0)

    def _hear(self) -> dict[str, Any]:
        length = torch.zeros(1, dtype=torch.int64)
        with _connected():
            dist.broadcast(length, src=0)
            data = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, src=0)
        said: dict[str, Any] = json.loads(data.numpy().tobytes())
        return said


@contextmanager
def join(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Meet the other processes that torchrun started, if it did; gives the ranks and this rank's own device.

    Raises:
        ConfigError: more processes than GPUs on this machine.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1):
        yield Ranks(), device
        return
    backend = "gloo"
    if device.type == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise ConfigError(f"this machine has {count} GPUs; start torchrun with --nproc-per-node {count} at most")
        device, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


def has_lost_a_rank(error: BaseException) -> bool:
    """Whether an error of a computation in which ranks take part together means that one of them is not there."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


@contextmanager
def _connected() -> Iterator[None]:
    """One line instead of a library's report when another process has gone."""
    try:
        yield
    except RuntimeError as error:
        raise MtattnError(GONE) from error


def _exit_code(error: BaseException) -> int:
    return int(getattr(error, "exit_code", MtattnError.exit_code))
