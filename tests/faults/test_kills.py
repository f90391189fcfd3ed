"""Killed anywhere and run again equals never killed: weights, optimiser, generators and metrics, bit for bit.

Each kill is a forked child that ends without a word: by SIGKILL between two file operations of a save, or by a timer
whose signal no handler takes, at any moment at all.
"""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import outcome, tiny_config, train_tiny

from mtattn import storage
from mtattn.checkpoint import RunDirectory
from mtattn.config import Config
from mtattn.interrupts import Interrupted

SOAK_KILLS = int(os.environ.get("MTATTN_SOAK_KILLS", "200"))  # at random moments, in all
SOAKS = 4  # tests that share them
SMALL = ("train.max_epochs=1", "train.save_every=3", "train.valid_sentences=1")


def killed(work: Callable[[], object]) -> int:
    """Do this work in a forked child; how that ended, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 2)
            work()
            code = 0
        except Interrupted as interrupted:
            code = interrupted.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_and_kill_at(operation: int, config: Config, path: Path) -> int:
    """Train in a child that kills itself before the file operation of this number, counted from 0."""

    def work() -> None:
        left = [operation]

        def before(name: str) -> None:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

        storage.before_operation = before
        train_tiny(config, path)

    return killed(work)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], list[str]]:
    """What a run leaves that was never killed, and its file operations."""
    path, operations = tmp_path_factory.mktemp("whole") / "run", list[str]()
    train_tiny(tiny_config(corpus, *SMALL), path.with_name("first"))  # fills the caches, which later runs find full
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "before_operation", operations.append)
        train_tiny(tiny_config(corpus, *SMALL), path)
    return outcome(path), operations


def check_kills(operations: range, corpus: Path, whole: tuple[dict[str, object], list[str]], folder: Path) -> None:
    """Kill before each of these operations and go on: the outcome is the same every time."""
    config = tiny_config(corpus, *SMALL)
    for operation in operations:
        path = folder / str(operation)
        assert train_and_kill_at(operation, config, path) == -signal.SIGKILL
        train_tiny(config, path)
        assert outcome(path) == whole[0], f"killed before operation {operation}, {whole[1][operation]}"


def test_the_operations_are_those_of_two_saves_and_a_release(whole: tuple[dict[str, object], list[str]]) -> None:
    operations = whole[1]
    assert len(operations) >= 50
    for folder in ("step-3", "step-5", "model"):
        assert f"rename {folder}" in operations


def test_killed_at_a_tenth_of_the_operations(
    corpus: Path, whole: tuple[dict[str, object], list[str]], tmp_path: Path
) -> None:
    check_kills(range(4, len(whole[1]), 10), corpus, whole, tmp_path)


@pytest.mark.slow
def test_killed_at_every_operation(corpus: Path, whole: tuple[dict[str, object], list[str]], tmp_path: Path) -> None:
    check_kills(range(len(whole[1])), corpus, whole, tmp_path)


@pytest.mark.slow
def test_killed_at_every_operation_of_a_save_that_replaces_another(corpus: Path, tmp_path: Path) -> None:
    """A run that was interrupted before a validation saves the same step again after it."""
    config = tiny_config(corpus, *SMALL)
    train_tiny(config, tmp_path / "whole")

    def interrupt_before_validation() -> None:
        import mtattn.train

        mtattn.train.validate = lambda *args, **kwargs: signal.raise_signal(signal.SIGTERM) or kwargs["check"]()
        train_tiny(config, path)

    operation, ended = 0, -signal.SIGKILL
    while ended == -signal.SIGKILL:
        path = tmp_path / str(operation)
        assert killed(interrupt_before_validation) == 143
        ended = train_and_kill_at(operation, config, path)
        train_tiny(config, path)
        assert outcome(path) == outcome(tmp_path / "whole"), f"killed before operation {operation}"
        operation += 1
    assert operation > 20


def test_a_second_signal_in_a_save_leaves_at_once_and_the_checkpoint_before_is_valid(
    corpus: Path, whole: tuple[dict[str, object], list[str]], tmp_path: Path
) -> None:
    config = tiny_config(corpus, *SMALL)

    def twice() -> None:
        def before(name: str) -> None:
            if name == "rename step-5":
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)

        storage.before_operation = before
        train_tiny(config, tmp_path / "run")

    assert killed(twice) == 130
    saved = RunDirectory(tmp_path / "run").newest(pytest.fail)
    assert saved is not None and saved.state["step"] == 3
    train_tiny(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == whole[0]


def kill_at_random(rounds: int, corpus: Path, folder: Path, seed: int) -> None:
    """Kill at random moments, again and again, until so many kills have been survived."""
    config = tiny_config(corpus, "train.max_epochs=6", "train.save_every=2", "train.valid_sentences=1")
    train_tiny(config, folder / "whole")
    expected = outcome(folder / "whole")
    draw, kills, run = random.Random(seed), 0, 0
    while kills < rounds:
        path, ended = folder / f"run-{run}", -signal.SIGPROF
        while ended != 0:
            delay = draw.uniform(0.05, 1.0)

            def work(delay: float = delay, path: Path = path) -> None:
                signal.signal(signal.SIGPROF, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_PROF, delay)  # of the child's own time: a busy machine changes nothing
                train_tiny(config, path)

            ended = killed(work)
            assert ended in (0, -signal.SIGPROF)
            kills += ended != 0
        assert outcome(path) == expected
        run += 1


def test_killed_at_random(corpus: Path, tmp_path: Path) -> None:
    kill_at_random(5, corpus, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, SOAKS + 1))
def test_soak_of_kills_at_random(corpus: Path, tmp_path: Path, seed: int) -> None:
    kill_at_random(SOAK_KILLS // SOAKS, corpus, tmp_path, seed)
