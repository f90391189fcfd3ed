"""Search: against tables whose products a reader can multiply, against every sequence there is, and alone against in a batch."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtattn.decode import SEARCHES, DecodeConfig, Hypothesis, search

PAD, BOS, EOS, A, B = range(5)
IDS = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS}


class Scripted:
    """A model that is a table: the probabilities of the next token after each prefix, one table for each sentence.

    Prefixes that a table lacks are followed by `default`.
    """

    def __init__(self, tables: Sequence[dict[tuple[int, ...], dict[int, float]]], vocab_size: int = 5) -> None:
        self.tables, self.vocab_size = list(tables), vocab_size
        self.prefixes: list[list[tuple[int, ...]]] = []
        self.sizes: list[int] = []

    def __call__(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        if not self.prefixes:
            assert parents is None and bool((tokens == BOS).all())
            self.prefixes = [[()] * tokens.size(1) for _ in self.tables]
        else:
            places = torch.arange(tokens.size(1)).expand_as(tokens) if parents is None else parents
            self.prefixes = [
                [(*old[p], t) for p, t in zip(row_parents, row_tokens, strict=True)]
                for old, row_parents, row_tokens in zip(self.prefixes, places.tolist(), tokens.tolist(), strict=True)
            ]
        self.sizes.append(len(self.tables))
        return torch.stack(
            [
                torch.stack([self.logits(table, prefix) for prefix in row])
                for table, row in zip(self.tables, self.prefixes, strict=True)
            ]
        )

    def logits(self, table: dict[tuple[int, ...], dict[int, float]], prefix: tuple[int, ...]) -> Tensor:
        probs = torch.zeros(self.vocab_size)
        for token, prob in table.get(prefix, {EOS: 1.0}).items():
            probs[token] = prob
        return probs.log()

    def select(self, sentences: Tensor) -> None:
        self.tables = [self.tables[i] for i in sentences.tolist()]
        self.prefixes = [self.prefixes[i] for i in sentences.tolist()]


def run(tables, config, lens=None, **kwargs) -> list[list[Hypothesis]]:
    lens = torch.zeros(len(tables), dtype=torch.int64) if lens is None else torch.tensor(lens)
    return search(Scripted(tables), lens, config, **IDS, **kwargs)


GARDEN_PATH = {(): {A: 0.6, B: 0.4}, (A,): {EOS: 0.5, A: 0.5}, (B,): {EOS: 0.9, B: 0.1}}


def test_beam_finds_what_greedy_misses():
    greedy = run([GARDEN_PATH], DecodeConfig(beam_size=1, length_penalty=0))[0][0]
    beam = run([GARDEN_PATH], DecodeConfig(beam_size=2, length_penalty=0))[0][0]
    assert (greedy.ids, beam.ids) == ([A], [B])
    assert greedy.log_prob == pytest.approx(math.log(0.6 * 0.5))
    assert beam.log_prob == pytest.approx(math.log(0.4 * 0.9))
