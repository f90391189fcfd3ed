"""Precision: a choice with its reason, and a bfloat16 copy that follows its float32 master."""

import re

import pytest
import torch

from mtattn import precision
from mtattn.precision import WorkingModel, choose_precision


@pytest.mark.parametrize(
    ("ratio", "chosen"), [(4.0, "bfloat16"), (1.31, "bfloat16"), (1.2, "float32"), (0.3, "float32")]
)
def test_a_cpu_takes_what_it_multiplies_faster(monkeypatch, ratio, chosen):
    monkeypatch.setattr(precision, "_seconds", lambda dtype, repeat: ratio if dtype == torch.float32 else 1.0)
    name, reason = choose_precision(torch.device("cpu"))
    assert name == chosen
    assert f"{ratio:.2g} times as fast" in reason


def test_a_cpu_that_emulates_bfloat16_is_not_asked_again(monkeypatch):
    asked = []
    monkeypatch.setattr(precision, "_seconds", lambda dtype, repeat: asked.append((dtype, repeat)) or len(asked) ** 5.0)
    assert choose_precision(torch.device("cpu"))[0] == "float32"
    assert asked == [(torch.float32, 5), (torch.bfloat16, 1)]


def test_this_machine_has_an_answer():
    assert re.search(r"ran [\d.e+-]+ times as fast", choose_precision(torch.device("cpu"))[1])


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_asked(monkeypatch, supported, chosen):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    assert choose_precision(torch.device("cuda"))[0] == chosen


def test_other_devices_stay_at_float32():
    assert choose_precision(torch.device("mps"))[0] == "float32"


def test_float32_works_in_the_master_itself(make_model):
    master = make_model()
    working = WorkingModel(master, torch.float32)
    assert working.model is master
    working.push_weights()
    working.pull_gradients()


@pytest.mark.parametrize("options", [{}, {"tied_embeddings": False}, {"bias": True, "norm": "layernorm"}])
def test_the_copy_follows_the_master(make_model, options):
    master = make_model(**options)
    working = WorkingModel(master, torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in master.parameters())
    with torch.no_grad():
        for parameter in master.parameters():
            parameter.add_(torch.randn_like(parameter))
    working.push_weights()
    for (name, copied), parameter in zip(working.model.named_parameters(), master.parameters(), strict=True):
        assert torch.equal(copied, parameter.bfloat16()), name
    assert (working.model.src_embed is working.model.out_embed) == (master.src_embed is master.out_embed)


def test_gradients_go_to_the_master_in_float32(make_model):
    master = make_model()
    working = WorkingModel(master, torch.bfloat16)
    ids = torch.randint(4, 23, (4, 6), generator=torch.Generator().manual_seed(0))
    for model in (working.model, master):
        model(ids, ids).float().logsumexp(-1).sum().backward()
    expected = [p.grad.clone() for p in master.parameters()]
    master.zero_grad(set_to_none=False)
    working.pull_gradients()
    for mine, parameter, reference in zip(working.model.parameters(), master.parameters(), expected, strict=True):
        assert not mine.grad.any()
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - reference).norm() < 0.15 * reference.norm() + 1e-3  # 8 bits through two stacks


def test_small_updates_are_not_lost(make_model):
    master = make_model()
    working = WorkingModel(master, torch.bfloat16)
    before = working.model.src_embed.weight.clone()
    with torch.no_grad():
        for _ in range(64):
            master.src_embed.weight.mul_(1.0003)  # each alone is below bfloat16's spacing of 2^-8
            working.push_weights()
    assert torch.allclose(working.model.src_embed.weight.float(), before.float() * 1.0003**64, rtol=0.01)
    assert not torch.equal(working.model.src_embed.weight, before)
