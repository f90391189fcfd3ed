"""Ranks for tests: threads of this process, or processes that torchrun starts."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtattn.config import Config
from mtattn.distributed import Ranks

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


class Thread(Ranks):
    """A rank that is a thread: messages travel through queues to rank 0 and back."""

    def __init__(self, rank: int, queues: Sequence[tuple["Queue[Any]", "Queue[Any]"]]) -> None:
        super().__init__(rank, len(queues))
        self._queues = queues

    def _reduce(self, tensor: Tensor, operation: Any) -> None:
        combine = {dist.ReduceOp.SUM: torch.add, dist.ReduceOp.MAX: torch.maximum}[operation]
        up, down = self._queues[self.rank]
        up.put(tensor.clone())
        if self.is_main:
            received = [queue.get(timeout=20) for queue, _ in self._queues]
            total = received[0]
            for other in received[1:]:
                total = combine(total, other)
            for _, queue in self._queues:
                queue.put(total)
        tensor.copy_(down.get(timeout=20))

    def _tell(self, said: dict[str, Any]) -> None:
        for _, down in self._queues[1:]:
            down.put(json.dumps(said))

    def _hear(self) -> dict[str, Any]:
        return json.loads(self._queues[self.rank][1].get(timeout=20))


def on_ranks(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What the work returns or raises on each rank."""
    queues = [(Queue[Any](), Queue[Any]()) for _ in range(size)]
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = work(Thread(rank, queues))
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def torchrun(config: Config, folder: Path, processes: int = 2) -> "subprocess.Popen[str]":
    """Training in `folder`/runs/many by so many processes."""
    (folder / "many.toml").write_text(config.to_toml())
    command = [*TORCHRUN, str(processes), "-m", "mtattn", "train", "many.toml"]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def finish(process: "subprocess.Popen[str]") -> str:
    """What it said, once it has ended well."""
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said
