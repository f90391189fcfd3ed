"""Does memory grow with the amount of text? And how fast is a corpus prepared?

    python benchmarks/memory.py translate [--sizes 10000,100000,1000000] [--json OUT]
    python benchmarks/memory.py prepare [--sizes 30000,300000,3000000] [--json OUT]

`translate` sends so many lines through all of `mtattn translate` but the search: a file is read, split, encoded,
decoded and written; the hypothesis is the source itself. `prepare` does what `mtattn train` does before its first step,
on so many pairs: the toy corpus over and over, with the filter of duplicates off, so that none is dropped; first with
the tokenizer to train, then once more as a second run finds it, with the cache that the first left.

Each size is a process of its own; `--sizes` in lines or pairs. Memory is the largest resident set (VmHWM), and what
that was before the work began. `pairs/min` is of the encoding alone, into the Arrow file.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from measuring import numbers, take_json, write_json

TOY = Path(__file__).parent.parent / "data" / "toy"
PHASES = ("reading the corpus", "training the tokenizer", "encoding")  # as mtattn.prepare names them
SIZES = {"translate": (10_000, 100_000, 1_000_000), "prepare": (30_000, 300_000, 3_000_000)}


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def repeated(split: str, size: int) -> Iterator[bytes]:
    """So many lines, those of a file over and over."""
    lines = (TOY / split).read_bytes().splitlines(keepends=True)
    return islice(cycle(lines), size)


def translate(size: int, folder: Path) -> dict[str, float]:
    """Send so many lines through everything but the search."""
    import torch

    from mtattn.decode import DecodeConfig
    from mtattn.history import Hypothesis
    from mtattn.model import ModelConfig, Transformer
    from mtattn.processors import Processor
    from mtattn.progress import Reporter
    from mtattn.render import as_text
    from mtattn.textio import open_lines, open_output
    from mtattn.tokenizer import TokenizerConfig, train_tokenizer
    from mtattn.translate import Part, Segment, Translator

    class Echo(Translator):
        """Finds the source."""

        def search(self, parts: Sequence[Part], processors: Sequence[Processor] = ()) -> list[Segment]:
            found = [part.src_ids[:-1] for part in parts]
            return [
                Segment(part.src_ids, [Hypothesis(ids, 0.0, 0.0, [0.0] * len(ids), True)], [self.tokenizer.decode(ids)])
                for part, ids in zip(parts, found, strict=True)
            ]

    texts = [line.decode().rstrip("\n") for line in repeated("train.en", 8_000)]
    tokenizer, _ = train_tokenizer(texts, texts, TokenizerConfig(vocab_size=1000))
    smallest = ModelConfig(d_model=8, d_ff=8, num_heads=1, encoder_layers=1, decoder_layers=1)
    model = Transformer(smallest, tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    torch.set_num_threads(1)
    source, target = folder / "source", folder / "target"
    with source.open("wb") as file:
        file.writelines(repeated("train.en", size))
    before, started, report = peak_bytes(), time.perf_counter(), Reporter()
    with (
        open_lines(source, report) as lines,
        open_output(target, source) as write,
        report.bar("translating", None) as bar,
    ):
        for translation in Echo(model, tokenizer, DecodeConfig(beam_size=1)).translate(lines, bar.advance):
            write(as_text(translation))
    seconds = time.perf_counter() - started
    with target.open("rb") as written:
        assert sum(1 for _ in written) == size
    return {"before": before, "peak": peak_bytes(), "lines_per_second": size / seconds}


def prepare(size: int, folder: Path) -> dict[str, float]:
    """Prepare training on so many pairs; in a folder that was prepared before, what a second run does."""
    from mtattn.checkpoint import RunDirectory
    from mtattn.config import load_config
    from mtattn.prepare import prepare
    from mtattn.progress import Bar, Reporter
    from mtattn.threads import use_threads
    from mtattn.tokenizer import Tokenizer

    phases = dict.fromkeys(PHASES, 0.0)

    class Timed(Reporter):
        """Also takes the time of each phase."""

        @contextmanager
        def bar(self, name: str, total: float | None) -> Iterator[Bar]:
            started = time.perf_counter()
            with super().bar(name, total) as bar:
                yield bar
            phases[name] += time.perf_counter() - started

    use_threads(2)
    for side in ("en", "de"):
        path = folder / f"train.{side}"
        if not path.exists():
            with path.open("wb") as file:
                file.writelines(repeated(path.name, size))
    data = {"folder": str(folder), "train": "train.{en,de}", "dev": [str(TOY / "dev.{en,de}")]}
    overrides = [f"data.{key}={json.dumps(value)}" for key, value in data.items()]
    config = load_config(None, [*overrides, "filter.duplicate=false", "tokenizer.vocab_size=2000"])
    os.environ["MTATTN_CACHE"] = str(folder / "cache")
    run = RunDirectory(folder / "run")
    before, started = peak_bytes(), time.perf_counter()
    prepared = prepare(config, Tokenizer.load(run.path) if run.started else None, Timed())
    seconds = time.perf_counter() - started
    kept = len(prepared.examples.tgt)
    run.path.mkdir(exist_ok=True)
    run.begin(config, prepared.tokenizer)
    return {"before": before, "peak": peak_bytes(), "seconds": seconds, "pairs": kept, **phases}


WORK = {"translate": translate, "prepare": prepare}


def in_a_process_of_its_own(what: str, size: int, folder: str) -> dict[str, float]:
    """What one of the functions above returns."""
    command = [sys.executable, __file__, what, "--sizes", str(size), "--work-in", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(what: str, size: int) -> dict[str, Any]:
    """One size: work in a temporary folder, which is removed."""
    with tempfile.TemporaryDirectory() as folder:
        first = in_a_process_of_its_own(what, size, folder)
        if what == "translate":
            return {"size": size, **first}
        second = in_a_process_of_its_own(what, size, folder)
        return {"size": size, **first, "second_run_seconds": second["seconds"], "second_run_peak": second["peak"]}


def report(what: str, found: list[dict[str, Any]]) -> None:
    """Print the table."""
    encoded = "encoding" in found[0]
    head = ["size", "MB before", "MB at most"]
    head += ["read", "tokenizer", "encode", "pairs/min", "second run: s", "MB"] if encoded else ["lines/s"]
    print(" ".join(f"{name:>13}" for name in head))
    for row in found:
        cells = [f"{row['size']:,}", f"{row['before'] / 1e6:.0f}", f"{row['peak'] / 1e6:.0f}"]
        if encoded:
            cells += [f"{row[phase]:.1f} s" for phase in PHASES]
            cells += [f"{60 * row['size'] / row['encoding']:,.0f}"]
            cells += [f"{row['second_run_seconds']:.1f}", f"{row['second_run_peak'] / 1e6:.0f}"]
        else:
            cells += [f"{row['lines_per_second']:,.0f}"]
        print(" ".join(f"{cell:>13}" for cell in cells))


def main() -> None:
    """Parse, measure each size, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WORK)
    parser.add_argument("--sizes", type=numbers, help="lines or pairs, with commas between")
    take_json(parser)
    parser.add_argument("--work-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.sizes or SIZES[options.what]
    if options.work_in:
        print(json.dumps(WORK[options.what](sizes[0], options.work_in)))
        return
    found = [measure(options.what, size) for size in sizes]
    report(options.what, found)
    write_json(options, found)


if __name__ == "__main__":
    main()
