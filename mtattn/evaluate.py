"""Hypotheses and references to sacreBLEU scores, each with the signature that says how it was computed."""

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from mtattn.scripts import unspaced


@dataclass(frozen=True)
class Scores:
    """Corpus scores in points (0 to 100; TER may exceed 100), and sacreBLEU's signature of each."""

    bleu: float
    chrf: float
    ter: float | None
    signature: dict[str, str]
    num_sentences: int


def score(hypotheses: Sequence[str], references: Sequence[str], *, ter: bool = True) -> Scores:
    """Score detokenised text against one reference a sentence (Papineni 2002, Popovic 2015, Snover 2006; Post 2018).

    BLEU counts words as sacreBLEU's 13a finds them, or characters where references have no spaces between words: a
    whole clause of Chinese would count as one word. The signature says which.

    Args:
        hypotheses, references: equally many lines.
        ter: also compute TER, which takes longer than the others together.

    Raises:
        ValueError: their numbers differ, or there are none.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} hypotheses, {len(references)} references; give equally many, at least 1")
    tokenizer = "char" if unspaced(references) else "13a"
    metrics: dict[str, BLEU | CHRF | TER] = {"bleu": BLEU(tokenize=tokenizer), "chrf": CHRF()}
    if ter:
        metrics["ter"] = TER()
    points = {name: metric.corpus_score(list(hypotheses), [list(references)]).score for name, metric in metrics.items()}
    signature = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    return Scores(points["bleu"], points["chrf"], points.get("ter"), signature, len(references))
