"""How does the cost of training grow with model size, vocabulary and sentence length?

    python benchmarks/growth.py                  # about 6 minutes on two CPU cores; writes docs/growth.svg
    python benchmarks/growth.py --axis length --device cuda --plot growth.svg

Each point is a process of its own that takes the real training step (model, chunked loss, clipping, Muon and AdamW,
weight averaging) on random batches without padding: a few steps after one to warm up; the fastest counts, since noise
only adds. Memory is the process's peak resident size less what it held before the model was built, on a GPU the
allocator's peak: weights, gradients, optimiser state, averaged weights and activations. Growth is the slope of
log(cost) over log(size) on the last three points: 1 is proportional.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import apart, growth, resident_mebibytes, take_json, write_json

import mtattn
from mtattn.batch import Batch
from mtattn.loss import LossConfig
from mtattn.memory import keep_freed_memory
from mtattn.model import ModelConfig, Transformer
from mtattn.objective import batch_loss
from mtattn.optim import OptimConfig, make_optimizers
from mtattn.precision import WorkingModel
from mtattn.threads import use_threads
from mtattn.update import Update

BATCH_TOKENS = 4096  # target tokens a batch, and as many source tokens
ENOUGH = 4.0  # seconds of measured steps
PLOT = Path(__file__).parent.parent / "docs" / "growth.svg"


@dataclass(frozen=True)
class Point:
    """One measurement: the base, with one thing changed."""

    d_model: int = 256
    num_heads: int = 4
    layers: int = 3  # of the encoder, and as many of the decoder; d_ff is 4 * d_model
    vocab_size: int = 8000
    length: int = 32  # tokens of each source and target

    def model(self) -> ModelConfig:
        """The default model in these sizes."""
        return ModelConfig(
            d_model=self.d_model,
            d_ff=4 * self.d_model,
            num_heads=self.num_heads,
            encoder_layers=self.layers,
            decoder_layers=self.layers,
        )


BASE = Point()
SIZES = [(128, 4, 2), (256, 4, 3), (384, 6, 4), (512, 8, 6), (768, 12, 6)]  # 2 to 105 M parameters
AXES: dict[str, list[Point]] = {
    "size": [replace(BASE, d_model=d, num_heads=h, layers=n) for d, h, n in SIZES],
    "vocabulary": [replace(BASE, vocab_size=v) for v in (2_000, 4_000, 8_000, 16_000, 32_000)],
    "length": [replace(BASE, length=t) for t in (16, 32, 64, 128, 256, 512)],
}
LABELS = {"size": "parameters", "vocabulary": "pieces", "length": "tokens a sentence"}


def training_step(point: Point, device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], None], int]:
    """One update on a batch that stays the same, as in `Learner.step`; and the number of parameters."""
    torch.manual_seed(1)
    model = Transformer(point.model(), point.vocab_size, point.vocab_size).to(device)
    average = Transformer(point.model(), point.vocab_size, point.vocab_size).to(device)
    optim = OptimConfig()
    working = WorkingModel(model, dtype)
    update = Update(working, make_optimizers(model, optim), average, optim.clip_norm)
    ids = torch.randint(4, point.vocab_size, (3, BATCH_TOKENS // point.length, point.length), device=device)
    batch = Batch(ids[0], ids[1], ids[2], ids[2].numel(), np.zeros(0, dtype=np.int64))

    def step() -> None:
        loss = batch_loss(working.model.train(), batch, LossConfig())
        torch.autograd.backward(loss / batch.num_tokens)
        working.pull_gradients()
        update(update.norm(), 0.1)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, sum(parameter.numel() for parameter in model.parameters())


def measure(point: Point, device_name: str, precision: str, threads: int) -> dict[str, float]:
    """Parameters, target tokens a second and MiB of one point; called in a process of its own."""
    use_threads(threads)
    keep_freed_memory()
    device = torch.device(device_name)
    before = resident_mebibytes()
    step, parameters = training_step(point, device, getattr(torch, precision))
    step()  # allocates
    step()  # on a GPU records the update
    seconds: list[float] = []
    while sum(seconds) < ENOUGH and len(seconds) < 50:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    tokens = BATCH_TOKENS // point.length * point.length
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident_mebibytes() - before
    return {"parameters": parameters, "tokens_per_second": tokens / min(seconds), "mebibytes": memory}


def along(axis: str, point: Point, measured: dict[str, float]) -> float:
    """Where a point stands on its axis."""
    return {"size": measured["parameters"], "vocabulary": point.vocab_size, "length": point.length}[axis]


def print_table(axis: str, rows: list[dict[str, Any]]) -> None:
    """One axis in Markdown, with how fast its costs grow."""
    print(f"\n| {LABELS[axis]} | shape | parameters | target tokens/s | memory |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        shape = f"{row['d_model']}/{4 * row['d_model']}, {row['num_heads']} heads, {row['layers']}+{row['layers']}"
        print(
            f"| {row['x']:,.0f} | {shape} | {row['parameters'] / 1e6:.1f} M "
            f"| {row['tokens_per_second']:,.0f} | {row['mebibytes']:,.0f} MiB |"
        )
    x = [row["x"] for row in rows]
    time_growth = growth(x, [1 / row["tokens_per_second"] for row in rows])
    memory_growth = growth(x, [row["mebibytes"] for row in rows])
    print(f"\nGrowth: time a token {axis}^{time_growth:.2f}, memory {axis}^{memory_growth:.2f}.", flush=True)


def draw(tables: dict[str, list[dict[str, Any]]], path: Path, title: str) -> None:
    """Speed above memory, one column for each axis, all logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(3.6 * len(tables), 5.2), layout="constrained")
    panels = figure.subplots(2, len(tables), squeeze=False, sharex="col", sharey="row")
    for column, (axis, rows) in enumerate(tables.items()):
        x = [row["x"] for row in rows]
        for panel, key, label in (
            (panels[0][column], "tokens_per_second", "target tokens/s"),
            (panels[1][column], "mebibytes", "MiB"),
        ):
            panel.loglog(x, [row[key] for row in rows], marker="o")
            panel.grid(True, which="both", alpha=0.25)
            panel.set_xticks(x, [f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value:,.0f}" for value in x])
            panel.tick_params(axis="x", labelsize=8)
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:,.0f}")
            panel.minorticks_off()
            if not column:
                panel.set_ylabel(label)
        panels[1][column].set_xlabel(LABELS[axis])
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=tuple(AXES), action="append", help="repeatable; default: all")
    parser.add_argument("--points", type=int, default=0, help="only the first so many of each axis")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: float32; on a GPU bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plot", type=Path, default=PLOT, help="file to draw into (needs matplotlib)")
    parser.add_argument("--no-plot", action="store_true")
    take_json(parser)
    options = parser.parse_args()
    options.precision = options.precision or ("bfloat16" if options.device == "cuda" else "float32")
    where = "one GPU" if options.device == "cuda" else f"{options.threads} CPU threads"
    title = f"mtattn {mtattn.__version__}, torch {torch.__version__}, {where}, {options.precision}"
    tables: dict[str, list[dict[str, Any]]] = {}
    known: dict[Point, dict[str, float]] = {}  # the base stands on every axis
    for axis in options.axis or AXES:
        tables[axis] = []
        for point in AXES[axis][: options.points or None]:
            if point not in known:
                known[point] = apart(
                    measure, point, options.device, options.precision, options.threads, device=options.device
                )
                print(f"{axis} {point}: {known[point]}", file=sys.stderr, flush=True)
            measured = known[point]
            tables[axis].append({"x": along(axis, point, measured), **vars(point), **measured})
        print_table(axis, tables[axis])
    print(f"\n{title}; batches of {BATCH_TOKENS:,} target tokens; base: {BASE}")
    write_json(options, {"conditions": title, "batch_tokens": BATCH_TOKENS, "axes": tables})
    if not options.no_plot:
        try:
            draw(tables, options.plot, title)
        except ImportError:
            sys.exit("no plot: matplotlib is missing (pip install 'mtattn[plot]')")


if __name__ == "__main__":
    main()
