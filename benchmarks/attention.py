"""How fast is each way to compute attention, and how much memory does it take? Prints two tables and the bars.

    python benchmarks/attention.py                         # forward and backward, T = 64 ... 8192, about 7 minutes
    python benchmarks/attention.py --forward               # without gradients
    python benchmarks/attention.py --lengths 256,1024 --device cuda --dtype bfloat16

Every contender of a length runs in one process, in turns, so that all see the same machine; the least of the rounds
counts, since noise only adds. Memory is measured in a process of its own: on a CPU the growth of its peak resident
size, on a GPU the allocator's peak. B * H = 8 and E = 64; layers have D = 256.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from measuring import apart, growth, numbers, resident_mebibytes, take_json, write_json
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtattn.attention import Mask, MultiHeadAttention, attend, capture_weights, causal, sliding_window
from mtattn.attention.scores import ScaledDot

BATCH, HEADS, D_HEAD, WINDOW = 2, 4, 64, 256
SLOW = 5.0  # seconds: what takes longer needs no warming up, and is measured once when time is short
ROUNDS = 4  # at least: the least of fewer is mostly noise
SLOWEST = 3.0  # seconds: a contender that took longer is left out of longer inputs
Run = Callable[[], None]


def raw(backend: SDPBackend, is_causal: bool) -> Callable[..., Tensor]:
    """torch's own kernel, nothing around it."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)

    return call


def kernels() -> dict[str, Callable[..., Tensor]]:
    """Functions of q, k, v [B, H, T, E]; a fresh mask each, as in a new training step."""
    window = {impl: partial(windowed, impl=impl) for impl in ("auto", "chunked")}
    return {
        "reference": partial(attend, impl="reference"),
        "chunked": partial(attend, impl="chunked"),
        "sdpa": partial(attend, impl="sdpa"),
        "flex": partial(attend, impl="flex"),
        "auto": attend,
        "torch flash": raw(SDPBackend.FLASH_ATTENTION, False),
        "torch math": raw(SDPBackend.MATH, False),
        "auto causal": lambda q, k, v: attend(q, k, v, causal()),
        "flash causal": raw(SDPBackend.FLASH_ATTENTION, True),
        f"window {WINDOW}": window["auto"],
        f"window {WINDOW} chunked": window["chunked"],
    }


def windowed(q: Tensor, k: Tensor, v: Tensor, impl: str) -> Tensor:
    """Attention of each token to its WINDOW - 1 neighbours on either side."""
    return attend(q, k, v, sliding_window(WINDOW), impl=impl)


class Uncaptured(MultiHeadAttention):
    """The layer without the line that asks whether weights are to be captured."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Mask | None, bias: Tensor | None) -> Tensor:
        assert isinstance(self.score, ScaledDot)
        q, k, scale = self.score.as_dot_product(q, k)
        return attend(q, k, v, mask, bias, scale, self.softcap, self.dropout if self.training else 0.0, self.impl)


def layers() -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of x [B, T, D]."""
    d_model = HEADS * D_HEAD
    ours, uncaptured = (kind(d_model, HEADS) for kind in (MultiHeadAttention, Uncaptured))
    theirs = nn.MultiheadAttention(d_model, HEADS, bias=False, batch_first=True)

    def captured(x: Tensor) -> Tensor:
        with capture_weights(ours):
            attended: Tensor = ours(x)
        return attended

    return {
        "MultiHeadAttention": ours,
        "nn.MultiheadAttention": lambda x: theirs(x, x, x, need_weights=False)[0],
        "without the capture line": uncaptured,
        "capturing": captured,
    }


