"""How long training takes, from facts of the corpus and the machine: counted and never timed, so always the same."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mtattn.config import Config, TrainConfig
from mtattn.scripts import unspaced

if TYPE_CHECKING:
    import datasets

# Measured on 2 CPU cores in float32 (docs/experiments.md): 2,600 target tokens/s at 45 MFLOP each with AVX-512,
# half of that with AVX2, and 0.06 s a step that no size saves; on an H100 in bfloat16 990,000. Other processors are
# taken to be as fast as the first, other GPUs as that one, and mps is a guess.
FLOPS_PER_CORE, AVX2_FLOPS_PER_CORE = 6e10, 3e10
MOST_CORES = 8  # more share the same memory, and small models gain little from them
FLOPS = {"cuda": 6e13, "mps": 1e12}
STEP_SECONDS = {"cpu": 0.06, "cuda": 0.002, "mps": 0.06}
PADDING = 1.1  # positions computed for each token


@dataclass(frozen=True)
class Facts:
    """What a choice of sizes depends on.

    pairs: in an epoch. src_chars, tgt_chars: characters of each side in all. src_unspaced, tgt_unspaced: its script
    writes no spaces between words. num_chars: different characters, but for the rarest (0.05 % of the text).
    device: "cpu", "cuda" or "mps". cores: CPU threads. instructions: the CPU's, as torch names what it uses.
    max_minutes, max_epochs: the limits that the user gave, else 0.
    """

    pairs: int
    src_chars: int
    tgt_chars: int
    src_unspaced: bool = False
    tgt_unspaced: bool = False
    num_chars: int = 80
    device: str = "cpu"
    cores: int = 2
    instructions: str = "AVX512"
    max_minutes: float = 0.0
    max_epochs: int = 0


def measure(
    dataset: "datasets.Dataset", device: torch.device, train: TrainConfig, sample: int = 10_000, mix: float = 0.0
) -> Facts:
    """The facts of a corpus, and of what `train` lets a run use.

    Args:
        sample: most pairs that are looked at, evenly spread over the corpus.
        mix: share of an epoch's pairs that are old ones (`mtattn.mixing`), taken to be there and to be like these.
    """
    rows = dataset[range(0, len(dataset), -(-len(dataset) // sample))]
    src, tgt = list(rows["src"]), list(rows["tgt"])
    pairs = round(len(dataset) / (1 - mix))
    scale = pairs / len(src)
    counts: Counter[str] = Counter()
    for text in (*src, *tgt):
        counts.update(text)
    return Facts(
        pairs=pairs,
        src_chars=round(scale * sum(map(len, src))),
        tgt_chars=round(scale * sum(map(len, tgt))),
        src_unspaced=unspaced(src),
        tgt_unspaced=unspaced(tgt),
        num_chars=_covering(counts, 0.9995),
        device=device.type,
        cores=train.threads or torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        max_minutes=train.max_minutes,
    )


def _covering(counts: Counter[str], share: float) -> int:
    """How many of the most frequent characters make up this share of a text."""
    left = share * sum(counts.values())
    for number, (_, count) in enumerate(counts.most_common()):
        if left <= 0:
            return number
        left -= count
    return len(counts)


@dataclass(frozen=True)
class Shape:
    """What a model's arithmetic depends on."""

    d_model: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    vocab_size: int

    @property
    def weights(self) -> tuple[int, int]:
        """Weights that a source token, and that a target token is multiplied with."""
        attention, feed_forward = 4 * self.d_model**2, 2 * self.d_model * self.d_ff
        decoder = self.decoder_layers * (2 * attention + feed_forward)
        return self.encoder_layers * (attention + feed_forward), decoder + self.d_model * self.vocab_size


def num_pieces(facts: Facts, vocab_size: int) -> tuple[int, int]:
    """About how many pieces each side has, fitted to four corpora (docs/experiments.md).

    A piece has 3.2 characters with 1,500 pieces and half a one more with twice as many; EOS and the full stop come to
    1.5 pieces a sentence. Scripts without white space between words (Chinese, Japanese, Thai) have shorter pieces.
    """
    spaced, shorter = 3.2 + 0.5 * math.log2(max(vocab_size, 500) / 1_500), 1.5
    src = facts.src_chars / (shorter if facts.src_unspaced else spaced)
    tgt = facts.tgt_chars / (shorter if facts.tgt_unspaced else spaced)
    return round(src + 1.5 * facts.pairs), round(tgt + 1.5 * facts.pairs)


def seconds_per_epoch(shape: Shape, facts: Facts, step_tokens: int) -> float:
    """Forward and backward need 6 operations a weight and token (Kaplan et al. 2020, section 2.1)."""
    src, tgt = num_pieces(facts, shape.vocab_size)
    per_core = AVX2_FLOPS_PER_CORE if facts.instructions == "AVX2" else FLOPS_PER_CORE
    flops = FLOPS.get(facts.device, per_core * min(facts.cores, MOST_CORES))
    work = 6 * (src * shape.weights[0] + tgt * shape.weights[1])
    return work / flops + max(src, tgt) * PADDING / step_tokens * STEP_SECONDS[facts.device]


def estimate(config: Config, facts: Facts, step_tokens: int) -> str:
    """About how long a run will take, in words; step_tokens: target tokens of a step, padding included."""
    model, train = config.model, config.train
    shape = Shape(model.d_model, model.d_ff, model.encoder_layers, model.decoder_layers, config.tokenizer.vocab_size)
    minutes = (2 if config.loss.rdrop else 1) * seconds_per_epoch(shape, facts, step_tokens) / 60
    tokens = num_pieces(facts, shape.vocab_size)[1]
    limits = train.max_epochs * minutes, train.max_steps * step_tokens / PADDING / tokens * minutes, train.max_minutes
    on = f"{facts.cores} CPU threads" if facts.device == "cpu" else f"{facts.device}, by the speed of an H100"
    speed = f"{tokens / minutes / 60:,.0f} a second on {on}"
    return (
        f"an epoch: about {tokens:,} target tokens, {_duration(minutes)}, {speed}; "
        f"training takes about {_duration(min(filter(None, limits)))}, validation not counted"
    )


def _duration(minutes: float) -> str:
    if minutes < 2:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
