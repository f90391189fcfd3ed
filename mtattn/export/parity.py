"""Does the copy compute what the model does? The same lines, scored and translated by both.

Translations alone do not tell: two engines may agree in every greedy choice and still differ in each probability.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mtattn.batch import pad
from mtattn.decode import DecodeConfig, Step, search
from mtattn.errors import ModelError
from mtattn.model import Transformer, evaluating
from mtattn.tokenizer import Tokenizer

BATCH = 32  # sentences computed together

Ids = Sequence[Sequence[int]]


class Engine(Protocol):
    """Something that runs a translation model. Sources and scored targets are ids that end with EOS."""

    def score(self, src: Ids, tgt: Ids) -> list[list[float]]:
        """The log-probability, in nats, of each token of each target."""

    def translate(self, src: Ids, config: DecodeConfig) -> list[list[int]]:
        """The best target of each source, without EOS, by the search that config asks for."""


@dataclass(frozen=True)
class Limits:
    """How far a copy may be from its model: nats a token at most and on average; share of equal translations."""

    max_difference: float
    mean_difference: float
    equal_translations: float


EXACT = Limits(1e-4, 1e-5, 0.99)  # the same arithmetic: sums are rounded in another order, and near ties may turn
ROUNDED = Limits(5.0, 0.1, 0.0)  # fewer bits: a token or two may be far off, their mean may not


@dataclass(frozen=True)
class Parity:
    """How far a copy is from its model, over num_tokens tokens of num_sentences sentences.

    max_difference, mean_difference: of log-probabilities, in nats a token. equal_translations: share of sentences
    whose translations are equal, token by token.
    """

    max_difference: float
    mean_difference: float
    equal_translations: float
    num_sentences: int
    num_tokens: int

    def __str__(self) -> str:
        return (
            f"log-probabilities differ by at most {self.max_difference:.1e} nats a token ({self.mean_difference:.1e} "
            f"on average, {self.num_tokens} tokens); {self.equal_translations:.1%} of {self.num_sentences} "
            "translations are equal"
        )


def score(
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], src: Ids, tgt: Ids, tokenizer: Tokenizer
) -> list[list[float]]:
    """The log-probability, in nats, of each token of each target; logits: src [B, S], tgt_in [B, T] -> [B, T, V]."""
    scores: list[list[float]] = []
    for start in range(0, len(src), BATCH):
        labels = tgt[start : start + BATCH]
        tgt_out = pad(labels, tokenizer.pad_id)  # [B, T]
        tgt_in = tgt_out.roll(1, dims=1)
        tgt_in[:, 0] = tokenizer.bos_id
        found = logits(pad(src[start : start + BATCH], tokenizer.pad_id), tgt_in)  # [B, T, V]
        log_probs = found.float().log_softmax(-1).gather(2, tgt_out[:, :, None])[:, :, 0]  # [B, T]
        scores += [row[: len(ids)].tolist() for row, ids in zip(log_probs, labels, strict=True)]
    return scores


def translate(
    start: Callable[[torch.Tensor], Step], src: Ids, tokenizer: Tokenizer, config: DecodeConfig
) -> list[list[int]]:
    """The best target of each source, without EOS; start: src [B, S] -> a decoding step."""
    found: list[list[int]] = []
    for first in range(0, len(src), BATCH):
        batch = src[first : first + BATCH]
        nbest = search(
            start(pad(batch, tokenizer.pad_id)),
            torch.tensor([len(row) for row in batch]),
            config,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
        )
        found += [hypotheses[0].ids for hypotheses in nbest]
    return found


class Native:
    """The engine that the others are compared with: the model itself."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def score(self, src: Ids, tgt: Ids) -> list[list[float]]:
        with evaluating(self.model):
            return score(self.model, src, tgt, self.tokenizer)

    def translate(self, src: Ids, config: DecodeConfig) -> list[list[int]]:
        with evaluating(self.model):
            return translate(self.model.start, src, self.tokenizer, config)


def compare(native: Engine, copy: Engine, src: Ids, tgt: Ids | None, config: DecodeConfig) -> Parity:
    """Score and translate the same sentences in both engines.

    Args:
        src: sources, each with EOS. tgt: targets to score, each with EOS; None: the native translations.
        config: the search; greedy compares engines, a beam also the ways in which they end.
    """
    expected = native.translate(src, config)
    eos = src[0][-1]
    labels = [[*ids, eos] for ids in expected] if tgt is None else tgt
    equal = [ours == theirs for ours, theirs in zip(expected, copy.translate(src, config), strict=True)]
    differences = [
        abs(a - b)
        for ours, theirs in zip(native.score(src, labels), copy.score(src, labels), strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    count = len(differences)
    return Parity(max(differences), sum(differences) / count, sum(equal) / len(equal), len(src), count)


def require_parity(parity: Parity, limits: Limits) -> None:
    """Refuse a copy that is not the model.

    Raises:
        ModelError: a limit is passed.
    """
    if (
        not parity.max_difference <= limits.max_difference  # so that NaN is refused too
        or not parity.mean_difference <= limits.mean_difference
        or parity.equal_translations < limits.equal_translations
    ):
        raise ModelError(
            f"the copy does not compute what the model does: {parity}; allowed: {limits.max_difference:.0e} at most, "
            f"{limits.mean_difference:.0e} on average, {limits.equal_translations:.0%} equal. Nothing was written; "
            "please report this together with the model's config"
        )
