"""How many threads of a CPU to compute with."""

import torch


def use_threads(count: int) -> None:
    """Compute with so many threads; 0: with as many as torch started with.

    What changes nothing is not said to torch: once it was told a number, be it the one in use, MKL no longer sees that
    it is called by one of several threads and starts threads of its own for each small product, so that attention over
    captions takes almost twice as long (docs/experiments.md). The environment's OMP_NUM_THREADS does no such harm.
    """
    if count not in (0, torch.get_num_threads()):
        torch.set_num_threads(count)
