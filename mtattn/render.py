"""How a translation is written: as text, or as one JSON object a line."""

import json
from typing import Any

from mtattn.alignment import look
from mtattn.flags import flags
from mtattn.translate import Segment, Translation, Translator


def as_text(translation: Translation) -> str:
    """The n-best translations on one line, separated by tabs, which they do not hold then; "" for a blank line."""
    texts = translation.texts
    return texts[0] if len(texts) == 1 else "\t".join(text.replace("\t", " ") for text in texts)


def as_json(translation: Translation, translator: Translator) -> str:
    """Text, flags and hypotheses: score, log-probability by token (nats), tokens, word alignment (source, target).

    A line that was split has the hypotheses of each part, in `segments`.
    """
    segments = [_describe(segment, translator) for segment in translation.segments]
    out: dict[str, Any] = {"text": translation.text, "flags": sorted(translation.flags)}
    if len(segments) > 1:
        out["segments"] = segments
    else:
        out |= segments[0] if segments else {"hypotheses": []}
    return json.dumps(out, ensure_ascii=False)


def _describe(segment: Segment, translator: Translator) -> dict[str, Any]:
    sources = [segment.src_ids] * len(segment.hypotheses)
    looks = look(translator.model, translator.tokenizer, sources, [h.ids for h in segment.hypotheses])
    hypotheses = [
        {
            "text": text,
            "score": hypothesis.score,
            "log_prob": hypothesis.log_prob,
            "tokens": translator.tokenizer.tgt_pieces(hypothesis.ids),
            "token_log_probs": hypothesis.token_log_probs,
            "alignment": seen.links(),
            "flags": flags(hypothesis, text),
        }
        for text, hypothesis, seen in zip(segment.texts, segment.hypotheses, looks, strict=True)
    ]
    return {"source_words": looks[0].src_words, "hypotheses": hypotheses}
