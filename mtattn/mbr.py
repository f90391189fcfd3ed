"""Minimum Bayes risk decoding: of many candidates, the one most like all of them, instead of the likeliest.

Eikema & Aziz 2020 (https://aclanthology.org/2020.coling-main.398) show that the likeliest translation is often an odd
one, and choose argmax_h sum_r p(r) u(h, r) over samples; Freitag et al. 2022 (https://arxiv.org/abs/2111.09388) compare
utilities u. Here u is chrF (Popovic 2015).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.helpers import extract_all_char_ngrams
from torch import Tensor

from mtattn.history import Hypothesis
from mtattn.translate import Part, Search, Segment


class MinimumBayesRisk:
    """Puts first the hypotheses whose expected chrF is highest; a `Refine` of the Translator.

    Args:
        keep: hypotheses of each segment that are returned, at most.
        sampled: the candidates are samples, drawn as often as they are probable, and count alike. Otherwise they are an
            n-best list, and each counts as much as the model's probability of it, out of the list's.
    """

    def __init__(self, keep: int, *, sampled: bool) -> None:
        self.keep, self.sampled = keep, sampled

    def __call__(self, parts: Sequence[Part], segments: Sequence[Segment], search: Search) -> list[Segment]:
        """The same segments with their hypotheses in the new order, each text once."""
        return [self._reranked(segment) for segment in segments]

    def report(self) -> str:
        """Nothing to say."""
        return ""

    def _reranked(self, segment: Segment) -> Segment:
        expected = expected_chrf(segment.texts, self._weights(segment.hypotheses))
        first = {text: i for i, text in reversed(list(enumerate(segment.texts)))}  # the best hypothesis of each text
        best = sorted(first.values(), key=lambda i: (-expected[i], i))[: self.keep]
        return replace(
            segment, hypotheses=[segment.hypotheses[i] for i in best], texts=[segment.texts[i] for i in best]
        )

    def _weights(self, hypotheses: Sequence[Hypothesis]) -> Tensor:
        log_probs = torch.tensor([hypothesis.log_prob for hypothesis in hypotheses], dtype=torch.float64)
        return (log_probs * 0 if self.sampled else log_probs).softmax(0)


def expected_chrf(texts: Sequence[str], weights: Tensor) -> list[float]:
    """The expected chrF of each text: sum_r weights[r] chrF(text, r), in points.

    Args:
        texts: N candidates, each of which also stands as a reference.
        weights: [N] float64, how probable each is.
    """
    return (pairwise_chrf(texts) @ weights).tolist()


def pairwise_chrf(texts: Sequence[str]) -> Tensor:
    """sacreBLEU's sentence-level chrF of every text as hypothesis against every text as reference.

    CHRF.sentence_score counts the n-grams of both texts for every pair: 100 ms for 20 captions, several times what it
    takes to search them. Here sacreBLEU counts them once a text, and pairs are compared as tables: 13 ms.

    Returns:
        [N, N] float64, hypothesis by reference, in points (0 to 100).
    """
    counted = [extract_all_char_ngrams(text, CHRF.CHAR_ORDER) for text in texts]
    precision = recall = orders = torch.zeros(len(texts), len(texts), dtype=torch.float64)
    for counts in zip(*counted, strict=True):  # one order of n-grams: a Counter of each text
        table = _table(counts)  # [N, distinct n-grams]
        matches = torch.stack([torch.minimum(row, table).sum(1) for row in table])  # [N, N]
        totals = table.sum(1)  # [N]
        both = (totals[:, None] > 0) & (totals > 0)  # texts shorter than n say nothing of this order
        precision = precision + torch.where(both, matches / totals[:, None].clamp(min=1), 0)
        recall = recall + torch.where(both, matches / totals.clamp(min=1), 0)
        orders = orders + both
    precision, recall = precision / orders.clamp(min=1), recall / orders.clamp(min=1)
    weighted = CHRF.BETA**2 * precision + recall
    return torch.where(weighted > 0, 100 * (1 + CHRF.BETA**2) * precision * recall / weighted, 0)


def _table(counts: Sequence[Counter[str]]) -> Tensor:
    """How often each n-gram stands in each text: [N, distinct n-grams] float64."""
    columns = {ngram: i for i, ngram in enumerate(dict.fromkeys(ngram for counter in counts for ngram in counter))}
    table = torch.zeros(len(counts), len(columns), dtype=torch.float64)
    for row, counter in zip(table, counts, strict=True):
        row[[columns[ngram] for ngram in counter]] = torch.tensor(list(counter.values()), dtype=torch.float64)
    return table
