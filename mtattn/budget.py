"""How many tokens a batch may have (`train.batch_tokens`), whether it is packed, and the batches that follow."""

import gc
import math
from collections.abc import Callable

import torch

from mtattn.batching import Batches
from mtattn.config import Config
from mtattn.distributed import Ranks
from mtattn.learner import Learner
from mtattn.prepare import Prepared
from mtattn.subwords import SubwordSampling

STEPS_AN_EPOCH = 250  # what the toy config was tuned to: a small corpus learns most from many small steps
LEAST, MOST, MOST_ON_GPU = 512, 4096, 32768  # a CPU is no faster beyond 4096; a GPU is still filled at 32768


def choose_packing(config: Config, device: torch.device) -> tuple[bool, str]:
    """(whether pairs are packed, the reason in words), for packing = "auto"."""
    if device.type != "cuda":
        return False, "on a CPU padded batches are as fast"
    against = unrecordable(config)
    return not against, against or "all batches have one shape, and a step is recorded once and replayed"


def unrecordable(config: Config) -> str:
    """Why a step on packed pairs cannot be recorded on a GPU, or ""."""
    model = config.model
    if model.position.kind == "learned":
        return "learned positions are looked up with a check"
    if config.train.shard:
        return "train.shard lets processes wait for each other within a step"
    if model.attention not in ("auto", "sdpa", "reference"):
        return f"attention {model.attention} cannot be recorded"
    return ""


def make_batches(config: Config, data: Prepared, batch_tokens: int) -> Batches:
    """The stream of training batches, each of about this number of tokens."""
    sample = None
    if config.tokenizer.sampling:
        draw = SubwordSampling(data.tokenizer, config.tokenizer, config.filter.max_len)
        sample = lambda chosen, seed: draw(*data.texts(chosen), seed)  # noqa: E731
    return Batches(
        data.examples.src,
        data.examples.tgt,
        data.tokenizer,
        batch_tokens=batch_tokens,
        seed=config.train.seed,
        chosen=data.mixture,
        sample=sample,
        packed=config.train.packing is True,
    )


def choose_batch_tokens(config: Config, data: Prepared, device: torch.device) -> tuple[int, str]:
    """(batch_tokens, the reason in words), for batch_tokens = "auto": what the corpus wants, as far as memory allows.

    Wanted are about STEPS_AN_EPOCH steps an epoch, as a power of two within what the device computes efficiently. On a
    GPU, budgets are tried upwards: forward and backward of the largest batch, beside room for the optimisers' state. On
    a CPU nothing is tried: a batch of MOST tokens fits where the model does, and Linux promises memory that it lacks.
    """
    epoch = slice(None) if data.mixture is None else data.mixture(0)
    tokens = int(data.examples.tgt.lens[epoch].sum()) / config.train.accumulate
    most = MOST_ON_GPU if device.type == "cuda" else MOST
    wanted = wanted_batch_tokens(tokens, most)
    reason = f"for about {STEPS_AN_EPOCH} steps an epoch, but from {LEAST} to {most}"
    if device.type != "cuda" or config.train.shard:  # only all processes together can try a model in parts
        return wanted, reason
    chosen = _most_that_fits(config, data, device, wanted)
    gc.collect()  # a learner refers to itself, and would keep its memory
    return chosen, reason if chosen == wanted else f"{2 * chosen} did not fit into memory"


def wanted_batch_tokens(epoch_tokens: float, most: int) -> int:
    """The power of two that cuts an epoch into about STEPS_AN_EPOCH batches, from LEAST to `most`."""
    nearest: int = 2 ** round(math.log2(max(epoch_tokens / STEPS_AN_EPOCH, 1)))
    return min(max(nearest, LEAST), most)


def largest_that_fits(wanted: int, fits: Callable[[int], bool]) -> int:
    """Double from LEAST up to `wanted` as long as it fits; LEAST itself is not tried, as batches can be split."""
    chosen = LEAST
    while chosen < wanted and fits(2 * chosen):
        chosen *= 2
    return chosen


def _most_that_fits(config: Config, data: Prepared, device: torch.device, wanted: int) -> int:
    """Tried on a learner like the one to come, beside its optimisers' two numbers a weight."""
    learner = Learner(
        config,
        data.tokenizer,
        device,
        Ranks(),
        parts={},
        named=lambda batch: data.names([batch]),
        warn=lambda text: None,
    )
    _reserve = [torch.empty_like(p) for p in learner.model.parameters() for _ in range(2)]
    return largest_that_fits(wanted, lambda n: learner.splitter.fits(make_batches(config, data, n).largest()))
