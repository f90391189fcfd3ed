"""What the dev split says of a model: loss and perplexity on its targets, BLEU and chrF of its greedy translations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from mtattn.alignment import look
from mtattn.batch import collate
from mtattn.batching import cut, spread
from mtattn.decode import DecodeConfig
from mtattn.evaluate import Scores, score
from mtattn.flags import flags
from mtattn.health import POOR_BLEU, Evidence, alarms, ready
from mtattn.model import Transformer, evaluating
from mtattn.prepare import Pairs
from mtattn.tokenizer import Tokenizer
from mtattn.translate import Translation, Translator

NUM_SAMPLES = 3
NUM_LOOKS = 32  # translations whose attention is judged
# By whether the model is on a GPU: pairs of a batch, and positions of it with padding, since dev is never filtered.
BATCH_PAIRS, BATCH_POSITIONS = {False: 128, True: 1024}, {False: 16_384, True: 262_144}
ROWS = 8192  # of logits at a time: 256 MB for a vocabulary of 8,000


@dataclass(frozen=True)
class Validation:
    """One validation.

    Args:
        loss: nats a token, without label smoothing.
        scores: BLEU and chrF of the greedy translations.
        samples: some (source, reference, output).
        alarms: what looks wrong, by name, in words (mtattn.health).
    """

    loss: float
    scores: Scores
    samples: list[tuple[str, str, str]]
    alarms: dict[str, str] = field(default_factory=dict)

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
    max_len: int = 256,
    epochs: float = 0.0,
    tgt_tokens: int = 0,
    trained_on: Pairs | None = None,
    check: Callable[[], None] = lambda: None,
) -> Validation:
    """Score a model on the dev split, and look whether it is healthy.

    Args:
        max_len: source pieces that the model was trained on at most; a longer line is translated in parts.
        epochs, tgt_tokens: how long the model has trained; it is not judged before it has had a chance.
        trained_on: some training pairs, to compare their loss with dev's.
        check: called between batches; may raise to give up.
    """
    loss = dev_loss(model, tokenizer, dev, check)
    translator = greedy_translator(model, tokenizer, decode, max_len=max_len)
    translations = list(translator.translate(dev.src, lambda _: check()))
    outputs = [translation.text for translation in translations]
    samples = [(dev.src[i], dev.tgt[i], outputs[i]) for i in spread(len(outputs), NUM_SAMPLES)]
    scores = score(outputs, dev.tgt, ter=False)
    if not ready(epochs=epochs, tgt_tokens=tgt_tokens):
        return Validation(loss, scores, samples)
    train_loss = dev_loss(model, tokenizer, trained_on, check) if trained_on is not None else None
    evidence = _evidence(translator, dev, translations, scores, loss, train_loss)
    return Validation(loss, scores, samples, alarms(evidence))


def greedy_translator(
    model: Transformer, tokenizer: Tokenizer, decode: DecodeConfig, *, max_len: int = 256
) -> Translator:
    """Translates as validation does: the one best token at a time, with the weights as they are."""
    greedy = replace(decode, search="beam", beam_size=1, nbest=1, quantization="none")
    return Translator(model, tokenizer, greedy, max_len=max_len)


def _evidence(
    translator: Translator,
    dev: Pairs,
    translations: Sequence[Translation],
    scores: Scores,
    loss: float,
    train_loss: float | None,
) -> Evidence:
    flagged = [
        [flag for part in translation.segments for flag in flags(part.hypotheses[0], part.texts[0])]
        for translation in translations
    ]
    looks = []
    if scores.bleu < POOR_BLEU:
        parts = [part for translation in translations for part in translation.segments]
        judged = [(part.src_ids, part.hypotheses[0].ids) for part in parts if part.hypotheses[0].ids]
        judged = [judged[i] for i in spread(len(judged), NUM_LOOKS)]
        if judged:
            looks = look(translator.model, translator.tokenizer, *zip(*judged, strict=True))
    outputs = [translation.text for translation in translations]
    return Evidence(dev.src, dev.tgt, outputs, flagged, scores.bleu, loss, train_loss, looks)


def dev_loss(model: Transformer, tokenizer: Tokenizer, dev: Pairs, check: Callable[[], None] = lambda: None) -> float:
    """Cross entropy in nats a target token, without label smoothing."""
    src, tgt = tokenizer.encode_src(dev.src), tokenizer.encode_tgt(dev.tgt)
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    src_lens, tgt_lens = (np.array([len(row) for row in rows]) for rows in (src, tgt))
    order, longest = np.lexsort((src_lens, tgt_lens)), np.maximum(src_lens, tgt_lens)  # by target length, then source
    parts = [order[start : start + BATCH_PAIRS[on_gpu]] for start in range(0, len(order), BATCH_PAIRS[on_gpu])]
    batches = [batch for part in parts for batch in cut(part, longest[part], BATCH_POSITIONS[on_gpu])]
    nats, count = torch.zeros((), device=device), 0
    with evaluating(model):
        for chosen in batches:
            check()
            some_src, some_tgt = ([side[i] for i in chosen] for side in (src, tgt))
            batch = collate(some_src, some_tgt, chosen, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id).to(device)
            hidden, targets = model.hidden(batch.src, batch.tgt_in).flatten(0, 1), batch.tgt_out.flatten()  # [B*T, D]
            for some, ids in zip(torch.split(hidden, ROWS), torch.split(targets, ROWS), strict=True):
                logits = model.logits(some).float()  # [ROWS, V]
                nats += F.cross_entropy(logits, ids, ignore_index=tokenizer.pad_id, reduction="sum")
            count += batch.num_tokens
    return float(nats) / max(count, 1)  # the only number that is waited for
