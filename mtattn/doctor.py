"""`mtattn doctor`: is this machine ready to train, and is the corpus worth training on?"""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import mtattn
from mtattn.config import Config
from mtattn.corpus_checks import Finding, run_checks
from mtattn.corpus_facts import CorpusFacts, SplitFacts, gather
from mtattn.errors import CorpusError
from mtattn.progress import Reporter

PACKAGES = ("torch", "sentencepiece", "datasets", "sacrebleu")
COMPILERS = ("c++", "g++", "clang++", "cl")
STYLES = {"fatal": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Args:
        environment: name -> value, for a person to read.
        splits: name -> counts and lengths of each split; empty when no corpus was given.
        findings: the worst first.
    """

    environment: dict[str, str]
    splits: dict[str, dict[str, Any]]
    findings: list[Finding]

    @property
    def num_fatal(self) -> int:
        """Findings that make training useless."""
        return sum(finding.level == "fatal" for finding in self.findings)

    def require_sound(self) -> None:
        """Do nothing unless there is a fatal finding.

        Raises:
            CorpusError: there is one.
        """
        fatal = [finding for finding in self.findings if finding.level == "fatal"]
        if fatal:
            more = f" ({len(fatal) - 1} more fatal findings)" if len(fatal) > 1 else ""
            raise CorpusError(f"{fatal[0].split}: {fatal[0].what}; {fatal[0].fix}{more}")


def diagnose(config: Config | None, report: Reporter) -> Diagnosis:
    """Look at the machine, and at the corpora that a config names, if any.

    Raises:
        ConfigError: the config names no training corpus, or one whose format cannot be told.
    """
    if config is None:
        return Diagnosis(environment(), {}, [])
    with report.bar("pairs examined", None) as bar:
        facts = gather(config, lambda split, count: bar.advance(count, f"of {split}"))
    return Diagnosis(environment(), describe(facts), run_checks(facts))


def environment() -> dict[str, str]:
    """Versions, devices, the number format that pays, and whether torch.compile finds what it needs."""
    import torch

    from mtattn.precision import choose_precision

    found = {"mtattn": mtattn.__version__, "python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES}
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["CPUs"] = f"{_usable_cpus()}, {torch.get_num_threads()} threads in torch"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    found["GPUs"] = ", ".join(names) or "none"
    found["precision"] = "{} ({})".format(*choose_precision(device))
    found["compiler"] = _compiler() or "none: torch.compile and FlexAttention on the CPU need a C++ compiler"
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing: install it with pip"


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or COMPILERS[0], *COMPILERS))), None)


def describe(facts: CorpusFacts) -> dict[str, dict[str, Any]]:
    """Name of each split -> its pairs, and lengths in characters and words on both sides."""
    return {name: _describe_split(facts.splits[name]) for name in ("train", "dev", "test") if name in facts.splits}


def _describe_split(split: SplitFacts) -> dict[str, Any]:
    described: dict[str, Any] = {"pairs": len(split)}
    for side, name in enumerate(("src", "tgt")):
        chars = np.asarray(split.chars[side])
        lens = np.array(sorted(split.words[side]), dtype=np.int64)
        words = np.repeat(lens, [split.words[side][n] for n in lens.tolist()])
        described[f"{name}_chars"], described[f"{name}_words"] = _lengths(chars), _lengths(words)
    return described


def _lengths(values: Any) -> dict[str, Any]:
    if not len(values):
        return {"mean": 0.0, "p95": 0, "max": 0}
    return {
        "mean": round(float(values.mean()), 1),
        "p95": int(np.percentile(values, 95)),
        "max": int(values.max()),
    }


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """One object: environment, splits, findings, num_fatal."""
    return {**asdict(diagnosis), "num_fatal": diagnosis.num_fatal}


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Write the report for a person."""
    for name, value in diagnosis.environment.items():
        console.print(f"{name:14} {value}", markup=False, soft_wrap=True)
    if not diagnosis.splits:
        console.print("\nNo corpus was named: give a config, or --src-file and --tgt-file.")
        return
    console.print()
    console.print(_table(diagnosis.splits))
    for finding in diagnosis.findings:
        _show_finding(finding, console)
    counts = {level: sum(finding.level == level for finding in diagnosis.findings) for level in STYLES}
    console.print(
        f"findings: {counts['fatal']} fatal, {counts['warning']} warning, {counts['note']} note", markup=False
    )


def _table(splits: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="lengths: mean / 95th percentile / maximum", title_justify="left")
    for column in ("split", "pairs", "side", "words", "characters"):
        table.add_column(column, justify="left" if column in ("split", "side") else "right")
    for name, split in splits.items():
        for side, label in (("src", "source"), ("tgt", "target")):
            lengths = [split[f"{side}_{unit}"] for unit in ("words", "chars")]
            cells = [f"{length['mean']:.1f} / {length['p95']:,} / {length['max']:,}" for length in lengths]
            first = (name, f"{split['pairs']:,}") if side == "src" else ("", "")
            table.add_row(*first, label, *cells)
    return table


def _show_finding(finding: Finding, console: Console) -> None:
    console.print(f"{finding.level}: {finding.split}, {finding.check}", style=STYLES[finding.level], markup=False)
    parts: Sequence[tuple[str, str]] = (
        ("", finding.what),
        ("where: ", ", ".join(finding.where)),
        ("why: ", finding.why),
        ("fix: ", finding.fix),
    )
    for label, text in parts:
        if text:
            console.print(f"  {label}{text}", markup=False, soft_wrap=True)
    console.print()
