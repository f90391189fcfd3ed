"""A CUDA graph: work recorded once and replayed by one launch, where to launch its kernels one by one takes longer.

A recorded kernel reads and writes the addresses that it was recorded with. So work that is to be recorded takes no
arguments: it reads tensors that stay where they are, which the caller fills, and its results are overwritten by the
next replay. It must not look at a value (`float`, `bool`, `nonzero`), for which the host would have to wait.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Recorded(Generic[T]):
    """`work`, as a CUDA graph on a GPU; elsewhere it runs as it is, so that a CPU computes the same, step by step.

    The first call runs the work as it is, on a stream of its own: libraries choose their kernels then, and memory is
    allocated. The second records it. Each call does the work once.

    Args:
        work: reads and writes tensors that stay where they are.
        device: where these are.
        pool: from `shared_pool`: memory for what the work needs meanwhile, shared with other recorded work. Only for
            work without a result, never two at a time; None: memory of its own.
    """

    def __init__(self, work: Callable[[], T], device: torch.device, pool: Any = None) -> None:
        self._work, self._device, self._pool, self._calls = work, device, pool, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: T | None = None

    def __call__(self) -> T:
        """Do the work; on a GPU it may not be done yet when this returns, as with any work there."""
        if self._device.type != "cuda":
            return self._work()
        self._calls += 1
        if self._calls == 1:
            return self._beside()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # Thread-local: another thread, such as one that prepares batches, may go on allocating memory meanwhile.
            with torch.cuda.graph(graph, self._pool, _stream(self._device), capture_error_mode="thread_local"):
                self._result = self._work()
            self._graph = graph
        self._graph.replay()
        return self._result  # type: ignore[return-value]

    def _beside(self) -> T:
        stream, current = _stream(self._device), torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = self._work()
        current.wait_stream(stream)
        return result


def shared_pool(device: torch.device) -> Any:
    """A new pool for the memory of several `Recorded`; None where there are no CUDA graphs."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def _stream(device: torch.device) -> torch.cuda.Stream:
    return _stream_of(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _stream_of(gpu: int) -> torch.cuda.Stream:
    # One for all: memory freed on a stream is used again on that stream alone.
    return torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