def prepared(name: str, length: int, args: argparse.Namespace) -> Run:
    """One call of a contender, with its backward pass unless `--forward`."""
    made = {"device": args.device, "dtype": getattr(torch, args.dtype), "requires_grad": not args.forward}
    if name in kernels():
        function = kernels()[name]
        # As a layer has them: [B, T, H, E] in memory, seen as [B, H, T, E].
        inputs = [torch.randn(BATCH, length, HEADS, D_HEAD, **made).transpose(1, 2) for _ in range(3)]
    else:
        function = layers()[name]
        batch = max(BATCH, 4096 // length)  # short inputs come in large batches
        inputs = [torch.randn(batch, length, HEADS * D_HEAD, **made)]
        for module in (function, *(cell.cell_contents for cell in getattr(function, "__closure__", None) or ())):
            if isinstance(module, nn.Module):
                module.to(device=args.device, dtype=made["dtype"])

    def run() -> None:
        output = function(*inputs)
        if output.requires_grad:
            torch.autograd.backward(output, output.detach())
        if args.device == "cuda":
            torch.cuda.synchronize()

    return run


def seconds(names: list[str], length: int, args: argparse.Namespace) -> dict[str, float]:
    """The least time of each contender, in turns until `--budget` is spent."""
    runs, best = {name: prepared(name, length, args) for name in names}, dict.fromkeys(names, math.inf)
    end, rounds = time.perf_counter() + args.budget, 0
    while rounds < ROUNDS or (time.perf_counter() < end and rounds < 200):
        for name in names:
            if SLOW < best[name] < math.inf and time.perf_counter() > end:
                continue  # once is enough for what takes seconds
            with torch.set_grad_enabled(not args.forward):
                start = time.perf_counter()
                runs[name]()
                took = time.perf_counter() - start
            if rounds or took > SLOW:  # the first round of quick ones only warms up
                best[name] = min(best[name], took)
        rounds += 1
    return best


def mebibytes(name: str, length: int, args: argparse.Namespace) -> float:
    """The peak of memory that one call adds to its inputs."""
    with torch.set_grad_enabled(not args.forward):
        prepared(name, 64, args)()  # pages in the code that a first call loads, which is no memory of attention
        run = prepared(name, length, args)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            run()
            return (torch.cuda.max_memory_allocated() - held) / 2**20
        before = resident_mebibytes()
        run()
        return resident_mebibytes() - before


def able(names: list[str], length: int, times: dict[str, dict[int, float]], args: argparse.Namespace) -> list[str]:
    """Those that can run this length at all, and were not too slow before."""
    out = {"flex"} if args.device == "cpu" and (not args.forward or length > 2048) else set()
    if args.device == "cuda" and args.dtype == "float32":
        out |= {"torch flash", "flash causal"}  # a GPU's kernel takes half precision alone
    return [n for n in names if n not in out and (not times[n] or max(times[n].values()) < SLOWEST)]


def table(title: str, rows: dict[str, dict[int, float]], lengths: list[int], unit: float) -> None:
    """Print one row for each contender, and how it grows: the exponent of T fitted to the last three lengths."""
    print(f"\n{title:28}" + "".join(f"{f'T={length}':>10}" for length in lengths) + f"{'growth':>10}")
    for name, row in rows.items():
        cells = "".join(f"{row[length] * unit:10.2f}" if length in row else f"{'-':>10}" for length in lengths)
        print(f"{name:28}{cells}{exponent(row):>10}", flush=True)


def exponent(row: dict[int, float]) -> str:
    """How a row grows with T, where it has three points."""
    points = [(length, y) for length, y in sorted(row.items()) if y > 0]
    return f"T^{growth(*zip(*points, strict=True)):.2f}" if len(points) >= 3 else ""


def bars(times: dict[str, dict[int, float]], memory: dict[str, dict[int, float]], lengths: list[int]) -> None:
    """Print the numbers that the project promises."""
    print()
    for ours, kernel in (("auto", ("torch flash", "torch math")), ("auto causal", ("flash causal",))):
        ratios = [
            f"{length}: {times[ours][length] / min(times[k][length] for k in kernel if length in times[k]):.3f}"
            for length in lengths
            if length >= 256 and length in times[ours] and any(length in times[k] for k in kernel)
        ]
        print(f"{ours} / best torch kernel (at most 1.05 from T = 256 on):  " + "  ".join(ratios))
    for name in ("chunked", "reference"):
        steps = [
            f"{b}: {memory[name][b] / memory[name][a]:.2f}"
            for a, b in itertools.pairwise(lengths)
            if b == 2 * a and b in memory[name] and memory[name][a] > 1
        ]
        print(f"{name}, memory for each doubling of T (chunked at most 2.2, reference 4):  " + "  ".join(steps))
    for name in (f"window {WINDOW}", f"window {WINDOW} chunked"):
        if common := times["auto"].keys() & times[name].keys():
            last = max(common)
            print(f"full attention / {name} at T = {last} (at least 5): {times['auto'][last] / times[name][last]:.1f}")
    for name in ("nn.MultiheadAttention", "without the capture line"):
        both = [t for t in lengths if t in times["MultiHeadAttention"] and t in times[name]]
        ratios = [f"{t}: {times['MultiHeadAttention'][t] / times[name][t]:.3f}" for t in both]
        print(f"MultiHeadAttention / {name} (at most 1.00):  " + "  ".join(ratios))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=numbers, default="64,128,256,512,1024,2048,4096,8192")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--forward", action="store_true", help="no gradients")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each length and table")
    take_json(parser)
    args = parser.parse_args()
    lengths = args.lengths
    tables = list(kernels()), list(layers())
    times: dict[str, dict[int, float]] = {name: {} for names in tables for name in names}
    memory: dict[str, dict[int, float]] = {name: {} for name in times}
    for length in lengths:
        for names in tables:
            present = able(names, length, times, args)
            for name, value in apart(seconds, present, length, args, device=args.device).items():
                times[name][length] = value
            for name in present:
                memory[name][length] = apart(mebibytes, name, length, args, device=args.device)
    what = "forward" if args.forward else "forward + backward"
    conditions = f"{what}, {args.dtype}, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    write_json(args, {"conditions": conditions, "seconds": times, "mebibytes": memory})
    print(conditions)
    for names, shape in zip(tables, (f"B = {BATCH}", f"B = max({BATCH}, 4096 / T)"), strict=True):
        table(f"ms ({shape})", {name: times[name] for name in names}, lengths, 1e3)
        table("MiB", {name: memory[name] for name in names}, lengths, 1.0)
    bars(times, memory, lengths)


if __name__ == "__main__":
    main()
