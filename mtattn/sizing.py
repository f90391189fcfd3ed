"""Sizes that suit a corpus: vocabulary, width, layers, dropout, batch and epochs, each with its reason.

`SIZES` says what suits how many pairs; the time at hand may ask for a smaller model. Nothing is timed or
drawn while choosing: the same facts give the same sizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtattn.config import Config
from mtattn.model import ModelConfig
from mtattn.speed import PADDING, Facts, Shape, num_pieces, seconds_per_epoch
from mtattn.tokenizer import NUM_RESERVED


@dataclass(frozen=True)
class Size:
    """What suits a corpus of at least `pairs` pairs; `step_tokens` is batch_tokens times accumulate."""

    pairs: int
    vocab_size: int
    d_model: int
    d_ff: int
    num_heads: int
    layers: int  # of the encoder, and of the decoder
    dropout: float
    step_tokens: int
    epochs: int


SIZES = (
    Size(0, 2_000, 128, 512, 2, 2, 0.3, 1_024, 100),
    Size(8_000, 4_000, 128, 512, 2, 4, 0.3, 2_048, 40),  # configs/multi30k-en-de-quick.toml
    Size(20_000, 6_000, 256, 1_024, 4, 3, 0.3, 8_192, 20),
    Size(100_000, 8_000, 256, 1_024, 4, 3, 0.2, 8_192, 15),
    Size(1_000_000, 16_000, 512, 2_048, 8, 6, 0.1, 32_768, 8),
)
MAX_VOCAB_SIZE = 32_000
# Pairs that are seen this often, or as often as their row says, need its whole dropout lest they are learnt by heart.
# Shorter runs need far less: of 29,000 captions 4 epochs score 38.1 without, 37.8 with 0.05 and 36.4 with 0.15, and 12
# epochs with 0.1 hardly begin to learn by heart (docs/experiments.md). Hence the square of the share of epochs, and
# none where that comes to no more than LITTLE_DROPOUT.
MANY_EPOCHS, LITTLE_DROPOUT = 20, 0.05
# A model that time makes smaller than suits its pairs learns less of them by heart: 2.9 M weights saw 29,000 captions
# 25 times with half of their row's dropout, for 40.6 (configs/multi30k-en-de-cpu.toml).
SMALLER_DROPOUT = 0.5
# Target tokens that a model must at least see for each of its weights; else a smaller one is better: in 18.5 minutes
# 1.5 for each of 2.4 M weights score 39.0, 0.7 for each of 3.7 M 37.3.
TOKENS_PER_WEIGHT = 1.25
DEFAULT_MINUTES = 480.0  # "a night": what a run may take when nothing is said
VALIDATIONS = 20  # in a run
# On a CPU a run of fewer steps takes smaller batches: after 1.5 epochs of 29,000 captions 440 steps of 2,048 tokens
# score 28.7, 220 of 4,096 24.7 (docs/experiments.md). They would not fill a GPU.
FEWEST_STEPS, SMALLEST_STEP = 1_400, 1_024

# A GPU has the time for R-Drop and for this many times the epochs, with which 29,000 captions score 42.9 where 7 plain
# epochs score 39.1; that fewer pairs than FEW_PAIRS gain as much is an assumption.
RDROP, MORE_EPOCHS, FEW_PAIRS = 4.0, 4, 100_000

GPU_BATCH_TOKENS = 8_192  # whatever GPU it is, so much fits
CPU_BATCH_TOKENS = 4_096  # a batch of 8,192 leaves 13 % padding instead of 5 % and is no faster on a CPU


@dataclass(frozen=True)
class Choice:
    """One setting that was chosen: its dotted name, its value, and why."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"  {self.key} = {self.value}  ({self.reason})"


