"""The train loop: it learns, adds gradients up, and an interrupted run equals one that never was."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Notes, change_dev, outcome, signal_at, tiny_config, train_tiny, write_corpus

import mtattn.learner
import mtattn.train
from mtattn.batch import Batch
from mtattn.batching import Batches
from mtattn.checkpoint import RunDirectory, weights_of
from mtattn.config import Config, load_config
from mtattn.corpus import DataConfig
from mtattn.errors import ConfigError, CorpusError, DivergedError, ModelError
from mtattn.interrupts import Interrupted, Interrupts
from mtattn.prepare import prepare
from mtattn.resolve import resolve
from mtattn.resume import lineage, resumed_config
from mtattn.sources import CorpusSource
from mtattn.train import MAX_SKIPPED, Trainer
from mtattn.validate import Validation, validate


def trainer(config: Config, path: Path) -> Trainer:
    """A trainer before its first step."""
    path.mkdir()
    report = Notes()
    data = prepare(config, None, report)
    return Trainer(config, RunDirectory(path), data, report, Interrupts(), torch.device("cpu"), False)


VARIANTS = {
    "average": ["train.ema=0.1"],
    "last weights, AdamW": ["train.ema=0", 'optim.kind="adamw"'],
    "accumulation": ["train.accumulate=2", "train.batch_tokens=64"],
    "subword sampling": ["tokenizer.sampling=0.2"],
    "BPE-dropout": ['tokenizer.kind="bpe"', "tokenizer.sampling=0.1", "tokenizer.vocab_size=285"],
    "R-Drop": ["loss.rdrop=1.0"],
    "bfloat16": ["train.precision=bfloat16"],
    "packed pairs": ["train.packing=true", "train.batch_tokens=128"],
    "packed pairs, subword sampling": ["train.packing=true", "train.batch_tokens=128", "tokenizer.sampling=0.2"],
    "saves between validations": ["train.save_every=3", "train.valid_every=4"],
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_interrupted_and_resumed_equals_uninterrupted(overrides: list[str], corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus, *overrides)
    train_tiny(config, tmp_path / "whole")
    for step in (3, 4):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            signal_at(step, patch)
            train_tiny(config, tmp_path / "parts")
    train_tiny(config, tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("function", ["_validate_and_save", "_save", "_finish"])
@pytest.mark.parametrize("call", [1, 2])
def test_interrupted_anywhere_equals_uninterrupted(function: str, call: int, corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus)
    train_tiny(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        signal_at(call, patch, function)
        try:
            train_tiny(config, tmp_path / "parts")
        except Interrupted as interrupted:
            assert interrupted.exit_code == 143
    train_tiny(config, tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_resumed_run_reads_only_the_batches_that_are_left(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(3, patch)
        train_tiny(config, tmp_path / "run")
    starts = []
    with pytest.MonkeyPatch.context() as patch:
        original = Batches.stream
        patch.setattr(Batches, "stream", lambda self, p: starts.append(p) or original(self, p))
        train_tiny(config, tmp_path / "run")
    assert [(position.epoch, position.batch) for position in starts] == [(0, 3)]


def test_a_finished_run_has_nothing_left_to_do(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus)
    first = train_tiny(config, tmp_path / "run")
    before = outcome(tmp_path / "run")
    assert train_tiny(config, tmp_path / "run") == first
    assert outcome(tmp_path / "run") == before


def test_limits_may_be_raised_and_nothing_else(corpus: Path, tmp_path: Path) -> None:
    train_tiny(tiny_config(corpus, "train.max_epochs=1"), tmp_path / "run")
    longer = tiny_config(corpus, "train.max_epochs=2", "decode.beam_size=7")
    result = train_tiny(longer, tmp_path / "run")
    assert result.step == 10
    assert RunDirectory(tmp_path / "run").read_config() == longer
    with pytest.raises(ConfigError, match=r"train.batch_tokens = 64, was 128; --fresh"):
        train_tiny(tiny_config(corpus, "train.batch_tokens=64"), tmp_path / "run")


def test_a_run_goes_on_with_a_corpus_that_has_moved(corpus: Path, tmp_path: Path) -> None:
    train_tiny(tiny_config(corpus), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(3, patch)
        train_tiny(tiny_config(write_corpus(tmp_path / "here")), tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tiny_config(tmp_path / "there")
    train_tiny(moved, tmp_path / "run")
    assert outcome(tmp_path / "run")["released"] == outcome(tmp_path / "whole")["released"]
    assert RunDirectory(tmp_path / "run").read_config() == moved
    with (tmp_path / "there" / "train.en").open("a") as source, (tmp_path / "there" / "train.de").open("a") as target:
        source.write("a b\n")
        target.write("A B\n")
    with pytest.raises(CorpusError, match="training files changed"):
        train_tiny(moved, tmp_path / "run")


def test_a_run_goes_on_with_files_that_have_moved(tmp_path: Path) -> None:
    def config(folder: Path, **more: Any) -> Config:
        train, dev = (
            CorpusSource(f"{folder}/{split}.en", target=f"{folder}/{split}.de", **more) for split in ("train", "dev")
        )
        return replace(tiny_config(folder), data=DataConfig(train=train, dev=dev))

    here, there = tmp_path / "here", tmp_path / "there"
    train_tiny(config(write_corpus(here)), tmp_path / "run")
    here.rename(there)
    train_tiny(config(there), tmp_path / "run")
    assert RunDirectory(tmp_path / "run").read_config() == config(there)
    with pytest.raises(ConfigError, match=r"data.train = .* --fresh"):
        train_tiny(config(there, format="text"), tmp_path / "run")
    both = replace(config(there), data=replace(config(there).data, train=("a.tsv", "b.tsv"), folder=str(there)))
    for name in ("a", "b"):
        (there / f"{name}.tsv").write_text("a b\tA B\n" * 40 + f"{name}\t{name}\n")
    train_tiny(both, tmp_path / "two")
    turned = replace(both, data=replace(both.data, train=("b.tsv", "a.tsv")))
    with pytest.raises(CorpusError, match="changed since this run began: they stand in another order; --allow"):
        train_tiny(turned, tmp_path / "two")
    for side in ("en", "de"):
        with (there / f"train.{side}").open("a") as file:
            file.write("a b\n")
    with pytest.raises(CorpusError, match="training files changed"):
        train_tiny(config(there), tmp_path / "run")


def test_fewer_pairs_than_before_go_on_where_they_end(tmp_path: Path) -> None:
    config = tiny_config(write_corpus(tmp_path / "data", pairs=60), "train.max_epochs=3")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(9, patch)  # late in the second epoch
        train_tiny(config, tmp_path / "run")
    for side in ("en", "de"):
        path = tmp_path / "data" / f"train.{side}"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:12]))
    before = last_checkpoint(tmp_path / "run")["step"]
    assert train_tiny(config, tmp_path / "run", allow_changed_data=True).step > before


def test_text_from_the_hub_is_known_by_its_content(tmp_path: Path) -> None:
    """There are no files to compare, and one name may stand for another text the next time."""
    found = []
    for name in ("once", "again", "other"):
        folder = write_corpus(tmp_path / name)
        if name == "other":
            path = folder / "train.de"
            path.write_text(path.read_text().replace("A", "B", 1))
        config = tiny_config(folder)
        data = prepare(config, None, Notes())
        assert "text from the hub" not in lineage(config, data)["files"]
        config = replace(config, data=replace(config.data, train="hf:owner/name@train"))
        found.append(lineage(config, data)["files"]["text from the hub"])
    assert found[0] == found[1] != found[2]


def test_a_dev_set_that_rules_out_other_pairs_is_changed_data(tmp_path: Path) -> None:
    config = tiny_config(write_corpus(tmp_path / "data"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(3, patch)
        train_tiny(config, tmp_path / "run")
    for side in ("en", "de"):
        lines = (tmp_path / "data" / f"train.{side}").read_text().splitlines(keepends=True)
        with (tmp_path / "data" / f"dev.{side}").open("a") as file:
            file.write(lines[7])
    with pytest.raises(CorpusError, match=r"run: other training pairs pass the filters .* --allow-changed-data"):
        train_tiny(config, tmp_path / "run")
    assert train_tiny(config, tmp_path / "run", allow_changed_data=True).step == 10
    assert train_tiny(config, tmp_path / "run").step == 10  # the next checkpoints belong to what is there now


def last_checkpoint(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(
        (run / "checkpoints" / (run / "last").read_text().strip() / "state.json").read_text()
    )
    return state


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_each_epoch_ends_in_one_validation(accumulate: int, corpus: Path, tmp_path: Path) -> None:
    overrides = ["train.batch_tokens=64", f"train.accumulate={accumulate}", "train.max_epochs=4", "train.patience=0"]
    train_tiny(tiny_config(corpus, *overrides), tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").metrics.read()
    assert [int(line["epoch"]) for line in lines if line["kind"] == "valid"] == [1, 2, 3, 4]


def test_a_lowered_limit_still_scores_the_last_steps(corpus: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(3, patch)
        train_tiny(tiny_config(corpus), tmp_path / "run")
    result = train_tiny(tiny_config(corpus, "train.max_steps=2"), tmp_path / "run")
    assert (result.step, last_checkpoint(tmp_path / "run")["best_step"]) == (3, 3)


def test_training_does_not_mind_how_decoding_computes(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus, "decode.quantization=int8", "model.position.kind=alibi", "train.max_epochs=1")
    assert train_tiny(config, tmp_path / "run").step == 5


def test_what_has_no_gradient_here_is_refused_first(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus, "model.attention=flex", "data.train=missing.{en,de}")
    with pytest.raises(ConfigError, match="flex has no gradient on a CPU"):
        train_tiny(config, tmp_path / "run")


def test_fresh_starts_over(corpus: Path, tmp_path: Path) -> None:
    train_tiny(tiny_config(corpus), tmp_path / "run")
    train_tiny(tiny_config(corpus, "train.seed=2", "train.max_epochs=1"), tmp_path / "run", fresh=True)
    train_tiny(tiny_config(corpus, "train.seed=2", "train.max_epochs=1"), tmp_path / "other")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "other")


def test_fresh_replaces_nothing_when_memory_does_not_suffice(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(trainer: Trainer) -> None:
        raise ConfigError("out of memory on a single row")

    train_tiny(tiny_config(corpus), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr(Trainer, "_rehearse", out_of_memory)
    with pytest.raises(ConfigError, match="out of memory"):
        train_tiny(tiny_config(corpus, "train.seed=2"), tmp_path / "run", fresh=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_checkpoints_of_a_lost_config_are_refused_but_fresh_replaces_them(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus, "train.max_epochs=1")
    train_tiny(config, tmp_path / "run")
    (tmp_path / "run" / "config.toml").unlink()
    with pytest.raises(ModelError, match=r"has checkpoints but no config.toml"):
        train_tiny(config, tmp_path / "run")
    assert train_tiny(config, tmp_path / "run", fresh=True).step == 5


def test_a_copy_task_is_learnt(corpus: Path, tmp_path: Path) -> None:
    sizes = ("model.d_model=32", "model.d_ff=64", "model.dropout=0.0", "model.inner_dropout=0.0")
    train_tiny(tiny_config(corpus, *sizes, "train.max_epochs=12", "train.valid_every=60"), tmp_path / "run")
    metrics = RunDirectory(tmp_path / "run").metrics.read()
    losses = [line["loss"] for line in metrics if line["kind"] == "train"]
    assert losses[0] > 5.0 and losses[-1] < 0.6 * losses[0]


def test_metrics_have_the_contracts_keys(corpus: Path, tmp_path: Path) -> None:
    train_tiny(tiny_config(corpus, "train.max_epochs=1"), tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").metrics.read()
    common = {"kind", "step", "epoch", "elapsed_s", "tgt_tokens", "loss", "lr"}
    assert [line["kind"] for line in lines] == ["train", "train", "valid"]
    assert set(lines[0]) == common
    assert set(lines[-1]) == common | {"bleu", "chrf", "perplexity", "signature"}
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines[-1]["perplexity"] == pytest.approx(math.exp(lines[-1]["loss"]))
    assert lines[-1]["tgt_tokens"] == 428


def halves(batch: Batch) -> list[Batch]:
    """A batch in two, whose numbers of target tokens differ."""
    cut = len(batch.src) // 3
    parts = []
    for rows in (slice(0, cut), slice(cut, None)):
        tokens = int((batch.tgt_out[rows] != 0).sum())
        parts.append(Batch(batch.src[rows], batch.tgt_in[rows], batch.tgt_out[rows], tokens, batch.indices[rows]))
    return parts


def test_two_part_batches_give_the_gradient_of_one(corpus: Path, tmp_path: Path) -> None:
    still = ("model.dropout=0.0", "model.inner_dropout=0.0", "train.ema=0.0", "optim.clip_norm=0.0")
    found = []
    for name, divide in (("one", lambda batch: [batch]), ("two", halves)):
        one = trainer(tiny_config(corpus, *still), tmp_path / name)
        batch, _ = next(one.batches.stream(one.state.position))
        gradients: dict[str, torch.Tensor] = {}

        def look(model: torch.nn.Module = one.learner.model, into: dict[str, torch.Tensor] = gradients) -> None:
            into.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

        for optimizer in one.learner.optimizers:  # look at the gradients where they would be applied
            optimizer.step = look  # type: ignore[method-assign]
        assert one._step(divide(batch))
        found.append((gradients, one.state.nats, one.state.num_tokens))
    assert found[0][2] == found[1][2]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    assert found[0][0].keys() == found[1][0].keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in found[0][0].values())
    for name, gradient in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], gradient, rtol=1e-4, atol=1e-7)


def test_the_average_follows_its_formula(corpus: Path, tmp_path: Path) -> None:
    one = trainer(tiny_config(corpus, "train.ema=0.5"), tmp_path / "run")
    assert one.learner.average is not None
    expected = {name: weight.clone() for name, weight in weights_of(one.learner.model).items()}
    for step in range(3):
        one.state.step = step
        batch, _ = next(one.batches.stream(one.state.position))
        assert one._step([batch])
        share = 1 / (1 + 0.5 * step)
        for name, weight in weights_of(one.learner.model).items():
            expected[name] += share * (weight - expected[name])
    for name, weight in weights_of(one.learner.average).items():
        torch.testing.assert_close(weight, expected[name])


def nan_between(first: int, last: int, patch: pytest.MonkeyPatch) -> list[int]:
    """The losses of these calls, counted from 1, are NaN; returns the counter."""
    original, calls = mtattn.learner.batch_loss, [0]

    def loss(*args: Any) -> torch.Tensor:
        calls[0] += 1
        value = original(*args)
        return value * math.nan if first <= calls[0] <= last else value

    patch.setattr(mtattn.learner, "batch_loss", loss)
    return calls


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(tiny_config(corpus), tmp_path / "run")
    before = {name: weight.clone() for name, weight in weights_of(one.learner.model).items()}
    nan_between(1, 1, monkeypatch)
    batch, _ = next(one.batches.stream(one.state.position))
    assert not one._step([batch])
    for name, weight in weights_of(one.learner.model).items():
        assert torch.equal(weight, before[name])
    assert one.state.num_tokens == 0
    assert one._step([batch])


def test_a_run_with_some_bad_steps_goes_on(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Notes()
    nan_between(3, 4, monkeypatch)
    assert train_tiny(tiny_config(corpus), tmp_path / "run", report).step == 10
    said = [warning for warning in report.warnings if "not finite" in warning]
    assert said == [f"step {n}: the gradient is not finite; the step is skipped" for n in (3, 4)]
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-10" / "state.json").read_bytes())
    assert (state["loop"]["skipped"], state["loop"]["skipped_in_a_row"], state["loop"]["rollbacks"]) == (2, 0, 0)
    assert "2 steps were skipped, since their gradients were not finite" in report.said


@pytest.mark.parametrize(("first", "back_to"), [(1, 0), (8, 5)])
def test_many_in_a_row_go_back_with_half_the_rate(
    first: int, back_to: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(corpus, "train.max_epochs=5", 'optim.schedule="constant"', "optim.warmup=0.0")
    report = Notes()
    monkeypatch.setattr(mtattn.train, "MAX_SKIPPED", 2)
    nan_between(first, first + 1, monkeypatch)
    assert train_tiny(config, tmp_path / "run", report).step == 25
    (said,) = [warning for warning in report.warnings if "back to step" in warning]
    assert said.endswith(f"back to step {back_to}, with 0.5 times the learning rate")
    lines = RunDirectory(tmp_path / "run").metrics.read()
    rates = {line["step"]: line["lr"] for line in lines if line["kind"] == "train"}
    assert rates[24] == pytest.approx(config.optim.lr / 2)
    assert sorted(rates) == list(range(2, 26, 2))  # the lines of the steps that were taken back are gone


def test_what_does_not_recover_names_its_pairs(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Notes()
    calls = nan_between(1, 10**9, monkeypatch)
    with pytest.raises(DivergedError, match=r"after going back 2 times \(last batch: training pairs \d+, \d+"):
        train_tiny(tiny_config(corpus, "train.max_epochs=30"), tmp_path / "run", report)
    assert calls[0] >= 3 * MAX_SKIPPED
    assert [w.rsplit("with ")[-1] for w in report.warnings if "back to" in w] == [
        "0.5 times the learning rate",
        "0.25 times the learning rate",
    ]


def test_early_stopping_counts_validations_without_a_better_score(corpus: Path, tmp_path: Path) -> None:
    result = train_tiny(tiny_config(corpus, "train.patience=1", "train.max_epochs=9"), tmp_path / "run")
    assert result.reason == "BLEU has not risen for 1 validations"
    assert result.step == 25  # nor had it at step 10, but in two epochs nobody learns anything


def test_validation_splits_what_learned_positions_cannot_hold(corpus: Path, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    for language, line in (("en", "a b c d e f g. h a b c d e f g\n"), ("de", "A\n")):
        with (folder / f"dev.{language}").open("a") as file:
            file.write(line)
    learned = ('model.position={kind="learned", max_len=36}', "filter.max_len=20", "train.max_epochs=1")
    assert train_tiny(tiny_config(folder, *learned), tmp_path / "run").step > 0


def test_nothing_is_saved_or_scored_while_steps_are_skipped(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["train.max_epochs=3", "train.save_every=1", "train.valid_every=8", 'optim.schedule="constant"']
    monkeypatch.setattr(mtattn.train, "MAX_SKIPPED", 4)
    report = Notes()
    nan_between(7, 10, monkeypatch)
    train_tiny(tiny_config(corpus, *options, "optim.warmup=0.0"), tmp_path / "run", report)
    (said,) = [warning for warning in report.warnings if "back to step" in warning]
    assert "back to step 6" in said
    lines = RunDirectory(tmp_path / "run").metrics.read()
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [8, 15]


def test_a_validation_that_was_put_off_comes_after_the_skipped_steps(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_between(4, 5, monkeypatch)
    train_tiny(tiny_config(corpus, "train.valid_every=4"), tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").metrics.read()
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [6, 8, 10]


def test_an_interrupt_while_steps_are_skipped_saves_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Notes()
    nan_between(7, 8, monkeypatch)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(7, patch)
        train_tiny(tiny_config(corpus), tmp_path / "run", report)
    assert report.said[-1] == "interrupted at step 7, where gradients are not finite: not saved"
    assert last_checkpoint(tmp_path / "run")["step"] == 5


def test_saving_counts_as_no_training_time(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = RunDirectory.save

    def slow(*args: Any) -> None:
        time.sleep(0.5)
        save(*args)

    monkeypatch.setattr(RunDirectory, "save", slow)
    result = train_tiny(tiny_config(corpus, "train.save_every=1"), tmp_path / "run")
    assert result.elapsed_s < 0.5 * result.step


def test_another_dev_set_is_not_taken_silently(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    train_tiny(tiny_config(folder, "train.max_epochs=1"), tmp_path / "run")
    change_dev(folder)
    config = tiny_config(folder)
    with pytest.raises(CorpusError, match="the dev set is another than when this run began"):
        train_tiny(config, tmp_path / "run")
    assert train_tiny(config, tmp_path / "run", allow_changed_data=True).step == 10
    lines = RunDirectory(tmp_path / "run").metrics.read()
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [5, 5, 10]  # scored anew on the new one


def test_patience_counts_anew_on_another_dev_set(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([90.0, 80.0, 70.0, 8.0, 9.0, 7.0, 6.0])

    def scored(*args: Any, **kwargs: Any) -> Validation:
        found = validate(*args, **kwargs)
        return replace(found, scores=replace(found.scores, bleu=next(scores)))

    monkeypatch.setattr(mtattn.train, "validate", scored)
    monkeypatch.setattr(mtattn.train, "ready", lambda **_: True)
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    config = tiny_config(folder, "train.max_epochs=99", "train.patience=2")
    assert train_tiny(config, tmp_path / "run").step == 15
    change_dev(folder)
    report = Notes()
    result = train_tiny(config, tmp_path / "run", report, allow_changed_data=True)
    assert (result.best_bleu, result.step) == (9.0, 30)  # 8 at step 15 itself, 9 at 20, then twice no better
    (said,) = [note for note in report.said if "the dev set has changed" in note]
    assert said == "the dev set has changed: its earlier scores are not compared with those to come"


def test_a_finished_run_keeps_the_data_that_it_was_told_to_accept(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    config = tiny_config(folder)
    train_tiny(config, tmp_path / "run")
    before = outcome(tmp_path / "run")
    for side in ("en", "de"):
        with (folder / f"train.{side}").open("a") as file:
            file.write("a b c\n")
    with pytest.raises(CorpusError, match="training files changed"):
        train_tiny(config, tmp_path / "run")
    assert train_tiny(config, tmp_path / "run", allow_changed_data=True).step == 10
    assert train_tiny(config, tmp_path / "run").step == 10
    assert outcome(tmp_path / "run")["metrics"] == before["metrics"]
    assert outcome(tmp_path / "run")["released"] == before["released"]


def test_what_killed_saves_left_is_removed(corpus: Path, tmp_path: Path) -> None:
    train_tiny(tiny_config(corpus, "train.max_epochs=1"), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-3.tmp").mkdir()
    train_tiny(tiny_config(corpus), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-10", "step-5"]


def test_training_outlives_the_reader_of_its_messages(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(tiny_config(corpus).to_toml())
    command = [sys.executable, "-m", "mtattn", "train", "c.toml", "--run", "run"]
    # As users have it: what could not be written stays in Python's buffer, and must not fail at exit.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=100) == 0
    assert last_checkpoint(tmp_path / "run")["step"] == 10
    assert "done: reached its limit at step 10" in (tmp_path / "run" / "train.log").read_text()


def test_another_shape_is_refused_though_it_goes_with_what_may_change(tmp_path: Path) -> None:
    own, asked = (
        load_config(None, [f"model.position={{kind='learned', max_len={size}}}", f"decode.max_len_extra={extra}"])
        for size, extra in ((1024, 10), (4096, 2000))
    )
    (tmp_path / "config.toml").write_text(own.to_toml())
    with pytest.raises(ConfigError, match=r"was begun with another config: model.position = .*4096.*, was .*1024"):
        resumed_config(asked, RunDirectory(tmp_path))


def test_a_released_model_is_no_run_directory(corpus: Path, tmp_path: Path) -> None:
    train_tiny(tiny_config(corpus, "train.max_steps=1"), tmp_path / "run")
    model = RunDirectory(tmp_path / "run" / "model")
    with pytest.raises(ConfigError, match=r"is a released model; --from .* goes on from it"):
        resolve("toy", [], model, Notes(), device=torch.device("cpu"))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_best_checkpoint_that_is_lost_has_no_score(corpus: Path, tmp_path: Path, damaged: bool) -> None:
    config = tiny_config(corpus, "train.max_epochs=3")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(7, patch)
        train_tiny(config, tmp_path / "run")
    state = last_checkpoint(tmp_path / "run")
    assert (state["step"], state["best_step"]) == (7, 5)
    best, report = tmp_path / "run" / "checkpoints" / "step-5", Notes()
    if damaged:
        data = bytearray((best / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (best / "model.safetensors").write_bytes(data)
    else:
        shutil.rmtree(best)
    train_tiny(config, tmp_path / "run", report)
    assert any("checkpoint step-5 is not used" in line for line in report.warnings)
    assert json.loads((tmp_path / "run" / "model" / "scores.json").read_text())["step"] >= 7
