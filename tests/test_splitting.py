"""Running out of memory: parts give the gradient of the whole, a failed attempt leaves nothing, shapes are kept."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from test_packing import packed_batch, random_pairs
from tiny_run import Notes, batch_of, losses, outcome, signal_at, tiny_config, train_tiny
from torch import Tensor

import mtattn.learner
from mtattn.batch import Batch
from mtattn.errors import ConfigError
from mtattn.gradient import Gradient
from mtattn.interrupts import Interrupted
from mtattn.loss import LossConfig
from mtattn.model import Transformer
from mtattn.objective import batch_loss
from mtattn.packing import RowShape
from mtattn.splitting import Splitter, is_out_of_memory

REFUSAL = (
    "[enforce fail at alloc_cpu.cpp:128] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."
)
Fault = Callable[[Batch], bool]


class Computer:
    """A model whose memory runs out on the batches that `fault` picks, and what it was asked to compute."""

    def __init__(self, model: Transformer, fault: Fault = lambda batch: False, parts: dict[str, int] | None = None):
        self.model, self.fault, self.parts = model.train(), fault, {} if parts is None else parts
        self.asked: list[list[int]] = []
        self.said: list[str] = []
        self.splitter = Splitter(
            Gradient(self.loss, torch.device("cpu")),
            model,
            torch.device("cpu"),
            pad_id=0,
            parts=self.parts,
            named=lambda batch: f"pair {batch.indices.tolist()}",
            warn=self.said.append,
        )

    def loss(self, batch: Batch) -> Tensor:
        self.asked.append(batch.indices.tolist())
        if self.fault(batch):
            raise RuntimeError(REFUSAL)
        return batch_loss(self.model, batch, LossConfig())

    def gradients(self, group: Sequence[Batch]) -> dict[str, Tensor]:
        """Of the group, by name; the nats of it under "nats"."""
        nats = self.splitter.add_up(group, sum(batch.num_tokens for batch in group))
        found = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return {"nats": nats, **found}


@pytest.fixture
def still(make_model) -> Transformer:
    """A model without dropout."""
    return make_model(dropout=0.0, inner_dropout=0.0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError(REFUSAL), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_torch_says_what_is_looked_for() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_parts_add_up_to_the_whole(most: int, still: Transformer) -> None:
    group = [batch_of([3, 9, 4, 8, 7]), batch_of([2, 5], first=5)]
    whole = Computer(still).gradients(group)
    split = Computer(still, lambda batch: len(batch.src) > most)
    torch.testing.assert_close(split.gradients(group), whole, rtol=1e-4, atol=1e-6)
    assert max(len(indices) for indices in split.asked[-3:]) <= most
    assert whole["tgt_embed.weight"].abs().max() > 1e-3


def test_parts_of_packed_batches_add_up_to_the_whole(still: Transformer) -> None:
    group = [
        packed_batch(*random_pairs([(9, 8), (7, 5), (2, 6), (8, 8)], seed), RowShape(3, 12, 12)) for seed in (0, 1)
    ]
    whole = Computer(still).gradients(group)
    split = Computer(still, lambda batch: len(batch.src) > 1)
    torch.testing.assert_close(split.gradients(group), whole, rtol=1e-4, atol=1e-6)
    assert split.asked[-3:] == [[0], [3], [1, 2]]
    assert whole["tgt_embed.weight"].abs().max() > 1e-3


def test_nothing_of_a_failed_attempt_stays(still: Transformer) -> None:
    """Memory runs out in the second part of the second batch, when gradients of three kinds have been added."""
    group = [batch_of([3, 4], first=7), batch_of([3, 9, 4, 8, 7])]
    whole = Computer(still).gradients(group)
    split = Computer(still, lambda batch: 1 in batch.indices and len(batch.src) > 1)
    torch.testing.assert_close(split.gradients(group), whole, rtol=1e-4, atol=1e-6)
    assert [0, 2, 4] in split.asked  # a part that was computed and forgotten
    assert split.asked[-4:] == [[0, 4], [1], [2], [3]]


def test_memory_may_run_out_in_the_middle_of_the_backward_pass(still: Transformer) -> None:
    group = [batch_of([3, 9, 4, 8])]
    whole = Computer(still).gradients(group)
    failures = iter([True, False, False])

    def fail(gradient: Tensor) -> None:
        if next(failures):
            raise RuntimeError(REFUSAL)

    handle = still.src_embed.weight.register_hook(fail)
    split = Computer(still)
    torch.testing.assert_close(split.gradients(group), whole, rtol=1e-4, atol=1e-6)
    handle.remove()
    assert list(split.parts.values()) == [2]


def test_a_shape_is_remembered_and_mentioned_once(still: Transformer) -> None:
    split = Computer(still, lambda batch: len(batch.src) > 1)
    split.gradients([batch_of([3, 4, 5])])
    assert split.parts == {"3 x 5 x 6": 3}
    assert [len(indices) for indices in split.asked] == [3, 2, 1, 1, 1]
    split.gradients([batch_of([5, 4, 3])])
    assert [len(indices) for indices in split.asked[5:]] == [1, 1, 1]
    (said,) = split.said
    assert said.startswith("out of memory: batches of 3 x 5 x 6 (pairs x source x target) are computed in 3 parts")


def test_what_is_as_large_is_split_without_trying(still: Transformer) -> None:
    split = Computer(still, lambda batch: len(batch.src) * (batch.src.shape[1] + batch.tgt_out.shape[1]) > 40)
    split.gradients([batch_of([7, 7, 7, 7])])  # 4 x (7 + 8) = 60 positions fail, 30 do not
    del split.asked[:]
    split.gradients([batch_of([6] * 6), batch_of([3] * 4)])  # 78 positions are halved at once, 28 are not
    assert [len(indices) for indices in split.asked] == [3, 3, 4]
    assert len(split.said) == 1


def test_it_makes_no_difference_when_a_shape_was_learnt(make_model) -> None:
    """Dropout masks, too, are those of a run that knew from the start: a resumed run equals an uninterrupted one."""
    group = [batch_of([3, 4]), batch_of([3, 9, 4, 8, 7])]
    found = []
    for fault, parts in ((lambda batch: len(batch.src) > 3, {}), (lambda batch: False, {"5 x 9 x 10": 2})):
        torch.manual_seed(3)
        computer = Computer(make_model(dropout=0.3), fault, parts)
        found.append({**computer.gradients(group), "random": torch.get_rng_state()})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_a_single_pair_that_does_not_fit_is_named(still: Transformer) -> None:
    with pytest.raises(ConfigError, match=r"pair \[11\], 9 source and 10 target pieces; lower filter.max_len") as error:
        Computer(still, lambda batch: 11 in batch.indices).gradients([batch_of([3, 9, 4], first=10)])
    assert error.value.exit_code == 2


def test_other_errors_are_left_alone(still: Transformer) -> None:
    def fault(batch: Batch) -> bool:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        Computer(still, fault).gradients([batch_of([3, 9])])


def test_a_rehearsal_leaves_all_as_it_was_but_knows_the_parts(make_model) -> None:
    model = make_model(dropout=0.3)
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    random, computer = torch.get_rng_state(), Computer(model, lambda batch: len(batch.src) > 2)
    computer.splitter.rehearse([batch_of([4, 5, 6])], reserve=1000)
    assert computer.parts == {"3 x 6 x 7": 2}
    assert torch.equal(torch.get_rng_state(), random)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.grad.any()
        assert torch.equal(parameter, weights[name])


def test_a_trial_keeps_nothing(make_model) -> None:
    computer = Computer(make_model(dropout=0.3), lambda batch: len(batch.src) > 2)
    random = torch.get_rng_state()
    assert computer.splitter.fits(batch_of([4, 5]))
    assert not computer.splitter.fits(batch_of([4, 5, 6]))
    assert (computer.parts, computer.said) == ({}, [])
    assert torch.equal(torch.get_rng_state(), random)


def small_memory(patch: pytest.MonkeyPatch, most: int) -> None:
    """Training runs out of memory on batches of more than so many pairs."""
    original = mtattn.learner.batch_loss

    def loss(model: Transformer, batch: Batch, config: LossConfig) -> Tensor:
        if len(batch.src) > most:
            raise RuntimeError(REFUSAL)
        return original(model, batch, config)

    patch.setattr(mtattn.learner, "batch_loss", loss)


def test_a_run_short_of_memory_learns_the_same(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(corpus, "model.dropout=0.0", "model.inner_dropout=0.0", "train.accumulate=2")
    train_tiny(config, tmp_path / "ample")
    small_memory(monkeypatch, 6)
    report = Notes()
    train_tiny(config, tmp_path / "short", report)
    assert losses(tmp_path / "short") == pytest.approx(losses(tmp_path / "ample"), rel=1e-4)
    said = [warning for warning in report.warnings if "out of memory" in warning]
    assert said and len(said) == len(set(said))


def test_a_run_short_of_memory_resumes_bit_for_bit(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(corpus)
    small_memory(monkeypatch, 6)
    train_tiny(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(3, patch)
        train_tiny(config, tmp_path / "parts")
    train_tiny(config, tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
