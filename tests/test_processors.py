"""What each processor forbids, against the sentence that says so, and in any batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtattn.processors import ForcedPrefix, MinLength, NoRepeatNgram, Processor, forbid

EOS, V = 2, 6


def forbidden(processor: Processor, histories: list[list[int]], sentences: list[int] | None = None) -> list[list[int]]:
    """The tokens that a processor forbids after each history, each that of one sentence's only hypothesis."""
    n = len(histories)
    history = torch.tensor(histories, dtype=torch.int64).view(n, 1, -1)
    logits = processor(torch.zeros(n, 1, V), history, torch.tensor(sentences or range(n)))
    assert ((logits == 0) | (logits == -math.inf)).all()
    return [(row == -math.inf).nonzero()[:, 0].tolist() for row in logits[:, 0]]


@pytest.mark.parametrize(("history", "expected"), [([], [EOS]), ([3], [EOS]), ([3, 3], []), ([3, 3, 3], [])])
def test_min_length(history, expected):
    assert forbidden(MinLength(torch.tensor([2]), EOS), [history]) == [expected]
    assert forbidden(MinLength(torch.tensor([9, 2]), EOS), [history], sentences=[1]) == [expected]


@pytest.mark.parametrize(
    ("n", "history", "expected"),
    [
        (1, [], []),
        (1, [3, 5, 3], [3, 5]),
        (2, [3], []),
        (2, [3, 4, 3], [4]),  # 3 4 was there
        (2, [3, 4, 3, 5, 3], [4, 5]),
        (2, [3, 3], [3]),  # overlapping n-grams count
        (2, [3, 4, 5, 4], [5]),  # 4 after 3 was there too, but nothing forbids it after 4
        (3, [3, 4, 5, 3, 4], [5]),
        (3, [3, 4, 5, 4, 3], []),
    ],
)
def test_no_repeat_ngram(n, history, expected):
    assert forbidden(NoRepeatNgram(n), [history]) == [expected]


@settings(deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(3, 5), max_size=12))
def test_no_repeat_ngram_equals_its_definition(n, history):
    seen = {tuple(history[i : i + n]) for i in range(len(history) - n + 1)}
    expected = [t for t in range(V) if (*history[len(history) - n + 1 :], t) in seen]
    assert forbidden(NoRepeatNgram(n), [history]) == [expected]


def test_no_repeat_ngram_needs_a_size():
    with pytest.raises(ValueError, match="is 0: it must be 1 or more"):
        NoRepeatNgram(0)


def test_forced_prefix_is_each_sentences_own():
    prefixes = ForcedPrefix([[3, 4], [], [5]])
    all_but = lambda token: [i for i in range(V) if i != token]  # noqa: E731
    assert forbidden(prefixes, [[], [], []]) == [all_but(3), [], all_but(5)]
    assert forbidden(prefixes, [[3], [5]], sentences=[0, 2]) == [all_but(4), []]
    assert forbidden(prefixes, [[5], [3]], sentences=[2, 0]) == [[], all_but(4)]
    assert forbidden(prefixes, [[3, 4]], sentences=[0]) == [[]]
    assert forbidden(ForcedPrefix([[]]), [[]]) == [[]]


def test_with_nothing_else_left_eos_is_allowed():
    logits = torch.zeros(2, 1, V)
    rules = [ForcedPrefix([[EOS], [EOS]]), MinLength(torch.tensor([9, 9]), EOS)]
    logits = forbid(rules, logits, torch.zeros(2, 1, 0, dtype=torch.int64), torch.arange(2), EOS)
    assert (logits[:, 0] == 0).nonzero().tolist() == [[0, EOS], [1, EOS]]


EXAMPLES = {
    "min_len": MinLength(torch.arange(8) + 3, EOS),
    "no_repeat_ngram": NoRepeatNgram(2),
    "forced_prefix": ForcedPrefix([[i % V] * 9 for i in range(8)]),
}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_processor_only_forbids_and_knows_its_sentence_in_any_batch(name, dtype):
    g = torch.Generator().manual_seed(0)
    logits: Tensor = torch.randn(8, 3, V, generator=g).to(dtype)
    history, sentences = torch.randint(3, V, (8, 3, 6), generator=g), torch.arange(8)
    together = EXAMPLES[name](logits.clone(), history, sentences)
    assert ((together == logits) | (together == -math.inf)).all()
    assert (together == -math.inf).any()
    rows = torch.tensor([6, 2])
    assert torch.equal(EXAMPLES[name](logits[rows], history[rows], sentences[rows]), together[rows])
