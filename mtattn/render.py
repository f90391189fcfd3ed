"""How a translation is written: as text, or as one JSON object a line."""

import json
from typing import Any

from mtattn.alignment import look
from mtattn.translate import Segment, Translation, Translator

LOOP_REPEATS = 4  # an n-gram this often in a row is a loop, not a style


def as_text(translation: Translation) -> str:
    """The n-best translations on one line, separated by tabs; "" for a blank line."""
    return "\t".join(translation.texts)


def as_json(translation: Translation, translator: Translator) -> str:
    """Text, flags and hypotheses: score, log-probability by token (nats), tokens, word alignment (source, target).

    A line that was split has the hypotheses of each part, in `segments`.
    """
    segments = [_describe(segment, translator) for segment in translation.segments]
    described = {flag for segment in segments for flag in segment[0]["flags"]}
    flags = sorted(described.union(*(segment.flags for segment in translation.segments)))
    out: dict[str, Any] = {"text": translation.text, "flags": flags}
    if len(segments) > 1:
        out["flags"] = sorted([*flags, "split"])
        out["segments"] = [{"hypotheses": segment} for segment in segments]
    else:
        out["hypotheses"] = segments[0] if segments else []
    return json.dumps(out, ensure_ascii=False)


def _describe(segment: Segment, translator: Translator) -> list[dict[str, Any]]:
    sources = [segment.src_ids] * len(segment.hypotheses)
    looks = look(translator.model, translator.tokenizer, sources, [h.ids for h in segment.hypotheses])
    return [
        {
            "text": text,
            "score": hypothesis.score,
            "log_prob": hypothesis.log_prob,
            "tokens": translator.tokenizer.tgt_pieces(hypothesis.ids),
            "token_log_probs": hypothesis.token_log_probs,
            "alignment": seen.links(),
            "flags": flags(hypothesis.ids, finished=hypothesis.finished),
        }
        for text, hypothesis, seen in zip(segment.texts, segment.hypotheses, looks, strict=True)
    ]


def flags(ids: list[int], *, finished: bool) -> list[str]:
    """What is suspicious: "empty", "cut" at the length limit, "loop"."""
    found = [] if ids else ["empty"]
    if not finished:
        found.append("cut")
    if any(_loops(ids, n) for n in range(1, 5)):
        found.append("loop")
    return found


def _loops(ids: list[int], n: int) -> bool:
    """Whether some n-gram stands LOOP_REPEATS times in a row."""
    same = 0
    for i in range(n, len(ids)):
        same = same + 1 if ids[i] == ids[i - n] else 0
        if same >= n * (LOOP_REPEATS - 1):
            return True
    return False
