"""The run directory: pointers, pruning, which checkpoint is newest, and loading a model."""

import json
from pathlib import Path

import pytest
import torch

from mtattn.checkpoint import Checkpoint, RunDirectory, make_model, read_config, weights_of
from mtattn.config import Config, load_config
from mtattn.errors import ModelError, RunInUseError
from mtattn.loading import load_model
from mtattn.model import Transformer
from mtattn.storage import read_tensors
from mtattn.tokenizer import Tokenizer

SIZES = ["model.d_model=8", "model.d_ff=8", "model.num_heads=2", "model.encoder_layers=1", "model.decoder_layers=1"]


def checkpoint(step: int, best_step: int | None = None, value: float = 0.0) -> Checkpoint:
    """A checkpoint of two small tensors."""
    value = value or float(step)
    state = {"step": step, "best_step": best_step}
    return Checkpoint({"w": torch.full((3,), value)}, {"m": torch.full((2,), -value)}, state)


def saved(run: RunDirectory) -> list[str]:
    """The checkpoints that are there."""
    return sorted(path.name for path in run.checkpoints.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_what_is_saved_comes_back(run: RunDirectory) -> None:
    with run.lock():
        run.save(checkpoint(7, 7))
    found = run.newest(pytest.fail)
    assert found is not None
    assert torch.equal(found.weights["w"], torch.full((3,), 7.0))
    assert torch.equal(found.optim["m"], torch.full((2,), -7.0))
    assert (found.state["step"], found.state["best_step"]) == (7, 7)
    assert run.pointer("last") == run.pointer("best") == run.checkpoints / "step-7"


def test_nothing_saved_is_no_checkpoint(run: RunDirectory) -> None:
    assert run.newest(pytest.fail) is None
    with pytest.raises(ModelError, match="no trained model here yet"):
        run.weights_to_release()


def test_the_best_and_the_newest_two_are_kept(run: RunDirectory) -> None:
    with run.lock():
        for step, best in ((1, 1), (2, 2), (9, 2), (10, 2), (11, 2)):
            run.save(checkpoint(step, best))
    assert saved(run) == ["step-10", "step-11", "step-2"]
    assert (run.path / "best").read_text() == "step-2\n"
    assert run.weights_to_release()["w"][0] == 2.0
    found = run.newest(pytest.fail)
    assert found is not None and found.state["step"] == 11  # by number: as names, step-2 and step-9 come later


def test_pruning_leaves_what_is_not_ours(run: RunDirectory) -> None:
    with run.lock():
        run.save(checkpoint(1))
        (run.checkpoints / "notes").write_text("mine")
        for step in (2, 3, 4):
            run.save(checkpoint(step))
    assert saved(run) == ["notes", "step-3", "step-4"]


def test_the_same_step_saved_again_has_the_new_state(run: RunDirectory) -> None:
    """As when a run was interrupted before a validation, and goes on with it."""
    with run.lock():
        run.save(checkpoint(5))
        run.save(checkpoint(5, best_step=5, value=6.0))
    found = run.newest(pytest.fail)
    assert found is not None
    assert found.state["best_step"] == 5 and found.weights["w"][0] == 6.0
    assert saved(run) == ["step-5"]


def test_the_same_checkpoint_is_not_written_twice(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.lock():
        run.save(checkpoint(5, 5))
        monkeypatch.setattr("mtattn.storage.before_operation", pytest.fail)
        run.save(checkpoint(5, 5))


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(run: RunDirectory) -> None:
    with run.lock():
        run.save(checkpoint(1))
        run.save(checkpoint(2))
    (run.checkpoints / "step-2" / "optim.safetensors").unlink()
    warnings: list[str] = []
    found = run.newest(warnings.append)
    assert found is not None and found.state["step"] == 1
    assert len(warnings) == 1 and "step-2 is not used" in warnings[0] and "optim.safetensors: missing" in warnings[0]


def test_a_damaged_checkpoint_does_not_count_as_one_of_two(run: RunDirectory) -> None:
    with run.lock():
        for step in (1, 2, 4):
            run.save(checkpoint(step))
        (run.checkpoints / "step-4" / "optim.safetensors").unlink()
        found = run.newest(lambda text: None)
        assert found is not None and found.state["step"] == 2
        run.save(checkpoint(3))
    assert saved(run) == ["step-2", "step-3"]


def test_no_whole_checkpoint_is_an_error(run: RunDirectory) -> None:
    with run.lock():
        run.save(checkpoint(1))
    (run.checkpoints / "step-1" / "state.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no checkpoint is whole .*state.json.*--fresh"):
        run.newest(lambda text: None)


def test_pointers_follow_the_checkpoint_that_is_resumed(run: RunDirectory) -> None:
    """A kill between the rename of a checkpoint and its pointers leaves them behind."""
    with run.lock():
        run.save(checkpoint(1, 1))
        run.save(checkpoint(2, 2))
        for name in ("best", "last"):
            (run.path / name).write_text("step-1\n")
        found = run.newest(pytest.fail)
        assert found is not None
        run.point_to(found)
    assert run.pointer("best") == run.pointer("last") == run.checkpoints / "step-2"


@pytest.mark.parametrize("text", ["", "\n", "..", ".", "../..", "/etc", "step-99", "step-1\0"])
def test_a_pointer_stays_inside(text: str, run: RunDirectory) -> None:
    with run.lock():
        run.save(checkpoint(1))
    (run.path / "last").write_text(text)
    assert run.pointer("last") is None


def test_the_lock_admits_one_trainer_and_ends_with_it(run: RunDirectory) -> None:
    other = RunDirectory(run.path)
    with run.lock(), pytest.raises(RunInUseError, match="another process is training here"), other.lock():
        pass
    with other.lock():
        pass


def test_clear_takes_only_what_training_left(run: RunDirectory, tokenizer: Tokenizer) -> None:
    with run.lock():
        run.begin(load_config(None, SIZES), tokenizer)
        run.save(checkpoint(1, 1))
        (run.path / "mine.txt").write_text("mine")
        run.clear()
    assert {path.name for path in run.path.iterdir()} == {".lock", "mine.txt"}


@pytest.fixture
def small(tokenizer: Tokenizer) -> tuple[Config, Transformer]:
    config = load_config(None, SIZES)
    return config, make_model(config, tokenizer)


def test_a_run_is_loaded_from_its_best_checkpoint_then_from_its_release(
    run: RunDirectory, small: tuple[Config, Transformer], tokenizer: Tokenizer
) -> None:
    from mtattn.checkpoint import tokenizer_hashes

    config, model = small
    with run.lock():
        run.begin(config, tokenizer)
        with pytest.raises(ModelError, match="no trained model here yet"):
            load_model(run.path)
        state = {"step": 3, "best_step": 3, "tokenizer": tokenizer_hashes(tokenizer)}
        run.save(Checkpoint(weights_of(model), {}, state))
        from_checkpoint, _, _ = load_model(run.path)
        run.release(config, tokenizer, {"dev_bleu": 1.0}, "card")
    released, _, found = load_model(run.path)
    assert found == config and not released.training
    for name, weight in weights_of(model).items():
        assert torch.equal(weights_of(from_checkpoint)[name], weight)
        assert torch.equal(weights_of(released)[name], weight)
    for name in ("README.md", "scores.json"):  # for people: a licence is filled in, a score added
        (run.model / name).write_text("mine")
    load_model(run.path)
    (run.model / "config.toml").write_text((run.model / "config.toml").read_text() + "\n")
    with pytest.raises(ModelError, match=r"config\.toml: \d+ bytes where the manifest says"):
        load_model(run.path)


def test_a_new_release_keeps_what_people_wrote(
    run: RunDirectory, small: tuple[Config, Transformer], tokenizer: Tokenizer
) -> None:
    config, model = small
    files = {name: run.model / name for name in ("README.md", "scores.json", "LICENSE")}
    with run.lock():
        run.begin(config, tokenizer)
        run.save(Checkpoint(weights_of(model), {}, {"step": 1, "best_step": 1}))
        assert run.release(config, tokenizer, {"dev_bleu": 1.0}, "card of step 1")
        files["LICENSE"].write_text("CC0")
        (run.model / "docs").mkdir()
        (run.model / "docs" / "use.md").symlink_to("../LICENSE")
        run.save(Checkpoint(weights_of(model), {}, {"step": 2, "best_step": 2}))
        assert run.release(config, tokenizer, {"dev_bleu": 1.0}, "card of step 2")  # the same weights and scores
        assert files["README.md"].read_text() == "card of step 1"
        better = {name: weight + 1 for name, weight in weights_of(model).items()}
        run.save(Checkpoint(better, {}, {"step": 3, "best_step": 3}))
        assert run.release(config, tokenizer, {"dev_bleu": 3.0}, "card of step 3")
        assert files["README.md"].read_text() == "card of step 3"
        assert files["LICENSE"].read_text() == (run.model / "docs" / "use.md").read_text() == "CC0"
        files["scores.json"].write_text("{}")  # as `mtattn eval --json` may
        run.save(Checkpoint(weights_of(model), {}, {"step": 4, "best_step": 4}))
        assert run.release(config, tokenizer, {"dev_bleu": 3.5}, "card of step 4")
        assert files["README.md"].read_text() == "card of step 4"
        files["README.md"].write_text("my card")
        run.save(Checkpoint(better, {}, {"step": 5, "best_step": 5}))
        run.release(config, tokenizer, {"dev_bleu": 3.9}, "card of step 5")
        run.save(Checkpoint(weights_of(model), {}, {"step": 6, "best_step": 6}))
        assert not run.release(config, tokenizer, {"dev_bleu": 4.0}, "card of step 4")
        assert json.loads(files["scores.json"].read_text())["dev_bleu"] == 4.0
        released = read_tensors(run.model / "model.safetensors")
        (run.path / "scores.json").write_text("{}")
        run.clear()
    assert {path.name for path in run.model.iterdir()} == {"README.md", "LICENSE", "docs"}
    assert not (run.path / "scores.json").exists()
    assert all(torch.equal(released[name], weight) for name, weight in weights_of(model).items())


def test_a_stored_config_that_is_wrong_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[model]\nd_modell = 8\n")
    with pytest.raises(ModelError, match=r"config.toml: model.d_modell is not a setting; did you mean 'd_model'"):
        read_config(tmp_path)


def test_a_run_that_never_began_leaves_no_folder(run: RunDirectory) -> None:
    with run.lock():
        pass
    assert not run.path.exists()
    run.path.mkdir()
    with run.lock():
        pass
    assert run.path.is_dir()


def test_what_people_put_there_outlives_a_kill(
    run: RunDirectory, small: tuple[Config, Transformer], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, model = small

    def kill(operation: str) -> None:
        if operation == "rename model":
            raise KeyboardInterrupt

    with run.lock():
        run.begin(config, tokenizer)
        run.save(Checkpoint(weights_of(model), {}, {"step": 1, "best_step": 1}))
        run.release(config, tokenizer, {"dev_bleu": 1.0}, "card")
        (run.model / "LICENSE").write_text("CC0")
        (run.model / "README.md").write_text("my card")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("mtattn.storage.before_operation", kill)
            run.release(config, tokenizer, {"dev_bleu": 2.0}, "card")
        assert not run.model.exists()
        run.release(config, tokenizer, {"dev_bleu": 2.0}, "card")
        assert (run.model / "LICENSE").read_text() == "CC0" and (run.model / "README.md").read_text() == "my card"
        assert json.loads((run.model / "scores.json").read_text())["dev_bleu"] == 2.0
        run.model.rename(run.path / "model.old")
        run.clear()
    assert (run.model / "LICENSE").read_text() == "CC0" and not (run.path / "model.old").exists()


def test_clear_removes_a_link_to_another_disk(run: RunDirectory, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "step-3").mkdir(parents=True)
    run.path.mkdir(exist_ok=True)
    run.checkpoints.symlink_to(elsewhere)
    run.clear()
    assert not run.checkpoints.exists() and not run.checkpoints.is_symlink()
    assert (elsewhere / "step-3").is_dir()


def test_somebody_elses_model_folder_is_not_begun_over(run: RunDirectory) -> None:
    run.model.mkdir(parents=True)
    with pytest.raises(ModelError, match="model: is in the way, and no run began here"):
        run.require_unmarked()


@pytest.mark.parametrize("name", ["tokenizer.model", "metrics.jsonl", "best"])
def test_somebody_elses_files_are_not_begun_over(run: RunDirectory, name: str) -> None:
    run.path.mkdir(exist_ok=True)
    (run.path / name).write_bytes(b"precious")
    with pytest.raises(ModelError, match=f"{name}: is in the way, and no run began here"):
        run.require_unmarked()
    run.log_file.touch()  # ours, killed before it began
    run.require_unmarked()


def test_beginning_removes_tokenizers_of_another_kind(run: RunDirectory, tokenizer: Tokenizer) -> None:
    run.path.mkdir(exist_ok=True)
    (run.path / "tokenizer.src.model").write_bytes(b"old")
    (run.path / "tokenizer.tgt.model").write_bytes(b"old")
    (run.path / "tokenizer-mine.model").write_bytes(b"precious")
    run.begin(Config(), tokenizer)
    assert {path.name for path in run.path.glob("tokenizer*")} == {"tokenizer.model", "tokenizer-mine.model"}
