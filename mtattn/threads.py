"""How many threads of a CPU to compute with."""

import ctypes
from contextlib import suppress

import torch


def use_threads(count: int) -> None:
    """Compute with so many threads; 0: with as many as torch started with.

    torch is told a number only if that changes it: once told any, even the current one, MKL no longer sees that it is
    called by one of several threads and starts threads of its own for each small product, so that attention over
    captions takes almost twice as long (docs/experiments.md). The environment's OMP_NUM_THREADS does no such harm.
    """
    if count not in (0, torch.get_num_threads()):
        torch.set_num_threads(count)


def use_one_thread() -> None:
    """Compute without help on the thread that calls this; others keep theirs.

    torch.set_num_threads would tell MKL for all of them, with the harm above, so OpenMP is told where it is found.
    """
    torch.get_num_threads()  # a thread's first call to torch sets its number
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).omp_set_num_threads(1)
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
