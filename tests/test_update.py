"""From gradients to weights: what torch does one after the other, and no gradient left."""

import copy

import pytest
import torch

from mtattn.optim import OptimConfig, make_optimizers, set_lr
from mtattn.precision import WorkingModel
from mtattn.update import Update


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_clipping_stepping_and_averaging_by_torch(clip_norm, dtype, make_model):
    model, average = make_model(), make_model()
    mine, theirs = copy.deepcopy(model), copy.deepcopy(model)
    expected = [p.detach().clone() for p in average.parameters()]
    working = WorkingModel(mine, dtype)
    update = Update(working, make_optimizers(mine, OptimConfig()), average, clip_norm)
    optimizers = make_optimizers(theirs, OptimConfig())
    for step in range(3):
        gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for p in mine.parameters()]
        for model, values in ((mine, gradients), (theirs, gradients)):
            for parameter, value in zip(model.parameters(), values, strict=True):
                parameter.grad = value.clone() if parameter.grad is None else parameter.grad.copy_(value)
        assert float(update.norm()) > 1  # so that clipping does something
        update(update.norm(), 0.25)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        expected = [0.75 * mean + 0.25 * p.detach() for mean, p in zip(expected, theirs.parameters(), strict=True)]
        assert not any(p.grad.any() for p in mine.parameters())
    for ours, torchs in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)
    for ours, mean in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), mean, rtol=1e-5, atol=1e-6)
    for copied, master in zip(working.model.parameters(), mine.parameters(), strict=True):
        assert torch.equal(copied.detach(), master.detach().to(dtype))


def test_rates_that_are_tensors_are_written_where_they_stand(make_model):
    optimizers = make_optimizers(make_model(), OptimConfig())
    rates = []
    for group in (group for optimizer in optimizers for group in optimizer.groups):
        group.lr = torch.tensor(group.lr)  # as on a GPU
        rates.append((group.lr, group.peak_lr))
    set_lr(optimizers, 0.5)
    for rate, peak in rates:
        torch.testing.assert_close(float(rate), 0.5 * peak)
