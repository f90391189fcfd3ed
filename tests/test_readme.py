"""The README's commands run, and what it names exists."""

import os
import re
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
SHORT = " --set train.max_steps=3 --set train.valid_sentences=20 --set tokenizer.vocab_size=800"


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
