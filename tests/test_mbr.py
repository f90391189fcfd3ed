"""Expected chrF is sacreBLEU's, and the candidate most like all comes first."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.chrf import CHRF

from mtattn.decode import DecodeConfig
from mtattn.history import Hypothesis
from mtattn.mbr import MinimumBayesRisk, expected_chrf, pairwise_chrf
from mtattn.translate import Segment, Translator

TEXTS = st.lists(st.text(st.sampled_from("abä .\u2028日"), max_size=12) | st.text(max_size=5), min_size=1, max_size=5)


@given(TEXTS)
def test_pairwise_chrf_is_sacrebleus(texts):
    found = pairwise_chrf(texts)
    expected = [[CHRF().sentence_score(hyp, [ref]).score for ref in texts] for hyp in texts]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_expected_chrf_weighs_the_references():
    points = pairwise_chrf(["abc", "abd", "xyz"])
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    assert expected_chrf(["abc", "abd", "xyz"], weights) == pytest.approx((points @ weights).tolist())


def segment(*candidates: tuple[str, float]) -> Segment:
    hypotheses = [
        Hypothesis([i + 9], log_prob, log_prob, [log_prob, 0.0], True) for i, (_, log_prob) in enumerate(candidates)
    ]
    return Segment([5, 2], hypotheses, [text for text, _ in candidates], frozenset({"x"}))


CONSENSUS = segment(("a green door", -1.0), ("the red house", -1.1), ("the red horse", -1.2), ("the red mouse", -1.3))


@pytest.mark.parametrize("sampled", [True, False])
def test_the_candidate_most_like_all_comes_first(sampled):
    (found,) = MinimumBayesRisk(2, sampled=sampled)([], [CONSENSUS], lambda parts, processors: [])
    assert found.texts[0] == "the red house"
    assert [h.ids for h in found.hypotheses] == [
        CONSENSUS.hypotheses[CONSENSUS.texts.index(t)].ids for t in found.texts
    ]
    assert len(found.texts) == 2
    assert found.flags == {"x"}


def test_an_nbest_list_weighs_by_probability_and_samples_by_count():
    sure = segment(("a green door", -0.01), ("the red house", -9.0), ("the red horse", -9.0))
    search = lambda parts, processors: []  # noqa: E731
    assert MinimumBayesRisk(1, sampled=False)([], [sure], search)[0].texts == ["a green door"]
    assert MinimumBayesRisk(1, sampled=True)([], [sure], search)[0].texts[0].startswith("the red ho")
    often = segment(*[("a green door", -3.0)] * 3, ("the red house", -1.0), ("the red horse", -1.0))
    assert MinimumBayesRisk(5, sampled=True)([], [often], search)[0].texts[0] == "a green door"
    assert len(MinimumBayesRisk(5, sampled=True)([], [often], search)[0].texts) == 3


@pytest.mark.parametrize("options", [{"beam_size": 6}, {"search": "sample"}])
def test_it_reranks_what_a_translator_finds(model, tokenizer, toy_lines, options):
    translator = Translator(model, tokenizer, DecodeConfig(nbest=6, max_len_ratio=1, **options))
    candidates = [translation.texts for translation in translator.translate(toy_lines[0][:3])]
    translator.refine.append(MinimumBayesRisk(2, sampled="search" in options))
    for texts, translation in zip(candidates, translator.translate(toy_lines[0][:3]), strict=True):
        assert len(translation.texts) == 2
        assert set(translation.texts) <= set(texts)
