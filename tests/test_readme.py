"""The README's commands run, and what it names exists."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line[2:]
    for block in re.findall(r"```console\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("$ ")
]
SETTINGS = {  # an untrained model would write up to the length limit
    "train.max_steps": 2,
    "train.batch_tokens": 512,
    "train.valid_sentences": 5,
    "train.precision": "float32",
    "tokenizer.vocab_size": 800,
    "tokenizer.max_sentences": 2000,
    "decode.beam_size": 1,
    "decode.max_len_ratio": 0.2,
    "decode.max_len_extra": 2,
}
SHORT = "".join(f" --set {key}={value}" for key, value in SETTINGS.items())
PROOFS = re.findall(r"\| `((?:pytest|python) [^`]+)` \|\n", README)


def test_commands_run_in_order(tmp_path: Path) -> None:
    toy = ROOT / "data" / "toy"
    for language in ("en", "de"):
        lines = (toy / f"train.{language}").read_text(encoding="utf-8").splitlines(keepends=True)[:600]
        (tmp_path / f"train.{language}").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "news.en").write_text("It is snowing today.\n\nWhere is the umbrella?\n", encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in COMMANDS:
        if command.startswith("make "):
            continue
        command = command.replace("mtattn train", "mtattn train" + SHORT) if "mtattn train" in command else command
        done = subprocess.run(
            ["bash", "-c", command.replace("mtattn ", f"{sys.executable} -m mtattn ")],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "MTATTN_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "news.de").read_text(encoding="utf-8").count("\n") == 3


@pytest.mark.parametrize("command", [command for command in PROOFS if command.startswith("pytest ")])
def test_every_promise_names_tests_that_exist(command: str) -> None:
    words = shlex.split(command)
    keywords = words[words.index("-k") + 1] if "-k" in words else ""
    for path in (word for word in words if word.startswith("tests/")):
        tests = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(encoding="utf-8"), re.M)
        assert tests
        for keyword in filter(None, keywords.split(" or ")):
            assert any(keyword in test for test in tests), f"no test in {path} has {keyword!r} in its name"


def test_the_promises_are_found() -> None:
    assert len(PROOFS) >= 10


@pytest.mark.parametrize("command", [command for command in PROOFS if command.startswith("python ")])
def test_every_promise_names_a_benchmark_that_takes_these_arguments(command: str) -> None:
    words = shlex.split(command.replace("python ", f"{sys.executable} ", 1))
    done = subprocess.run([*words, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"    {command.split(' runs/')[0]}" in done.stdout, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:mtattn|configs|data)/[\w/.-]*)`", README))))
def test_files_that_the_readme_names_exist(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
