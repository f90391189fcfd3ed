"""A model whose rows are spread over several ranks learns as a whole one does."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from many_ranks import finish, on_ranks, torchrun
from tiny_run import STILL, Notes, batch_of, losses, outcome, tiny_config, train_tiny
from torch import Tensor

from mtattn.batch import Batch
from mtattn.budget import make_batches
from mtattn.checkpoint import RunDirectory
from mtattn.distributed import Ranks
from mtattn.errors import ConfigError
from mtattn.loss import LossConfig
from mtattn.objective import batch_loss
from mtattn.optim import Muon, ParamGroup
from mtattn.prepare import prepare
from mtattn.progress import Reporter
from mtattn.sharding import ShardedLearner, Shards, require_shardable
from mtattn.train import train

SHARDED = (*STILL, "train.shard=true")


@given(size=st.integers(1, 5), rows=st.integers(0, 11), dim=st.integers(0, 1))
def test_each_row_is_on_one_rank_and_all_of_them_make_the_whole(size: int, rows: int, dim: int) -> None:
    whole = torch.randn((rows, 3) if dim == 0 else (3, rows))

    def work(ranks: Ranks) -> tuple[Tensor, Tensor]:
        shards = Shards(ranks)
        own = shards.own(whole, dim)
        return own, shards.whole(own, dim)

    found = on_ranks(size, work)
    assert torch.equal(torch.cat([own for own, _ in found], dim), whole)
    assert max(own.shape[dim] for own, _ in found) == -(-rows // size)
    for _, again in found:
        assert torch.equal(again, whole)


def test_muon_turns_whole_matrices() -> None:
    whole = [torch.randn(8, 6) for _ in range(3)]
    gradients = [torch.randn(8, 6) for _ in range(3)]

    def step(params: list[Tensor], of_them: list[Tensor], layout: Shards | None) -> list[Tensor]:
        for param, gradient in zip(params, of_them, strict=True):
            param.grad = gradient.clone()
        Muon([ParamGroup(params, 0.02, 0.05)], momentum=0.95, layout=layout).step()
        return params

    def work(ranks: Ranks) -> list[Tensor]:
        shards = Shards(ranks)
        return step([shards.own(w).clone() for w in whole], [shards.own(g) for g in gradients], shards)

    parts = on_ranks(2, work)
    for number, expected in enumerate(step(copy.deepcopy(whole), gradients, None)):
        assert torch.equal(torch.cat([part[number] for part in parts]), expected)


def test_a_rank_without_pairs_computes_what_says_nothing(make_model) -> None:
    batch = Ranks(1, 2).some_of(batch_of([4]), pad_id=0)
    assert batch.num_tokens == 0
    model = make_model()
    loss = batch_loss(model, batch, LossConfig(label_smoothing=0.1, rdrop=1.0))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_two_ranks_with_parts_learn_like_one_with_all(corpus: Path, tmp_path: Path) -> None:
    said = finish(torchrun(tiny_config(corpus, *SHARDED, "train.max_epochs=1"), tmp_path))
    assert said.count("2 processes share each batch and the model") == 1
    many, config = tmp_path / "runs" / "many", tiny_config(corpus, *STILL)
    train_tiny(config, tmp_path / "one")
    assert losses(many) == pytest.approx(losses(tmp_path / "one")[:3], rel=1e-5)
    train_tiny(config, many)  # goes on with one process, and without parts
    assert losses(many) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_resumed_parts_equal_uninterrupted_ones(corpus: Path, tmp_path: Path) -> None:
    """Bit for bit, with dropout and R-Drop, in bfloat16."""
    options = (
        "train.shard=true",
        "train.precision=bfloat16",
        "loss.rdrop=1.0",
        "optim.schedule='constant'",
        "optim.warmup=0.0",
    )
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    finish(torchrun(tiny_config(corpus, *options), tmp_path / "whole"))
    finish(torchrun(tiny_config(corpus, *options, "train.max_epochs=1"), tmp_path / "parts"))
    assert "resuming at step" in finish(torchrun(tiny_config(corpus, *options), tmp_path / "parts"))
    assert outcome(tmp_path / "parts/runs/many") == outcome(tmp_path / "whole/runs/many")


@pytest.mark.slow
def test_parts_may_be_uneven(corpus: Path, tmp_path: Path) -> None:
    """Three ranks, neither vocabulary of which is a multiple of three, and norms of 16 features; two batches a step."""
    options = (
        "optim.kind=adamw",
        "tokenizer.joint=false",
        "model.position.kind=learned",
        "model.score=multiplicative",
        "train.accumulate=2",
        "train.batch_tokens=64",
    )
    finish(torchrun(tiny_config(corpus, *SHARDED, *options), tmp_path, processes=3))
    train_tiny(tiny_config(corpus, *STILL, *options), tmp_path / "one")
    assert losses(tmp_path / "runs" / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["model.d_ff=1023"], "1023 rows evenly, as Muon must; change model.d_ff"),
        (
            ["model.d_model=18", "model.num_kv_heads=1", "model.position.kind=alibi"],
            "9 rows evenly, as Muon must; change model.num_kv_heads",
        ),
        (["model.position.kind=t5", "optim.kind=adamw"], "t5 positions"),
    ],
)
def test_what_cannot_be_cut_is_refused(overrides: list[str], fault: str, corpus: Path) -> None:
    with pytest.raises(ConfigError, match=fault):
        require_shardable(tiny_config(corpus, *overrides), 2)
    require_shardable(tiny_config(corpus), 2)
    require_shardable(tiny_config(corpus, "model.d_ff=1023", "optim.kind=adamw"), 2)


def test_one_process_has_nothing_to_share(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus, "model.position.kind=t5", "train.max_steps=1")
    notes = Notes()
    train(
        replace(config, train=replace(config.train, shard=True)),
        RunDirectory(tmp_path / "run"),
        notes,
        device=torch.device("cpu"),
    )
    assert any("train.shard does nothing in a single process" in text for text in notes.said)
    assert RunDirectory(tmp_path / "run").read_config() == config


def test_out_of_memory_names_the_way_out(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient(batch: Batch, num_tokens: int) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    config = tiny_config(corpus, "train.shard=true")
    data = prepare(config, None, Reporter())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        options = {"parts": {}, "named": repr, "warn": print}
        learner = ShardedLearner(config, data.tokenizer, torch.device("cpu"), Ranks(), **options)
        learner.begin(learner.whole(learner.model))
        batch = make_batches(config, data, 128).largest()
        before = learner.tensors()
        learner.rehearse(batch)
        for now, then in zip(learner.tensors(), before, strict=True):
            assert now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in now)
        assert not any(parameter.grad.any() for parameter in learner.model.parameters())
        assert learner.step([batch], 0, 1.0) is not None
        monkeypatch.setattr(learner.splitter, "gradient", gradient)
        with pytest.raises(ConfigError, match="lower train"):
            learner.step([batch], 1, 1.0)
    finally:
        dist.destroy_process_group()
