"""Every row of the table in cases.py, by one body."""

import re
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import CASES, Case
from tiny_run import tiny_config, train_tiny, write_corpus

from mtattn.cli import main
from mtattn.tokenizer import TokenizerConfig, train_tokenizer

ALWAYS = ("run/train.log", "run/.lock")  # written by every trainer, whatever comes of it


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that every case gets a copy of."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        corpus = write_corpus(Path("corpus"))
        config = tiny_config(corpus)
        Path("tiny.toml").write_text(config.to_toml())
        Path("in.txt").write_text("a b c\nd e f\n")
        train_tiny(config, Path("run"))
        lines = (corpus / "train.en").read_text().splitlines()
        other, _ = train_tokenizer(lines, lines, TokenizerConfig(vocab_size=275))
        Path("other.model").write_bytes(other.to_files()["tokenizer.model"])
        yield folder


def files(folder: Path) -> dict[str, bytes]:
    """Path -> content of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_is_large_and_its_names_are_unique() -> None:
    assert len(CASES) >= 70
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fault(
    case: Case,
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "case"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mtattn", *case.command.split()])
    limit, handlers = resource.getrlimit(resource.RLIMIT_FSIZE), [signal.getsignal(s) for s in (2, 15)]
    try:
        case.arrange(folder, monkeypatch)
        before = files(folder)
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = capfd.readouterr().err
    telling = [
        line for line in said.splitlines() if line.startswith(("error: ", "warning: ", "interrupted ", "Usage: "))
    ]
    assert (left.value.code or 0) == case.exit_code, said
    assert re.match(case.message, telling[0] if telling else ""), said
    assert bool(telling) == bool(case.message), said
    after = files(folder)
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    assert not {path for path in changed if not path.startswith((*case.changes, *ALWAYS))}
    assert [signal.getsignal(s) for s in (2, 15)] == handlers
