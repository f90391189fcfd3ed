"""What is wrong with a model in training, in plain words: each alarm names the likely cause and what to try.

Alarms are for a person who has left a run alone. They wait until the model has had a chance (MIN_EPOCHS or MIN_TOKENS),
since every model starts with empty, repeated and looping outputs. Thresholds are judgements, each beside its reason.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mtattn.alignment import Look
from mtattn.filtering import COPY_WORDS
from mtattn.scripts import num_words

MIN_EPOCHS = 5.0  # a small corpus: the bundled one is translated well by then
MIN_TOKENS = 3_000_000  # a large corpus: target tokens after which outputs follow their sources, whatever the epoch
MAX_EMPTY = 0.02  # share of outputs
MAX_ENDLESS = 0.05  # loops, and outputs cut at the length limit
MAX_SAME = 0.1  # share of the most frequent output, where references are not that alike
MAX_COPIED = 0.1
LEAST_RATIO, MOST_RATIO = 0.7, 1.4  # characters of all outputs over those of all references; good models lie within 5 %
MAX_GAP = 1.0  # nats a token: dev perplexity is e times that of training pairs
POOR_BLEU = 5.0  # attention is judged only where translations are poor: a good model may spread it
FLAT = 0.95  # entropy of attention over source words, relative to looking at all alike
LOOK_WORDS = 4  # of a source, at least: over fewer words attention is nearly flat by nature


@dataclass(frozen=True)
class Evidence:
    """One validation.

    Args:
        sources, references, outputs: [N] lines.
        flags: [N] what `mtattn.flags` says of each output.
        bleu: of the outputs.
        dev_loss: nats a token, without label smoothing.
        train_loss: the same measured on some training pairs, None if it was not.
        looks: where the words of some translations looked.
    """

    sources: Sequence[str]
    references: Sequence[str]
    outputs: Sequence[str]
    flags: Sequence[Sequence[str]]
    bleu: float
    dev_loss: float
    train_loss: float | None = None
    looks: Sequence[Look] = ()


def ready(*, epochs: float, tgt_tokens: int) -> bool:
    """Whether a model has had a chance: enough passes over the corpus, or enough target tokens trained on."""
    return epochs >= MIN_EPOCHS or tgt_tokens >= MIN_TOKENS


def alarms(evidence: Evidence) -> dict[str, str]:
    """What a person should look at in a model that is `ready`, by its name in ALARMS: "what: why, and what to try"."""
    return {name: message for name, check in ALARMS.items() if (message := check(evidence))}


def _empty(evidence: Evidence) -> str:
    filled = [output for source, output in zip(evidence.sources, evidence.outputs, strict=True) if source.strip()]
    share = sum(not output.strip() for output in filled) / max(len(filled), 1)
    if share <= MAX_EMPTY:
        return ""
    return (
        f"{share:.0%} of the translations are empty: the model ends sentences at once, often because many training "
        "targets are blank or far too short; run `mtattn doctor`, and lower optim.lr if the loss also stopped falling"
    )


def _same(evidence: Evidence) -> str:
    outputs = [output for output in evidence.outputs if output.strip()]
    if len(set(evidence.sources)) < 10 or not outputs:
        return ""
    output, count = Counter(outputs).most_common(1)[0]
    share = count / len(evidence.outputs)
    natural = Counter(evidence.references).most_common(1)[0][1] / len(evidence.references)
    if share <= max(MAX_SAME, 2 * natural):
        return ""
    return (
        f"{share:.0%} of the translations are the same: the model ignores its source and writes {_short(output)}; "
        "check that line n of one file translates line n of the other (`mtattn doctor`), then try a lower optim.lr or "
        "a longer optim.warmup"
    )


def _endless(evidence: Evidence) -> str:
    share = sum("loop" in flags or "cut" in flags for flags in evidence.flags) / max(len(evidence.flags), 1)
    if share <= MAX_ENDLESS:
        return ""
    return (
        f"{share:.0%} of the translations repeat themselves or never end: the model has trained too little, or the "
        "corpus holds such targets; if it lasts, look for misaligned or overlong pairs (`mtattn doctor`) and lower "
        "decode.max_len_ratio"
    )


def _copied(evidence: Evidence) -> str:
    rows = zip(evidence.sources, evidence.references, evidence.outputs, strict=True)
    judged = [
        _plain(source) == _plain(output)
        for source, reference, output in rows
        if num_words(source) > COPY_WORDS and _plain(source) != _plain(reference)
    ]
    share = sum(judged) / max(len(judged), 1)
    if share <= MAX_COPIED:
        return ""
    return (
        f"{share:.0%} of the translations copy their source: training pairs with the same text on both sides teach "
        "that; keep filter.identical = true and remove nearly identical pairs (`mtattn doctor`)"
    )


def _length(evidence: Evidence) -> str:
    wanted = sum(map(len, evidence.references))
    ratio = sum(map(len, evidence.outputs)) / max(wanted, 1)
    if not wanted or LEAST_RATIO <= ratio <= MOST_RATIO:
        return ""
    if ratio < 1:
        cause = "sentences end too early; training targets may lack a part of their source, or the model is not ready"
        remedy = "a larger decode.length_penalty for beam search"
    else:
        cause = "sentences end too late; training targets may hold more than their source, or the model is not ready"
        remedy = "a smaller decode.length_penalty and decode.max_len_ratio"
    return (
        f"the translations have {ratio:.2f} times the length of the references: {cause}; "
        f"look at the length ratios that `mtattn doctor` lists, then try {remedy}"
    )


def _gap(evidence: Evidence) -> str:
    if evidence.train_loss is None or evidence.dev_loss - evidence.train_loss <= MAX_GAP:
        return ""
    return (
        f"the loss is {evidence.dev_loss:.2f} nats a token on dev and {evidence.train_loss:.2f} on training pairs: the "
        "model learns them by heart, or dev is of another kind; try a larger model.dropout, tokenizer.sampling = 0.1, "
        "a smaller model or more data"
    )


def _flat(evidence: Evidence) -> str:
    if evidence.bleu >= POOR_BLEU:
        return ""
    entropies = [relative_entropy(look) for look in evidence.looks if len(look.src_words) >= LOOK_WORDS]
    if not entropies or sum(entropies) / len(entropies) < FLAT:
        return ""
    return (
        "every word of the translations looks at all source words alike: the decoder writes without its source; check "
        "that the two sides belong together (`mtattn doctor`), then try a lower optim.lr or a longer optim.warmup"
    )


def relative_entropy(look: Look) -> float:
    """Entropy of attention over the source words, mean over target words, as a share of its maximum: 0 to 1."""
    weights = look.weights[look.weights.sum(-1) > 0]  # [target words, source words]
    if not len(weights) or weights.shape[1] < 2:
        return 0.0
    entropy = torch.special.entr(weights).sum(-1).mean()
    return float(entropy) / float(torch.tensor(weights.shape[1]).log())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _short(text: str) -> str:
    return f'"{text}"' if len(text) <= 60 else f'"{text[:60]}..."'


ALARMS: dict[str, Callable[[Evidence], str]] = {
    "empty": _empty,
    "same": _same,
    "endless": _endless,
    "copied": _copied,
    "length": _length,
    "gap": _gap,
    "flat attention": _flat,
}
"""Name -> what it says of a validation, "" when all is well. A new alarm is a function above and a line here."""
