"""Recorded work is done once a call: on a CPU as it is, on a GPU as it is, then recorded, then replayed."""

import pytest
import torch

from mtattn.graph import Recorded, shared_pool

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_the_work_is_done_once_a_call_with_what_its_tensors_hold_then(device):
    x, y = torch.ones(3, device=device), torch.zeros(3, device=device)

    def work() -> torch.Tensor:
        y.add_(x)
        return y * 2

    recorded = Recorded(work, x.device)
    for call, expected in enumerate((1.0, 3.0, 6.0, 10.0), start=1):
        x.fill_(call)
        assert recorded().tolist() == [2 * expected] * 3
        assert y.tolist() == [expected] * 3


@pytest.mark.parametrize("device", DEVICES)
def test_several_may_share_their_memory(device):
    x = torch.arange(1000.0, device=device)
    sums = torch.zeros(2, device=device)
    pool = shared_pool(x.device)

    def double() -> None:
        sums[0].copy_((x * 2).sum())

    def square() -> None:
        sums[1].copy_((x * x).sum())

    doubled, squared = (Recorded(work, x.device, pool) for work in (double, square))
    for scale in (1.0, 2.0, 3.0, 4.0):
        x.copy_(torch.arange(1000.0) * scale)
        for work in (squared, doubled) if scale == 4 else (doubled, squared):
            work()
        torch.testing.assert_close(sums.cpu(), torch.tensor([999_000.0 * scale, 332_833_500.0 * scale**2]))
