"""Who takes part, each as a process that lives as long as the comparison and computes only when asked."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.environments import JOEYNMT, TRANSFORMERS, NotInstallableError, python_of

import mtattn

PEERS = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A row of the table. script: its file here. environment: a key of ENVIRONMENTS; "": the running one."""

    script: str
    variant: str
    environment: str = ""


OURS = "mtattn"
CONTENDERS = {
    OURS: Entry("ours.py", ""),
    "mtattn, AdamW alone": Entry("ours.py", "adamw"),
    "torch.nn.Transformer": Entry("plain.py", "float32"),
    "torch.nn.Transformer bf16": Entry("plain.py", "bfloat16"),
    "MarianMT": Entry("marian.py", "float32", TRANSFORMERS),
    "MarianMT bf16": Entry("marian.py", "bfloat16", TRANSFORMERS),
    "JoeyNMT": Entry("joey.py", "float32", JOEYNMT),
}
ON_CPU = [name for name in CONTENDERS if name != "torch.nn.Transformer bf16"]
DEFAULT_TO_BLEU = [OURS, "MarianMT"]  # the others only cost more of the reader's time


@dataclass
class Contender:
    """A living contender, and what it has done."""

    process: subprocess.Popen[str]
    parameters: int = 0
    turns: list[dict[str, float]] = field(default_factory=list)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Let it compute, and wait for its answer.

        Raises:
            RuntimeError: it died.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with exit code {self.process.wait()}")
        return dict(json.loads(line))

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return sum(turn["seconds"] for turn in self.turns)

    @property
    def speed(self) -> float:
        """Target tokens a second, the median turn."""
        return statistics.median(turn["tokens"] / turn["seconds"] for turn in self.turns)


def begin(names: Sequence[str], job: dict[str, Any], folder: Path, cache: Path) -> dict[str, Contender]:
    """Start every contender that can be had, one after the other.

    Args:
        job: a Job as a dict; each gets its own variant. folder: for job files and logs. cache: of the environments.
    """
    contenders = {}
    for name in names:
        peer = CONTENDERS[name]
        try:
            python = python_of(peer.environment, cache) if peer.environment else Path(sys.executable)
        except NotInstallableError as error:
            say(f"{name} is left out: {error}")
            continue
        file = folder / f"{len(contenders)}.json"
        file.write_text(json.dumps({**job, "variant": peer.variant}), encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1"}
        if not peer.environment:
            environment["PYTHONPATH"] = str(Path(mtattn.__file__).parent.parent)
        log = (folder / f"{file.stem}.log").open("w")
        process = subprocess.Popen(
            [str(python), str(PEERS / peer.script), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        contender = Contender(process)
        try:
            contender.parameters = contender.answer()["parameters"]
        except RuntimeError as error:
            say(f"{name} is left out: {error}\n{Path(log.name).read_text()[-2000:]}")
            continue
        contenders[name] = contender
        say(f"{name}: {contender.parameters:,} parameters")
    return contenders


def say(text: str) -> None:
    """Progress, which is no result."""
    print(text, file=sys.stderr, flush=True)
