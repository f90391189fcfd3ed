"""Several processes learn what one would; they stop, fail and go on together."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from many_ranks import finish, on_ranks, torchrun
from tiny_run import STILL, batch_of, losses, outcome, tiny_config, train_tiny
from torch import Tensor

from mtattn.checkpoint import RunDirectory
from mtattn.distributed import Ranks, join
from mtattn.errors import ConfigError, MtattnError
from mtattn.interrupts import Interrupted, Interrupts
from mtattn.loss import LossConfig
from mtattn.objective import batch_loss


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_a_partition(size: int) -> None:
    group = [batch_of([3, 9, 4, 8, 7]), batch_of([2])]
    shares = [Ranks(rank, size).share(group, pad_id=0) for rank in range(size)]
    assert sum(batch.num_tokens for share in shares for batch in share) == sum(batch.num_tokens for batch in group)
    seen = sorted(int(i) for share in shares for batch in share for i in batch.indices)
    assert seen == [0, 0, 1, 2, 3, 4]
    for share in shares:
        for batch in share:
            assert torch.equal(batch.src, group[0].src[batch.indices]) or torch.equal(batch.src, group[1].src)
            assert batch.num_tokens == int((batch.tgt_out != 0).sum())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_sum_of_the_ranks_gradients_is_that_of_the_whole(size: int, make_model) -> None:
    group = [batch_of([3, 9, 4, 8, 7]), batch_of([2, 4])]
    num_tokens = sum(batch.num_tokens for batch in group)
    whole = make_model()
    nats = sum(batch_loss(whole, batch, LossConfig()) for batch in group)
    (nats / num_tokens).backward()
    models = [make_model() for _ in range(size)]

    def work(ranks: Ranks) -> Tensor:
        model, total = models[ranks.rank], torch.zeros(())
        for _ in range(2):  # the second time into buffers that are there
            model.zero_grad(set_to_none=True)
            total = torch.zeros(())
            for batch in ranks.share(group, pad_id=0):
                loss = batch_loss(model, batch, LossConfig())
                (loss / num_tokens).backward()
                total += loss.detach()
            total = ranks.sum_gradients(model, total)
        return total

    for total in on_ranks(size, work):
        torch.testing.assert_close(total, nats.detach())
    for model in models:
        for parameter, expected in zip(model.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_a_rank_without_pairs_adds_nothing(make_model) -> None:
    def work(ranks: Ranks) -> Tensor:
        model = make_model()
        for batch in ranks.share([batch_of([4])], pad_id=0):
            batch_loss(model, batch, LossConfig()).backward()
        ranks.sum_gradients(model, torch.zeros(()))
        assert model.src_embed.weight.grad is not None
        return model.src_embed.weight.grad.clone()

    first, second = on_ranks(2, work)
    assert first.abs().max() > 0
    assert torch.equal(first, second)


def test_a_failure_of_one_is_everyones() -> None:
    def work(ranks: Ranks) -> int:
        def fail_on_one() -> int:
            if ranks.rank == 1:
                raise ConfigError("out of memory")
            return 7

        assert ranks.together(lambda: ranks.rank) == ranks.rank
        return ranks.together(fail_on_one)

    first, second, third = on_ranks(3, work)
    assert isinstance(second, ConfigError)
    for other in (first, third):
        assert isinstance(other, SystemExit) and other.code == 2


@pytest.mark.parametrize("error", [ConfigError("no"), KeyError("no"), Interrupted(143)])
def test_what_rank_0_does_the_others_get(error: BaseException) -> None:
    done = []

    def work(ranks: Ranks) -> Any:
        def once(value: Any) -> Any:
            done.append(ranks.rank)
            if isinstance(value, BaseException):
                raise value
            return value

        assert ranks.from_main(lambda: once({"bleu": 31.25})) == {"bleu": 31.25}
        ranks.from_main(lambda: once(error))

    first, second = on_ranks(2, work)
    assert done == [0, 0]
    assert first is error
    if isinstance(error, Interrupted):
        assert isinstance(second, Interrupted) and second.exit_code == 143
    else:
        assert isinstance(second, SystemExit) and second.code == getattr(error, "exit_code", 1)


def test_rank_0_goes_first() -> None:
    order: list[int] = []
    assert on_ranks(3, lambda ranks: ranks.main_first(lambda: order.append(ranks.rank) or ranks.rank)) == [0, 1, 2]
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


class Signalled(Interrupts):
    def check(self) -> None:
        raise Interrupted(130)


def test_a_signal_to_one_stops_all() -> None:
    found = on_ranks(3, lambda ranks: ranks.check(Signalled() if ranks.rank == 2 else Interrupts()))
    assert [error.exit_code for error in found] == [130, 130, 130]
    assert on_ranks(2, lambda ranks: ranks.check(Interrupts())) == [None, None]


def test_weights_that_drift_apart_are_noticed(make_model) -> None:
    models = [make_model() for _ in range(2)]
    assert on_ranks(2, lambda ranks: ranks.require_equal(models[ranks.rank])) == [None, None]
    with torch.no_grad():
        models[1].src_embed.weight[3, 4] *= 1 + 1e-6
    for error in on_ranks(2, lambda ranks: ranks.require_equal(models[ranks.rank])):
        assert isinstance(error, MtattnError)


def test_each_rank_and_step_has_dropout_of_its_own_and_one_process_keeps_its_generator() -> None:
    def drawn(rank: int, size: int, step: int) -> float:
        torch.manual_seed(5)
        Ranks(rank, size).seed(1, step)
        return float(torch.rand(()))

    assert len({drawn(rank, 3, step) for rank in range(3) for step in range(4)}) == 12
    assert drawn(1, 3, 2) == drawn(1, 3, 2)
    assert drawn(0, 1, 0) == drawn(0, 1, 1)


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with join(torch.device("cpu")) as (ranks, device):
        assert (ranks.rank, ranks.size, device) == (0, 1, torch.device("cpu"))


def test_two_processes_train_like_one_and_one_goes_on_from_two(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus, *STILL)
    said = finish(torchrun(tiny_config(corpus, *STILL, "train.max_epochs=1"), tmp_path))
    assert said.count("2 processes share each batch") == 1
    train_tiny(config, tmp_path / "one")
    many = tmp_path / "runs" / "many"
    assert losses(many) == pytest.approx(losses(tmp_path / "one")[:3], rel=1e-5)
    train_tiny(config, many)
    assert losses(many) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert RunDirectory(many).read_config() == config


@pytest.mark.slow
def test_stopped_together_and_resumed_equals_uninterrupted(corpus: Path, tmp_path: Path) -> None:
    """Dropout included, bit for bit, at the same number of processes; SIGTERM as a cluster sends it, to torchrun."""
    config = tiny_config(corpus, "train.max_epochs=60", "train.log_every=1", "train.valid_every=200")
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    finish(torchrun(config, tmp_path / "whole"))
    process = torchrun(config, tmp_path / "parts")
    run = tmp_path / "parts" / "runs" / "many"
    while not ((run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert said.count("interrupted at step") == 1, said
    assert "resuming at step" in finish(torchrun(config, tmp_path / "parts"))
    assert outcome(run) == outcome(tmp_path / "whole" / "runs" / "many")


@pytest.mark.slow
def test_one_message_says_what_is_wrong(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus, 'data.train="nowhere.{en,de}"')
    process = torchrun(config, tmp_path)
    _, said = process.communicate(timeout=100)
    assert process.returncode != 0
    assert said.count("error: ") == 1 and "nowhere.en: no such file" in said
