"""Signals while data is prepared, where minutes may pass inside a library's C++."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30,000 pairs of random words, whose subword model takes seconds to train."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for side in ("en", "de"):
        lines = (" ".join("".join(draw.choices(letters, k=8)) for _ in range(6)) for _ in range(30_000))
        (folder / f"a.{side}").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_while_the_tokenizer_is_trained(number: signal.Signals, code: int, corpus: Path) -> None:
    command = [sys.executable, "-m", "mtattn", "train", "--src-file", "a.en", "--tgt-file", "a.de", "--run", "run"]
    with subprocess.Popen(command, cwd=corpus, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        for line in program.stderr:
            if re.match("no dev corpus is named", line):
                break
        else:
            pytest.fail("it never began to train the tokenizer")
        time.sleep(1)  # now the lines have been read, and SentencePiece is at work in C++
        program.send_signal(number)
        said = program.communicate(timeout=10)[0]
    assert program.returncode == code
    assert not said
    assert not (corpus / "run" / "config.toml").exists()  # nothing has begun
