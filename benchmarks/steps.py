"""How fast is a training step, and where does its time go?

    python benchmarks/steps.py multi30k-en-de --set data.folder=PATH --set loss.rdrop=0
    python benchmarks/steps.py multi30k-en-de --set train.batch_tokens=32768 --device cuda --profile --json OUT

Takes the steps of `mtattn train` on the first batches of a config's corpus, prepared beforehand. Counted are target
tokens with EOS, without padding. `first` is the first step, which allocates and on a GPU records the gradient;
`second` records the update. The gradient of one batch and the update are timed by themselves too, where a step
consists of recordings. --profile lists kernels.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from measuring import take_json, write_json
from torch.profiler import ProfilerActivity, profile

from mtattn.batching import Position
from mtattn.checkpoint import RunDirectory
from mtattn.config import load_config
from mtattn.interrupts import Interrupts
from mtattn.memory import keep_freed_memory
from mtattn.progress import Reporter
from mtattn.settle import settle
from mtattn.train import Trainer

BATCHES = 8  # different ones, taken in turn
LISTED = 30  # kernels


def milliseconds(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Wall time of one of `repeats` calls."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return 1000 * (time.perf_counter() - started) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def kernels(work: Callable[[], Any], steps: int) -> list[tuple[float, float, str]]:
    """(milliseconds, launches, name) of each kernel in a step, the costliest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            work()
        torch.cuda.synchronize()
    rows = [(e.self_device_time_total / 1000 / steps, e.count / steps, e.key) for e in found.key_averages()]
    return sorted(rows, reverse=True)


def main() -> None:
    """Prepare, step, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="toy", help="a config's name or file")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="override a config value")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--profile", action="store_true", help="list the kernels of a step (on a GPU)")
    take_json(parser)
    options = parser.parse_args()
    keep_freed_memory()
    device, report = torch.device(options.device), Reporter()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        config, data = settle(load_config(options.config, options.set), run, report, device, fresh=False)
        trainer = Trainer(config, run, data, report, Interrupts(), device, False)
        numbers = range(min(BATCHES, len(trainer.batches.plan(0))))
        batches = cycle([trainer.batches.at(Position(0, number)) for number in numbers])
        learner, tokens = trainer.learner, 0

        def step() -> None:
            nonlocal tokens
            group = list(islice(batches, config.train.accumulate))
            if learner.step(group, 0, 0.1) is None:
                raise SystemExit("a gradient was not finite")
            tokens += sum(batch.num_tokens for batch in group)

        found: dict[str, Any] = {"parameters": sum(p.numel() for p in learner.model.parameters())}
        found["first_ms"], found["second_ms"] = (milliseconds(step, 1, device) for _ in range(2))
        tokens = 0
        found["step_ms"] = milliseconds(step, options.steps, device)
        found["tokens_per_step"] = tokens / options.steps
        found["tokens_per_second"] = 1000 * found["tokens_per_step"] / found["step_ms"]
        if device.type == "cuda":
            found["mebibytes"] = torch.cuda.max_memory_allocated() / 2**20
            if config.train.packing:
                gradient, update = learner.splitter.gradient.recorded, learner.update.recorded
                found["gradient_ms"] = milliseconds(gradient, options.steps, device)
                found["update_ms"] = milliseconds(update, options.steps, device)
            if options.profile:
                found["kernels"] = kernels(step, 3)[:LISTED]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    found |= {"device": where, "torch": torch.__version__, "batch_tokens": config.train.batch_tokens}
    train = config.train
    found |= {"accumulate": train.accumulate, "precision": train.precision, "packing": train.packing}
    write_json(options, found)
    for name, value in found.items():
        if name != "kernels":
            print(f"{name:18} {value:,.2f}" if isinstance(value, float) else f"{name:18} {value}")
    for spent, count, name in found.get("kernels", []):
        print(f"{spent:9.3f} ms {count:6.0f}x {name[:110]}")


if __name__ == "__main__":
    main()
