"""Optimisers: torch's Muon is the reference, every parameter is in one group, schedules meet their ends."""

import copy
import math
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtattn.optim import (
    SCHEDULES,
    AdamW,
    Muon,
    OptimConfig,
    ParamGroup,
    lr_multiplier,
    make_optimizers,
    orthogonalise,
    set_lr,
)


class Layers(nn.Module):
    """Equal matrices, a tall and a wide one."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((8, 8), (8, 8), (8, 8), (24, 8), (8, 24))
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(*shape)) for shape in shapes)

    def set_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for weight in self.weights:
            weight.grad = torch.randn(weight.shape, generator=generator)


# Muon


def muon(params: Iterable[torch.Tensor]) -> Muon:
    """As a config without [optim] has it."""
    return Muon([ParamGroup(params, 0.02, 0.05)], momentum=0.95)


def test_muon_equals_torch():
    # torch orthogonalises in bfloat16, whose 8 bits round each of about 15 products by up to 2^-8 of what it holds;
    # an update has entries of about 1 / sqrt(columns), and Muon's own iteration is exact to only 0.3 of them.
    torch.manual_seed(0)
    ours = Layers()
    theirs = copy.deepcopy(ours)
    optimizers = (
        muon(ours.parameters()),
        torch.optim.Muon(theirs.parameters(), lr=0.02, momentum=0.95, weight_decay=0.05),
    )
    for step in range(5):
        before = [weight.detach().clone() for weight in ours.weights]
        for layers, optimizer in zip((ours, theirs), optimizers, strict=True):
            layers.set_gradients(step)
            optimizer.step()
        for mine, reference, start in zip(ours.weights, theirs.weights, before, strict=True):
            assert (mine - reference).norm() < 0.03 * (step + 1) * (mine - start).norm()
    for shape, n in (((8, 8), 3), ((24, 8), 1), ((8, 24), 1)):  # the momentum is exact: no bfloat16 in it
        own = [state["momentum"] for state in optimizers[0].state.values() if state["momentum"].shape == (n, *shape)]
        reference = [
            state["momentum_buffer"] for p, state in optimizers[1].state.items() if p.shape == torch.Size(shape)
        ]
        torch.testing.assert_close(own[0], torch.stack(reference))


def test_stacking_equal_matrices_changes_nothing():
    torch.manual_seed(0)
    together = Layers()
    alone = copy.deepcopy(together)
    stacked, separate = muon(together.parameters()), [muon([weight]) for weight in alone.weights]
    for step in range(3):
        together.set_gradients(step)
        alone.set_gradients(step)
        for optimizer in (stacked, *separate):
            optimizer.step()
    for mine, reference in zip(together.weights, alone.weights, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4), (32, 128), (128, 32), (1, 5)])
def test_orthogonalise_keeps_directions_and_levels_lengths(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    out = orthogonalise(matrices)
    assert out.shape == matrices.shape
    u, lengths, vt = torch.linalg.svd(matrices.double(), full_matrices=False)
    lengths = lengths / lengths.norm(dim=-1, keepdim=True)
    for _ in range(5):  # the quintic, of each singular value by itself
        lengths = 3.4445 * lengths - 4.7750 * lengths**3 + 2.0315 * lengths**5
    torch.testing.assert_close(out.double(), u * lengths[:, None] @ vt, atol=1e-5, rtol=0)
    assert lengths.max() < 1.3
    assert lengths.min() > 0.3  # a tiny one has not arrived after five iterations


def test_orthogonalise_does_not_blow_up_rounding():
    # Of a matrix of rank 1 all but one eigenvalue of the Gram matrix are rounding, negative ones among them.
    torch.manual_seed(0)
    matrices = torch.randn(2, 64, 1) @ torch.randn(2, 1, 200)
    out = torch.linalg.svdvals(orthogonalise(matrices))
    assert (out[:, 0] > 0.6).all()
    assert (out[:, 1:] < 0.01).all()


def test_orthogonalise_zero_is_zero():
    assert not orthogonalise(torch.zeros(2, 3, 5)).any()


def test_muon_state_survives_a_round_trip():
    torch.manual_seed(0)
    one = Layers()
    first = muon(one.parameters())
    one.set_gradients(0)
    first.step()
    other = copy.deepcopy(one)
    second = muon(other.parameters())
    second.load({name: tensor.clone() for name, tensor in first.tensors().items()})
    for layers, optimizer in ((one, first), (other, second)):
        layers.set_gradients(1)
        optimizer.step()
    for mine, reference in zip(one.weights, other.weights, strict=True):
        assert torch.equal(mine, reference)


# Groups


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "norm": "layernorm"}, {"tied_embeddings": False}, {"score": "cosine"}]
)
def test_every_parameter_is_in_one_group(make_model, kind, options):
    model = make_model(**options)
    optimizers = make_optimizers(model, OptimConfig(kind=kind, weight_decay=0.07))
    groups = [group for optimizer in optimizers for group in optimizer.groups]
    ids = [id(p) for group in groups for p in group.params]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    for group in groups:
        decayed = {id(p) in matrices for p in group.params}
        assert decayed == {group.weight_decay == 0.07}
        assert group.weight_decay in (0.0, 0.07)
    is_muon = [isinstance(optimizer, Muon) for optimizer in optimizers]
    assert is_muon == ([True, False] if kind == "muon" else [False])
    assert {id(p) for p in optimizers[0].groups[-1].params} == matrices


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_equals_torch(make_model, decay, fused):
    model = make_model()
    reference = copy.deepcopy(model)
    config = OptimConfig(kind="adamw", lr=0.01, weight_decay=decay)
    (ours,) = make_optimizers(model, config)
    hidden = [module.weight for module in reference.modules() if isinstance(module, nn.Linear)]
    rest = [p for p in reference.parameters() if all(p is not weight for weight in hidden)]
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": hidden, "weight_decay": decay}]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=config.betas, eps=config.eps, fused=fused)
    ids = torch.randint(4, 23, (3, 5))
    for _ in range(3):
        for network, optimizer in ((model, ours), (reference, theirs)):
            network.zero_grad()
            network(ids, ids).logsumexp(-1).sum().backward()
            optimizer.step()
    for mine, expected in zip(model.parameters(), reference.parameters(), strict=True):
        if fused:
            assert torch.equal(mine, expected)
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_adamw_leaves_what_has_no_gradient():
    still, moving = (nn.Parameter(torch.ones(2)) for _ in range(2))
    moving.grad = torch.ones(2)
    AdamW([ParamGroup([still, moving], 0.1, 0.5)], betas=(0.9, 0.98), eps=1e-9).step()
    assert still.tolist() == [1, 1]
    assert (moving < 1).all()


def test_set_lr_keeps_the_groups_apart(make_model):
    optimizers = make_optimizers(make_model(), OptimConfig(lr=1e-3, muon_lr=0.02))
    for multiplier in (0.5, 0.0, 1.0):
        set_lr(optimizers, multiplier)
        rates = [group.lr for optimizer in optimizers for group in optimizer.groups]
        assert rates == [0.02 * multiplier, 1e-3 * multiplier]


# Schedules

ENDS = {"linear": 0.0, "cosine": 0.0, "inverse_sqrt": math.sqrt(0.1), "constant": 1.0}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_at_start_warmup_and_end(schedule):
    config = OptimConfig(schedule=schedule, warmup=0.1)
    assert lr_multiplier(config, 0.0) == 0.0
    assert lr_multiplier(config, 0.05) == pytest.approx(0.5)
    assert lr_multiplier(config, 0.1) == pytest.approx(1.0)
    assert lr_multiplier(config, 1.0) == pytest.approx(ENDS[schedule], abs=1e-12)
    assert lr_multiplier(config, 1.5) == lr_multiplier(config, 1.0)
    assert lr_multiplier(config, -0.5) == 0.0


def test_schedules_in_between():
    at = {name: lr_multiplier(OptimConfig(schedule=name, warmup=0.1, decay=0.6), 0.7) for name in SCHEDULES}
    assert at["linear"] == pytest.approx(0.5)
    assert at["cosine"] == pytest.approx(0.5 * (1 + math.cos(math.pi * 2 / 3)))
    assert at["inverse_sqrt"] == pytest.approx(math.sqrt(1 / 7))
    assert lr_multiplier(OptimConfig(warmup=0.1, decay=0.6), 0.4) == pytest.approx(1.0)


shares = st.floats(0, 0.99)


@given(st.sampled_from(list(SCHEDULES)), shares, shares, st.floats(0, 1), st.floats(0, 1))
def test_schedules_rise_once_and_never_jump(schedule, warmup, decay, one, other):
    config = OptimConfig(schedule=schedule, warmup=warmup, decay=decay)
    low, high = sorted((one, other))
    at_low, at_high = lr_multiplier(config, low), lr_multiplier(config, high)
    assert 0 <= at_low <= 1
    assert 0 <= at_high <= 1
    if high <= warmup:
        assert at_low <= at_high
    if low >= warmup:
        assert at_low >= at_high
    assert lr_multiplier(config, warmup) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_warmup_starts_at_the_peak(schedule):
    assert lr_multiplier(OptimConfig(schedule=schedule, warmup=0.0), 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"muon_lr": -1.0}, {"warmup": 1.0}, {"decay": -0.1}, {"betas": (0.9, 1.0)}, {"clip_norm": -1.0}],
)
def test_config_says_what_is_allowed(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*allowed"):
        OptimConfig(**options)
