"""What the dev split says of a model: loss and perplexity on its targets, BLEU and chrF of its greedy translations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtattn.batching import collate
from mtattn.decode import DecodeConfig
from mtattn.evaluate import Scores, score
from mtattn.loss import cross_entropy
from mtattn.model import Transformer, evaluating
from mtattn.prepare import Pairs
from mtattn.tokenizer import Tokenizer
from mtattn.translate import Translator

NUM_SAMPLES = 3
BATCH_PAIRS = 128


@dataclass(frozen=True)
class Validation:
    """One validation: loss in nats a token without label smoothing, scores, and some (source, reference, output)."""

    loss: float
    scores: Scores
    samples: list[tuple[str, str, str]]

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


def validate(
    model: Transformer,
    tokenizer: Tokenizer,
    dev: Pairs,
    decode: DecodeConfig,
    *,
    check: Callable[[], None] = lambda: None,
) -> Validation:
    """Score a model on the dev split.

    Args:
        check: called between batches; may raise to give up.
    """
    loss = dev_loss(model, tokenizer, dev, check)
    greedy = replace(decode, search="beam", beam_size=1, nbest=1)
    translator = Translator(model, tokenizer, greedy)
    outputs = [translation.text for translation in translator.translate(dev.src, lambda _: check())]
    chosen = np.linspace(0, len(dev.src) - 1, min(NUM_SAMPLES, len(dev.src))).astype(int).tolist()
    samples = [(dev.src[i], dev.tgt[i], outputs[i]) for i in chosen]
    return Validation(loss, score(outputs, dev.tgt, ter=False), samples)


def dev_loss(model: Transformer, tokenizer: Tokenizer, dev: Pairs, check: Callable[[], None] = lambda: None) -> float:
    """Cross entropy in nats a target token, without label smoothing."""
    src, tgt = tokenizer.encode_src(dev.src), tokenizer.encode_tgt(dev.tgt)
    order = sorted(range(len(tgt)), key=lambda i: (len(tgt[i]), len(src[i])))
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with evaluating(model):
        for start in range(0, len(order), BATCH_PAIRS):
            check()
            chosen = order[start : start + BATCH_PAIRS]
            rows = _rows(src, chosen), _rows(tgt, chosen)
            batch = collate(*rows, np.array(chosen), pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id).to(device)
            nats, tokens = cross_entropy(model(batch.src, batch.tgt_in), batch.tgt_out, pad_id=tokenizer.pad_id)
            total += float(nats)
            count += int(tokens)
    return total / max(count, 1)


def _rows(ids: Sequence[Sequence[int]], chosen: Sequence[int]) -> list[Sequence[int]]:
    return [ids[i] for i in chosen]
