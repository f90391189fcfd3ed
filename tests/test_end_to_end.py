"""From text to scores by the program itself, on a slice of the bundled corpus, with real pipes and real signals."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mtattn.sources import bundled_data_folder

PROGRAM = [sys.executable, "-m", "mtattn"]
SMALL = {
    "tokenizer.vocab_size": "500",
    "model.preset": "tiny",
    "model.d_model": "32",
    "model.d_ff": "64",
    "train.batch_tokens": "512",
    "train.precision": "float32",
    "train.valid_sentences": "8",
    "train.threads": "1",
}
SETTINGS = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


class Folder:
    """A working folder with a.en, a.de (300 pairs of the toy corpus), test.en and test.de."""

    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self.environment = {**os.environ, "MTATTN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        toy = bundled_data_folder() / "toy"
        for name, source, lines in (("a", "train", 300), ("test", "test", 20)):
            for side in ("en", "de"):
                text = (toy / f"{source}.{side}").read_bytes().split(b"\n")[:lines]
                (path / f"{name}.{side}").write_bytes(b"\n".join(text) + b"\n")

    def run(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> tuple[bytes, str]:
        """stdout and stderr of the program, which must exit with this code."""
        done = subprocess.run(
            [*PROGRAM, *arguments], cwd=self.path, env=self.environment, input=stdin, capture_output=True, timeout=300
        )
        assert done.returncode == code, done.stderr.decode()
        return done.stdout, done.stderr.decode()

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """The program at work, its stderr in a pipe."""
        return subprocess.Popen(
            [*PROGRAM, *arguments], cwd=self.path, env=self.environment, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """A folder with a finished run, runs/a, trained without any config."""
    made = Folder(tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("cache"))
    files = ["--src-file", "a.en", "--tgt-file", "a.de"]
    out, err = made.run("train", *files, *SETTINGS, "--set", "train.max_epochs=2", "--set", "train.log_every=5")
    assert out == b""
    assert "no dev corpus is named: 30 of 300 pairs are held out" in err
    yield made


def test_train_leaves_a_run_directory(folder: Folder) -> None:
    run = folder.path / "runs" / "a"
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "best",
        "checkpoints",
        "config.toml",
        "last",
        "metrics.jsonl",
        "model",
        "tokenizer.model",
        "train.log",
    }
    assert {path.name for path in (run / "model").iterdir()} == {
        "MANIFEST.json",
        "README.md",
        "config.toml",
        "model.safetensors",
        "scores.json",
        "tokenizer.model",
    }
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in metrics} == {"train", "valid"}
    assert "released to runs/a/model" in (run / "train.log").read_text()


def test_translate_reads_standard_input_and_writes_standard_output(folder: Folder) -> None:
    out, _ = folder.run("translate", "runs/a", "--beam", "1", stdin=b"Tom sees the dog.\n\nShe sleeps.")
    lines = out.split(b"\n")
    assert len(lines) == 4 and lines[1] == lines[3] == b""
    out.decode("utf-8")


@pytest.mark.parametrize("typed", [False, True], ids=["--stream", "typed in a terminal"])
def test_who_waits_for_each_answer_gets_it(typed: bool, folder: Folder) -> None:
    ours, theirs = pty.openpty() if typed else os.pipe()[::-1]
    command = ["translate", "runs/a", "--beam", "1", *([] if typed else ["--stream"])]
    pipes = {"stdin": theirs, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*PROGRAM, *command], cwd=folder.path, env=folder.environment, **pipes) as process:
        os.close(theirs)
        answers = []
        for line in (b"Tom sees the dog.\n", b"\n", b"She sleeps.\n"):
            os.write(ours, line)
            answers.append(process.stdout.readline())  # with lines read ahead, this would wait for ever
        if typed:
            os.write(ours, b"\x04")  # Ctrl-D
        else:
            os.close(ours)
        assert process.wait(timeout=60) == 0
    together, _ = folder.run(*command, stdin=b"Tom sees the dog.\n\nShe sleeps.\n")
    assert b"".join(answers) == together


def test_eval_scores_a_pair_of_files(folder: Folder) -> None:
    out, _ = folder.run("eval", "runs/a/model", "--src-file", "test.en", "--ref-file", "test.de", "--json")
    scores = json.loads(out)
    assert scores["num_sentences"] == 20
    assert 0 <= scores["bleu"] <= 100 and 0 <= scores["chrf"] <= 100


@pytest.mark.parametrize("command", ["translate runs/a long.en --beam 1", "inspect runs/a long.en"])
def test_a_reader_that_leaves_early_is_no_error(command: str, folder: Folder) -> None:
    (folder.path / "long.en").write_bytes((folder.path / "a.en").read_bytes())
    line = f"{' '.join(PROGRAM)} {command} 2> said | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder.path, env=folder.environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split("\n")[1] == "0", (folder.path / "said").read_text()
    assert "error" not in (folder.path / "said").read_text().lower()
    assert "Traceback" not in (folder.path / "said").read_text()


@pytest.mark.parametrize("flags", ["", "--json"])
def test_what_the_doctor_found_counts_also_where_nobody_reads_it(flags: str, folder: Folder) -> None:
    for side, text in (("en", "word\n"), ("de", " \n")):
        (folder.path / f"blank.{side}").write_text(text * 50)
    files = "--src-file blank.en --tgt-file blank.de"
    line = f"{' '.join(PROGRAM)} doctor {files} {flags} 2> said | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder.path, env=folder.environment, capture_output=True, timeout=300
    )
    assert done.stdout == b"7\n", (folder.path / "said").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(number: int, code: int, folder: Folder) -> None:
    run = ["--run", f"runs/stopped-{code}"]
    command: Sequence[str] = ["train", "--src-file", "a.en", "--tgt-file", "a.de", *run, *SETTINGS]
    command = [*command, "--set", "train.max_epochs=1000"]
    process = folder.start(*command)
    wait_for(folder.path / run[1] / "metrics.jsonl", process)
    process.send_signal(number)
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == code, said
    assert "interrupted at step" in said
    step = (folder.path / run[1] / "last").read_text().strip()
    _, said = folder.run(*command[:-1], "train.max_epochs=1")
    assert f"resuming at step {step.removeprefix('step-')}" in said


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    """Until the file has something in it; the process must live on."""
    while not (path.is_file() and path.stat().st_size):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ["train", "toi"], "error: no config file or bundled config named 'toi'"),
        (3, ["translate", "nowhere"], "error: nowhere: no such folder"),
        (4, ["translate", "runs/a", "nowhere.txt"], "error: nowhere.txt: cannot be read"),
        (7, ["train", "--src-file", "no.en", "--tgt-file", "a.de"], "error: no.en: no such file"),
    ],
)
def test_exit_codes(code: int, arguments: list[str], message: str, folder: Folder) -> None:
    out, err = folder.run(*arguments, code=code)
    assert out == b""
    assert message in err
    assert "Traceback" not in err
