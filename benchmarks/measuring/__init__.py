"""What several benchmarks do alike: a process for each measurement, peak memory, growth, spread, a file of results."""

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def apart(function: Callable[..., T], *arguments: object, device: str) -> T:
    """function(*arguments) in a new process. A fork is safe and quick on a CPU, if this process never computes."""
    with multiprocessing.get_context("fork" if device == "cpu" else "spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def resident_mebibytes() -> float:
    """The most memory that this process has held."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def growth(x: Sequence[float], cost: Sequence[float]) -> float:
    """The slope of log(cost) over log(x), by least squares on the last three points."""
    a, b = ([math.log(value) for value in column[-3:]] for column in (x, cost))
    return statistics.linear_regression(a, b).slope if len({*a}) > 1 else math.nan


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median [lowest, highest]."""
    return f"{statistics.median(values):.2f}{unit} [{min(values):.2f}, {max(values):.2f}]"


def numbers(text: str) -> list[int]:
    """Of "1,2,3": [1, 2, 3], as the type of an argument."""
    return [*map(int, text.split(","))]


def lines_of(path: Path) -> list[str]:
    """A text file's lines, which end at a line feed alone."""
    return path.read_bytes().decode().removesuffix("\n").split("\n")


def take_json(parser: argparse.ArgumentParser) -> None:
    """Add the option that `write_json` obeys."""
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results there too, as JSON")


def write_json(options: argparse.Namespace, found: Any) -> None:
    """Write what was found to the file that --json names, if it does."""
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