def choose(facts: Facts) -> list[Choice]:
    """Every setting that depends on the corpus or the machine."""
    suited = _suited(facts)
    data, minutes = suited[-1], facts.max_minutes or DEFAULT_MINUTES
    thorough = facts.device == "cuda" and data.pairs < FEW_PAIRS
    most_epochs = data.epochs * (MORE_EPOCHS if thorough else 1)
    wanted = facts.max_epochs or most_epochs
    model = next((size for size in reversed(suited) if _sees_enough(size, facts, minutes)), suited[0])
    step_tokens = _most_step_tokens(facts, model)
    seconds = (2 if thorough else 1) * seconds_per_epoch(_shape(model, facts), facts, step_tokens)
    reachable = min(float(wanted), 60 * minutes / seconds)
    chosen = [*_model_choices(model, data, facts, reachable), *choose_batch(facts, model, reachable)]
    if thorough and as_table(chosen)["model"]["dropout"]:
        chosen.append(Choice("loss.rdrop", RDROP, "two passes a step agree with each other: few pairs teach more"))
    limited = " that fit into a night; --max-minutes N chooses for N minutes" if reachable < wanted else ""
    if facts.max_minutes and reachable == wanted:
        limited = f"; {facts.max_minutes:g} minutes should be enough"
    elif facts.max_minutes:
        limited = f"; about {reachable:.1f} fit into {facts.max_minutes:g} minutes, and the clock ends the run"
    epochs = most_epochs if facts.max_minutes else max(1, math.floor(reachable))
    chosen.append(Choice("train.max_epochs", epochs, f"as many as {_range(data)} gain from{limited}"))
    if not 10 <= reachable <= 30:  # for which one an epoch, the default, is about VALIDATIONS
        steps = round(reachable * _steps_per_epoch(facts, _step_tokens(facts, model, reachable)))
        every = max(1, steps // VALIDATIONS)
        chosen.append(Choice("train.valid_every", every, f"steps; {VALIDATIONS} validations in the run"))
    return chosen


def _model_choices(model: Size, data: Size, facts: Facts, epochs: float) -> list[Choice]:
    vocab_size = _vocab_size(model, facts)
    tokens = num_pieces(facts, vocab_size)[1]
    why = f"suits {_range(data)}"
    if model != data:
        minutes = f"{facts.max_minutes or DEFAULT_MINUTES:g} minutes"
        why = f"a larger model for {_range(data)} would not see enough text in {minutes} on this {facts.device}"
    times = f"a pair is seen about {epochs:.0f} times"
    most_dropout = data.dropout * (1 if model == data else SMALLER_DROPOUT)
    share = min(1.0, epochs / min(MANY_EPOCHS, data.epochs)) ** 2
    dropout = round(share * most_dropout, 2)
    dropout = dropout if dropout > LITTLE_DROPOUT else 0.0
    learnt = "must not" if dropout == most_dropout else "can hardly"
    inner_dropout = ModelConfig.inner_dropout if model == data and share > 1 / 2 else 0.0
    if vocab_size > model.vocab_size:
        pieces = f"the text has {facts.num_chars:,} different characters, and each needs room"
    else:
        pieces = f"a piece is then seen about {tokens / vocab_size:,.0f} times an epoch on the target side"
    return [
        Choice("tokenizer.vocab_size", vocab_size, pieces),
        Choice("model.d_model", model.d_model, why),
        Choice("model.d_ff", model.d_ff, "4 times d_model"),
        Choice("model.num_heads", model.num_heads, f"{model.d_model // model.num_heads} features a head"),
        Choice("model.encoder_layers", model.layers, "with d_model"),
        Choice("model.decoder_layers", model.layers, "with d_model"),
        Choice("model.dropout", dropout, f"{times} and {learnt} be learnt by heart"),
        Choice("model.inner_dropout", inner_dropout, "with dropout"),
    ]


def choose_batch(facts: Facts, size: Size | None = None, epochs: float = math.inf) -> list[Choice]:
    """How many tokens make a step, and how many of them are computed at once; on a GPU its memory says that later.

    Args:
        size: the row that the model is of. Default: the one that suits the pairs.
        epochs: in the run, of which a short one takes smaller steps.
    """
    size = size or _suited(facts)[-1]
    step_tokens = _step_tokens(facts, size, epochs)
    if facts.device != "cpu" and step_tokens > GPU_BATCH_TOKENS:
        return [Choice("train.batch_tokens", "auto", "as much as is needed and memory holds, tried before training")]
    tokens, why = step_tokens, "a step at once"
    if facts.device == "cpu" and tokens > CPU_BATCH_TOKENS:
        tokens, why = CPU_BATCH_TOKENS, "more at once is mostly padding, and no faster on a CPU"
    steps = f"{step_tokens:,} tokens a step make about {_steps_per_epoch(facts, step_tokens):,.0f} steps an epoch"
    return [
        Choice("train.batch_tokens", tokens, why),
        Choice("train.accumulate", step_tokens // tokens, steps),
    ]


def _suited(facts: Facts) -> list[Size]:
    """The rows for so many pairs or fewer."""
    return [size for size in SIZES if size.pairs <= facts.pairs]


def _most_step_tokens(facts: Facts, size: Size) -> int:
    """On a CPU a smaller model than suits the pairs takes its own row's steps, but no less than a quarter of theirs."""
    suited = _suited(facts)[-1].step_tokens
    return max(size.step_tokens, suited // 4) if facts.device == "cpu" else suited


def _step_tokens(facts: Facts, size: Size, epochs: float) -> int:
    tokens = _most_step_tokens(facts, size)
    while facts.device == "cpu" and tokens > SMALLEST_STEP and epochs * _steps_per_epoch(facts, tokens) < FEWEST_STEPS:
        tokens //= 2
    return tokens


def planned_step_tokens(config: Config, facts: Facts) -> int:
    """Target tokens of a step, padding included; what suits the pairs where memory will decide."""
    train = config.train
    return _suited(facts)[-1].step_tokens if train.batch_tokens == "auto" else train.batch_tokens * train.accumulate


def _steps_per_epoch(facts: Facts, step_tokens: int) -> float:
    return max(1.0, max(num_pieces(facts, _suited(facts)[-1].vocab_size)) * PADDING / step_tokens)


def _shape(size: Size, facts: Facts) -> Shape:
    return Shape(size.d_model, size.d_ff, size.layers, size.layers, _vocab_size(size, facts))


def _vocab_size(size: Size, facts: Facts) -> int:
    return max(size.vocab_size, min(MAX_VOCAB_SIZE, NUM_RESERVED + 2 * facts.num_chars))


def _sees_enough(size: Size, facts: Facts, minutes: float) -> bool:
    """Whether there is time for TOKENS_PER_WEIGHT, were the corpus large enough for it."""
    shape = _shape(size, facts)
    seconds_per_token = seconds_per_epoch(shape, facts, size.step_tokens) / num_pieces(facts, shape.vocab_size)[1]
    return 60 * minutes / seconds_per_token >= TOKENS_PER_WEIGHT * sum(shape.weights)


def _range(size: Size) -> str:
    """The numbers of pairs that a row is for, in words."""
    following = [other.pairs for other in SIZES if other.pairs > size.pairs]
    if not following:
        return f"{size.pairs:,} pairs and more"
    return f"{size.pairs:,} to {following[0]:,} pairs" if size.pairs else f"fewer than {following[0]:,} pairs"


def as_table(choices: Sequence[Choice]) -> dict[str, dict[str, Any]]:
    """The choices as config sections."""
    table: dict[str, dict[str, Any]] = {}
    for choice in choices:
        section, key = choice.key.split(".")
        table.setdefault(section, {})[key] = choice.value
    return table
