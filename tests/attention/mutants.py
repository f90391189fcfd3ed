"""Do the tests notice? Break one line of the attention package at a time and run them; at least 90 % must fail.

    python tests/attention/mutants.py               # all; a few minutes on two cores
    python tests/attention/mutants.py softmax       # those whose file or line contains the word

Each mutant is a file of mtattn/attention, a piece of text that stands there once, what to put in its place, and the
test files that should notice. It is made in a copy; the working tree is never touched. test_mutants.py holds that
each still applies.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent.parent / "mtattn" / "attention"
REQUIRED = 0.9
SECONDS = 300  # a mutant that runs longer loops for ever, which a test run notices


class Mutant(NamedTuple):
    """One broken line."""

    file: str
    old: str
    new: str
    tests: str  # the part of the test files' names between test_ and .py, separated by spaces


MUTANTS = [
    # the formula
    Mutant("reference.py", "return scores.softmax(-1)", "return scores.softmax(-2)", "functional"),
    Mutant("reference.py", "q if scale == 1.0 else q * scale", "q", "functional"),
    Mutant("reference.py", "q if scale == 1.0 else q * scale", "q / scale", "functional"),
    Mutant("reference.py", "softcap * torch.tanh(scores / softcap)", "torch.tanh(scores / softcap)", "functional"),
    Mutant("reference.py", "scores = scores + bias", "scores = scores - bias", "functional"),
    Mutant("reference.py", "output.masked_fill(mask.dead, 0.0)", "output", "functional"),
    Mutant("reference.py", "weights = F.dropout(weights, dropout)", "weights = weights * (1 - dropout)", "functional"),
    Mutant("functional.py", "1.0 / math.sqrt(q.shape[-1]) if scale is None else scale\n    return IMPLS",
           "1.0 / q.shape[-1] if scale is None else scale\n    return IMPLS", "functional"),
    Mutant("functional.py", "weights if dense is None or dense.dead is None", "weights if True", "functional"),
    Mutant("textbook.py", "math.sqrt(self.d_k)", "self.d_k", "textbook"),
    Mutant("textbook.py", "scores.softmax(dim=-1) if mask", "scores.softmax(dim=0) if mask", "textbook"),
    Mutant("textbook.py", "softmax(dim=-1).masked_fill(hidden, 0.0)", "softmax(dim=-1)", "textbook"),
    # fast paths
    Mutant("sdpa.py", "bias is None and isinstance(mask, Causal)", "isinstance(mask, Causal)", "functional"),
    Mutant("sdpa.py", "additive if bias is None else bias + additive", "additive", "functional"),
    Mutant("sdpa.py", "output.masked_fill(dense.dead, 0.0)", "output", "functional"),
    Mutant("sdpa.py", "scale=scale, ", "", "functional"),
    Mutant("chunked.py", "context.mul_(rescale)", "context", "functional"),
    Mutant("chunked.py", "sums.mul_(rescale)", "sums", "functional"),
    Mutant("chunked.py", "min(num_keys, stop + high)", "min(num_keys, stop + high - 1)", "functional"),
    Mutant("chunked.py", "max(0, start + low)", "max(0, start + low + 1)", "functional"),
    Mutant("chunked.py", "torch.where(alive, largest + sums.log(), math.inf)", "largest + sums.log()", "functional"),
    Mutant("chunked.py", "largest.masked_fill(largest == -math.inf, 0.0)", "largest", "functional"),
    Mutant("chunked.py", "1.0 - (capped / scoring.softcap) ** 2", "1.0", "functional"),
    Mutant("chunked.py", "grad_scores *= scoring.scale", "pass", "functional"),
    Mutant("chunked.py", ".sub_(mean_grad[:, :, rows])", "", "functional"),
    Mutant("chunked.py", "grad_scores.sum_to_size(part.shape)", "2 * grad_scores.sum_to_size(part.shape)",
           "functional"),
    Mutant("banded.py", "+ int(mask.band[0]))[:, None, :]", ")[:, None, :]", "functional"),
    Mutant("banded.py", "& (k_at < keys)", "", "functional"),
    Mutant("banded.py", "& (k_at >= 0)", "", "functional"),
    Mutant("banded.py", "pieces[:, i : i + blocks, :", "pieces[:, :blocks, :", "functional"),
    Mutant("banded.py", "BLOCK * x.stride(1), *x", "(BLOCK - 1) * x.stride(1), *x", "functional"),
    Mutant("banded.py", "output.masked_fill(_every_head(dense.dead, batch, heads), 0.0)", "output", "functional"),
    Mutant("functional.py", "return \"chunked\" if many and not dropout", "return \"chunked\" if many", "functional"),
    # masks
    Mutant("masks.py", "return k <= q\n", "return k < q\n", "masks"),
    Mutant("masks.py", "return k <= q\n", "return k >= q\n", "masks"),
    Mutant("masks.py", "(q - k).abs() < self.size\n", "(q - k).abs() <= self.size\n", "masks"),
    Mutant("masks.py", "(q - k).abs() < self.size\n", "(q - k) < self.size\n", "masks"),
    Mutant("masks.py", "(k < (lens if", "(k <= (lens if", "masks"),
    Mutant("masks.py", "return self.keep[b, k]", "return ~self.keep[b, k]", "masks"),
    Mutant("masks.py", "self.sizes.to(q.device)[h]", "self.sizes.to(q.device)[h] + 1", "masks"),
    Mutant("masks.py", "self.band = (1 - size, size - 1)", "self.band = (2 - size, size - 1)", "masks functional"),
    Mutant("masks.py", "bool(keep.all())", "bool(keep.any())", "masks functional properties"),
    Mutant("predicate.py", "h, q + self.offset, k", "h, q, k", "masks multihead"),
    Mutant("predicate.py", "mask.band[0] + offset, mask.band[1] + offset", "mask.band[0], mask.band[1]", "masks"),
    Mutant("predicate.py", "max(left.band[0], right.band[0]), min(", "min(left.band[0], right.band[0]), min(", "masks"),
    Mutant("predicate.py", "min(left.band[0], right.band[0]), max(", "max(left.band[0], right.band[0]), max(", "masks"),
    Mutant("predicate.py", "return ~self.mask.allows", "return self.mask.allows", "masks"),
    Mutant("predicate.py", "self.allowed if self.dead is None else self.allowed | self.dead", "self.allowed",
           "masks functional"),
    Mutant("predicate.py", "self._remembered[0] != key", "False", "masks"),
    Mutant("predicate.py", "self.trivial = left.trivial and right.trivial",
           "self.trivial = left.trivial or right.trivial",
           "functional masks"),
    # positions
    Mutant("positions.py", "-torch.arange(0, size, 2, dtype=torch.float64) / size",
           "-torch.arange(0, size, 2, dtype=torch.float64) / (size - 1)", "positions"),
    Mutant("positions.py", "(angles.sin(), angles.cos()), dim=-1", "(angles.cos(), angles.sin()), dim=-1", "positions"),
    Mutant("positions.py", "torch.complex(angles.cos(), angles.sin())", "torch.complex(angles.sin(), angles.cos())",
           "positions"),
    Mutant("positions.py", "frequencies / factor if", "frequencies * factor if", "positions"),
    Mutant("positions.py", "factor ** (d_head / (d_head - 2))", "factor", "positions"),
    Mutant("positions.py", "len(table) < length or ", "", "positions multihead"),
    Mutant("positions.py", "or table.dtype != _complex(x) ", "", "positions"),
    Mutant("positions.py", "k_pos[..., None, :] - q_pos[..., :, None]", "q_pos[..., :, None] - k_pos[..., None, :]",
           "positions"),
    Mutant("positions.py", "torch.where(distance < exact, distance, far)",
           "torch.where(distance < exact - 1, distance, far)",
           "positions"),
    Mutant("positions.py", "(offset > 0) * buckets", "(offset >= 0) * buckets", "positions"),
    Mutant("positions.py", "return -self.get_buffer", "return self.get_buffer", "positions"),
    # cache and beams
    Mutant("cache.py", "known[..., start:end] = k, v, positions", "known[..., start:end] = k, k, positions", "cache"),
    Mutant("cache.py", "        self.length = end\n", "        self.length = end + 1\n", "cache"),
    Mutant("cache.py", "torch.arange(start, end, device=k.device)",
           "torch.arange(end - start, device=k.device)", "cache"),
    Mutant("cache.py", "new.narrow(axis, 0, self.length).copy_(", "new.narrow(axis, 0, self.length).mul_(0).add_(0 * ",
           "cache"),
    Mutant("cache.py", "max(2 * self._capacity, end)", "end", "cache"),
    Mutant("cache.py", "if end > keys.shape[2]", "if end >= keys.shape[2]", "cache"),
    Mutant("cache.py", "self._positions = self._positions.index_select(0, rows)", "pass", "cache"),
    Mutant("cache.py", "self._ancestors = self._ancestors[rows, parents]", "pass", "cache"),
    Mutant("cache.py", "torch.cat((self._ancestors, own), dim=-1)",
           "torch.cat((own, self._ancestors), dim=-1)", "cache"),
    Mutant("cache.py", "self._ancestors = self._ancestors.index_select(0, rows)", "pass", "cache"),
    # heads
    Mutant("multihead.py", "self._placed(k, self.k_norm or self.q_norm, positions)", "self._placed(k, None, positions)",
           "multihead"),
    Mutant("multihead.py", "torch.arange(past, past + x.shape[1], device=x.device)",
           "torch.arange(x.shape[1], device=x.device)", "multihead"),
    Mutant("multihead.py", "mask = mask.shifted(past)", "pass", "multihead"),
    Mutant("multihead.py", "if self.training else 0.0", "", "multihead"),
    Mutant("multihead.py", "x = x if norm is None else norm(x)", "x = x", "multihead"),
    Mutant("capture.py", "layer.on_weights = before[name]", "pass", "multihead"),
    # kinds of score
    Mutant("scores.py", "q @ self.weight, k, 1.0", "q @ self.weight.mT, k, 1.0", "scores"),
    Mutant("scores.py", "F.normalize(k, dim=-1), 1.0", "k, 1.0", "scores"),
    Mutant("scores.py", "k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)",
           "k.repeat(1, q.shape[1] // k.shape[1], 1, 1)", "scores"),
    Mutant("scores.py", "torch.tanh(q[:, :, :, None] + k[:, :, None])", "(q[:, :, :, None] + k[:, :, None])", "scores"),
    # norm
    Mutant("norm.py", "dx.add_(", "dx.sub_(", "norm"),
    Mutant("norm.py", ".add_(eps)", "", "norm"),
]  # fmt: skip


def outcome(mutant: Mutant | None) -> str:
    """Run the tests against one mutant, or against the package as it is: "killed", "survived" or what went wrong."""
    import pytest

    folder = Path(tempfile.mkdtemp())
    shutil.copytree(PACKAGE, folder / "mtattn" / "attention", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "mtattn" / "__init__.py").touch()  # without it an installed mtattn would be found first
    shutil.copytree(TESTS, folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    profile = "from hypothesis import settings\nsettings.register_profile('m', deadline=None, max_examples=15, database=None, derandomize=True)\nsettings.load_profile('m')\n"  # noqa: E501
    (folder / "tests" / "conftest.py").write_text(profile)
    names = ["functional", "masks", "positions", "cache", "multihead", "scores", "textbook", "norm"]
    if mutant is not None:
        path = folder / "mtattn" / "attention" / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        names = mutant.tests.split()
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    signal.alarm(SECONDS)
    # FlexAttention takes seconds to import, and runs none of the mutated lines alone.
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-k", "not flex and not block_mask", "-W", "ignore"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = pytest.main([*options, *(f"tests/test_{name}.py" for name in names)])
    shutil.rmtree(folder)
    return {0: "survived", 1: "killed", 2: "killed"}.get(int(code), f"pytest ended with {code}: {output.getvalue()}")


def in_a_process(mutant: Mutant | None) -> str:
    """`outcome` in a forked process, which has torch loaded and the package not; killed by its alarm counts too."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: send.send(outcome(mutant)))
    process.start()
    send.close()
    try:
        result = str(receive.recv())
    except EOFError:
        result = "killed"
    process.join()
    return result


def main(word: str) -> int:
    """Run the mutants that contain `word`, report the survivors, and return the exit status."""
    import hypothesis  # noqa: F401  both loaded here, once, and not in each fork
    import torch

    torch.set_num_threads(1)
    chosen = [mutant for mutant in MUTANTS if word in " ".join(mutant)]
    if (as_it_is := in_a_process(None)) != "survived":
        print(f"the tests fail without any mutation: {as_it_is}")
        return 1
    survivors = []
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for number, (mutant, result) in enumerate(zip(chosen, workers.map(in_a_process, chosen), strict=True), 1):
            print(f"{number:3}/{len(chosen)} {result:9} {mutant.file}: {mutant.old!r} -> {mutant.new!r}", flush=True)
            survivors += [mutant] if result != "killed" else []
    share = 1 - len(survivors) / max(1, len(chosen))
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed ({share:.0%}; at least {REQUIRED:.0%})")
    return int(share < REQUIRED)


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
