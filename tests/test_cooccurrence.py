"""Embeddings that start from the corpus: translations and synonyms are found, nothing else is disturbed."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import token_table

from mtattn.batch import TokenTable
from mtattn.cooccurrence import SHARE, cooccurrence_vectors, start_embeddings
from mtattn.model import ModelConfig, PositionConfig, Transformer

FIRST, WORDS, SYNONYM = 4, 30, 34  # source words are FIRST ..., their translations WORDS further on; two share one


def pairs(count: int = 600) -> tuple[TokenTable, TokenTable]:
    """Texts of six random words and their word-by-word translations, in which SYNONYM is translated as FIRST is."""
    draw = np.random.default_rng(0)
    src = draw.integers(FIRST, SYNONYM + 1, (count, 6))
    tgt = np.where(src == SYNONYM, FIRST, src) + WORDS + 1
    return token_table(src), token_table(tgt)


def test_translations_and_synonyms_are_near():
    left, right = cooccurrence_vectors(*pairs(), 40, 70, 24, seed=0)
    assert left.shape == (40, 24) and right.shape == (70, 24)
    nearest = (left @ right.T)[FIRST:SYNONYM].argmax(1)
    assert nearest.tolist() == list(range(FIRST + WORDS + 1, SYNONYM + WORDS + 1))
    similar = left[SYNONYM] @ left[FIRST:SYNONYM].T
    assert similar.argmax() == 0 and similar[0] > 2 * similar[1:].max()


def test_lengths_are_one_or_zero():
    left, right = cooccurrence_vectors(*pairs(), 40, 70, 24, seed=0)
    for vectors, seen in ((left, range(FIRST, SYNONYM + 1)), (right, range(FIRST + WORDS + 1, SYNONYM + WORDS + 1))):
        expected = torch.zeros(len(vectors))
        expected[list(seen)] = 1
        assert vectors.norm(dim=1).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("texts", [[[4]], [[4], [5]]], ids=["one pair", "no two pairs alike"])
def test_where_nothing_is_known_all_is_zero(texts):
    table = token_table(texts)
    for vectors in cooccurrence_vectors(table, table, 8, 8, 16, seed=0):
        assert vectors.shape == (8, 16) and not vectors.any()


def model(tied: bool, joint: bool, **other: Any) -> Transformer:
    torch.manual_seed(3)
    sizes = {"d_model": 16, "d_ff": 8, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    config = ModelConfig(tied_embeddings=tied, **sizes | other)
    return Transformer(config, 70 if joint else 40, 70, joint=joint)


def test_a_width_that_has_no_half():
    before, after = (model(True, True, d_model=15, num_heads=3, position=PositionConfig("alibi")) for _ in range(2))
    start_embeddings(after, *pairs(), seed=0)
    assert not torch.equal(after.tgt_embed.weight, before.tgt_embed.weight)


@pytest.mark.parametrize(("tied", "joint"), [(True, True), (True, False), (False, True), (False, False)])
def test_embeddings_are_a_mixture_of_chance_and_corpus(tied, joint):
    before, after = model(tied, joint), model(tied, joint)
    state = torch.get_rng_state()
    start_embeddings(after, *pairs(), seed=0)
    assert torch.equal(torch.get_rng_state(), state)  # the run's other random numbers stay what they are
    shared = tied and joint
    left, right = cooccurrence_vectors(
        *pairs(), *(len(t.weight) for t in (after.src_embed, after.tgt_embed)), 8 if shared else 16, seed=0
    )
    expected = {
        "src_embed": torch.cat([left, right], 1) if shared else left,
        "tgt_embed": torch.cat([left, right], 1) if shared else right,
        "out_embed": torch.cat([left, right], 1) if shared else right,
    }
    for name, known in expected.items():
        chance, mixed = getattr(before, name).weight, getattr(after, name).weight
        seen = known.any(1)
        assert torch.equal(mixed[~seen], chance[~seen]) and (~seen).any()
        torch.testing.assert_close(mixed[seen], (1 - SHARE) ** 0.5 * chance[seen] + SHARE**0.5 * known[seen])
    others = {name for name, _ in before.named_parameters() if "embed" not in name}
    assert all(torch.equal(before.get_parameter(name), after.get_parameter(name)) for name in others)
