"""How long does one line take from a cold start, beside importing torch alone?

    python benchmarks/startup.py RUN [--rounds 10] [--text TEXT] [--json OUT]

Each round starts `python -c 'import torch'` and `mtattn translate RUN` on one line, in turns, as fresh processes, so
that a slow minute of the machine meets both. One round before is not counted: it fills the system's file cache. A ratio
compares one round with itself; it is given as median [lowest, highest].
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from measuring import spread, take_json, write_json


def seconds(arguments: list[str], text: str = "") -> float:
    """Wall time of a process of this Python."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], input=text, text=True, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory or released model")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--text", default="A man rides a bicycle.", help="the line")
    take_json(parser)
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds + 1):
        torch = seconds(["-c", "import torch"])
        ours = seconds(["-m", "mtattn", "translate", str(options.run)], options.text + "\n")
        rounds.append((torch, ours))
    torch_seconds, our_seconds = map(list, zip(*rounds[1:], strict=True))
    ratios = [ours / torch for torch, ours in rounds[1:]]
    print(f"import torch            {spread(torch_seconds)} s")
    print(f"mtattn translate RUN    {spread(our_seconds)} s")
    print(f"ratio                   {spread(ratios)}, {options.rounds} rounds")
    write_json(options, {"import_torch": torch_seconds, "translate": our_seconds, "ratios": ratios})


if __name__ == "__main__":
    main()
