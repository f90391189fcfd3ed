"""What can be wrong with a parallel corpus: CHECKS lists every check with why it matters and how to mend it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtattn.corpus_facts import NUM_EXAMPLES, CorpusFacts, SplitFacts
from mtattn.shift import NEAR, find_shifts, scan, unrelated_share

Level = Literal["fatal", "warning", "note"]

REACH_UNEQUAL = 200  # lines that a side may have slipped by where the two files differ in length
OUTLIER = 4.0  # a pair's length ratio over the usual one, or the inverse, from which it is far off
OUTLIER_CHARS = 20  # shorter texts vary that much by nature


@dataclass(frozen=True)
class Symptom:
    """One thing that a check saw. `where` holds some places as file:line."""

    level: Level
    what: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A symptom with its check's name, the split it was seen in, why it matters, and the fix."""

    level: Level
    check: str
    split: str
    what: str
    where: tuple[str, ...]
    why: str
    fix: str


@dataclass(frozen=True)
class Check:
    """One kind of fault: how to look for it in a split, why it matters, and the fix."""

    look: Callable[[SplitFacts, CorpusFacts], Iterable[Symptom]]
    why: str
    fix: str


def run_checks(facts: CorpusFacts) -> list[Finding]:
    """Every finding, the worst first."""
    findings = [
        Finding(symptom.level, name, split.name, symptom.what, symptom.where, check.why, check.fix)
        for name, check in CHECKS.items()
        for split in facts.splits.values()
        for symptom in check.look(split, facts)
    ]
    order: tuple[Level, ...] = ("fatal", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def _graded(
    tally: str, what: str, *, warning: float, fatal: float = float("inf")
) -> Callable[[SplitFacts, CorpusFacts], Iterable[Symptom]]:
    """A check of one tally; `warning` and `fatal` are the shares of a split's pairs from which it is that serious."""

    def look(split: SplitFacts, _: CorpusFacts) -> Iterable[Symptom]:
        seen = split.tallies.get(tally)
        if seen is not None:
            share = seen.count / len(split)
            yield Symptom(_level(share, warning, fatal), f"{_pairs(seen.count, split)} {what}", tuple(seen.where))

    return look


def _unreadable(split: SplitFacts, _: CorpusFacts) -> Iterable[Symptom]:
    if split.error:
        yield Symptom("fatal", split.error)
    elif not len(split):
        yield Symptom("fatal", "the corpus is empty")


def _invalid(split: SplitFacts, facts: CorpusFacts) -> Iterable[Symptom]:
    seen = split.tallies.get("invalid utf-8")
    if seen is not None:
        dropped = split.name == "train" and facts.config.data.errors == "skip"
        level: Level = "note" if dropped else "fatal"
        yield Symptom(level, f"{_pairs(seen.count, split)} are not valid UTF-8", tuple(seen.where))


def _shifted(split: SplitFacts, _: CorpusFacts) -> Iterable[Symptom]:
    reach = REACH_UNEQUAL if split.error else NEAR
    shifts = find_shifts(*split.chars, reach)
    if not shifts:
        return
    count = sum(shift.stop - shift.start for shift in shifts)
    parts = ", ".join(
        f"from {split.place(shift.start)} to {split.lines[shift.stop - 1]} source line n goes with target line "
        f"n{shift.by:+d}"
        for shift in shifts[:NUM_EXAMPLES]
    ) + (f", and {len(shifts) - NUM_EXAMPLES} more parts" if len(shifts) > NUM_EXAMPLES else "")
    where = tuple(split.place(shift.start) for shift in shifts[:NUM_EXAMPLES])
    yield Symptom(_level(count / len(split), 0, 0.01), f"{_pairs(count, split)} slipped: {parts}", where)


def _unrelated(split: SplitFacts, _: CorpusFacts) -> Iterable[Symptom]:
    windows, size = scan(*split.chars)
    share = unrelated_share(windows)
    if share >= 0.5 and len(windows) >= 4:
        what = f"long sentences do not have long translations in {share:.0%} of the stretches of {size} lines"
        yield Symptom("warning", what, (split.place(0),))


def _length_ratio(split: SplitFacts, _: CorpusFacts) -> Iterable[Symptom]:
    src, tgt = (np.asarray(side, dtype=np.float64) for side in split.chars)
    filled = (src > 0) & (tgt > 0)
    if not filled.any():
        return
    ratio = np.log(np.maximum(tgt, 1) / np.maximum(src, 1))
    usual = float(np.median(ratio[filled]))
    off = filled & (np.abs(ratio - usual) > np.log(OUTLIER)) & (np.maximum(src, tgt) >= OUTLIER_CHARS)
    if count := int(off.sum()):
        what = f"{_pairs(count, split)} are {OUTLIER:g} times longer or shorter than usual ({np.exp(usual):.2f} target "
        yield Symptom(_level(count / len(split), 0.01), what + "characters a source character)", _places(split, off))


def _duplicate(split: SplitFacts, facts: CorpusFacts) -> Iterable[Symptom]:
    repeated = ~_first_of_each(split.pair_hashes) & _filled(split)
    if count := int(repeated.sum()):
        kept = split.name == "train" and not facts.config.filter.duplicate
        level = _level(count / len(split), 0.01 if kept else float("inf"))
        fate = "" if kept or split.name != "train" else "; training drops them (filter.duplicate)"
        yield Symptom(level, f"{_pairs(count, split)} repeat an earlier one{fate}", _places(split, repeated))


def _several_targets(split: SplitFacts, _facts: CorpusFacts) -> Iterable[Symptom]:
    distinct = np.flatnonzero(_first_of_each(split.pair_hashes) & _filled(split))
    sources = np.asarray(split.src_hashes)[distinct]
    _, first, counts = np.unique(sources, return_index=True, return_counts=True)
    if several := int((counts > 1).sum()):
        where = tuple(split.place(int(distinct[i])) for i in np.sort(first[counts > 1])[:NUM_EXAMPLES])
        what = f"{several:,} sources have several translations, one of them {int(counts.max())}"
        yield Symptom("note", what, where)


def _leaked(split: SplitFacts, facts: CorpusFacts) -> Iterable[Symptom]:
    dropped = split.name == "train" and facts.config.filter.leaked
    fate = "; training drops them (filter.leaked)" if dropped else ""
    for other in facts.splits:
        if seen := split.tallies.get(f"leaked {other}"):
            level: Level = "note" if dropped else _leak_level(f"leaked {other}", split, facts.splits[other])
            what = f"{_pairs(seen.count, split)} hold a sentence of {other}{fate}"
            yield Symptom(level, what, tuple(seen.where))


def _nearly_leaked(split: SplitFacts, facts: CorpusFacts) -> Iterable[Symptom]:
    for other in facts.splits:
        if seen := split.tallies.get(f"near {other}"):
            what = f"{_pairs(seen.count, split)} hold a sentence of {other} but for case, punctuation or spaces"
            yield Symptom(_leak_level(f"near {other}", split, facts.splits[other]), what, tuple(seen.where))


def _unseen_characters(split: SplitFacts, facts: CorpusFacts) -> Iterable[Symptom]:
    if split.name == "train" or "train" not in facts.splits or not len(facts.splits["train"]):
        return
    for side, name in enumerate(("source", "target")):
        unseen = sorted(c for c in split.alphabet[side] - facts.splits["train"].alphabet[side] if c.isprintable())
        if unseen:
            shown = " ".join(unseen[:20]) + (" ..." if len(unseen) > 20 else "")
            level: Level = "warning" if len(unseen) > 0.1 * len(split.alphabet[side]) else "note"
            yield Symptom(level, f"{len(unseen)} {name} characters never occur in train: {shown}")


def _level(share: float, warning: float, fatal: float = float("inf")) -> Level:
    return "fatal" if share >= fatal else "warning" if share >= warning else "note"


def _leak_level(name: str, split: SplitFacts, held_out: SplitFacts) -> Level:
    # By the share of its sources or targets that are known: a sentence that is often here spoils one pair alone.
    share = max(map(len, split.found[name])) / len(held_out)
    return _level(share, 0.01, 0.2 if held_out.name == "test" else float("inf"))


def _pairs(count: int, split: SplitFacts) -> str:
    return f"{count:,} of {len(split):,} pairs ({count / len(split):.1%})"


def _filled(split: SplitFacts) -> NDArray[Any]:
    return (np.asarray(split.chars[0]) > 0) & (np.asarray(split.chars[1]) > 0)


def _first_of_each(values: Iterable[int]) -> NDArray[Any]:
    """[N] True where a value has not occurred before."""
    values = np.asarray(values)
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _places(split: SplitFacts, chosen: NDArray[Any]) -> tuple[str, ...]:
    return tuple(split.place(int(i)) for i in np.flatnonzero(chosen)[:NUM_EXAMPLES])


CHECKS: dict[str, Check] = {
    "unreadable": Check(
        _unreadable,
        why="training cannot start from it",
        fix="mend that, then run `mtattn doctor` again",
    ),
    "invalid utf-8": Check(
        _invalid,
        why="training stops at such a line, rather than learn broken characters",
        fix='convert the file with iconv, or drop such training pairs with data.errors = "skip"',
    ),
    "shifted": Check(
        _shifted,
        why="from there on every source line stands beside the translation of another",
        fix="compare the two files around the first line named: one has a line too many or lacks one; align them again",
    ),
    "unrelated": Check(
        _unrelated,
        why="translations follow the length of their source; these do not, so the files may not belong together",
        fix="read some pairs side by side; take the files from one release, or align them again",
    ),
    "swapped": Check(
        _graded("swapped", "have the two languages the other way round", warning=0.01, fatal=0.2),
        why="the model is taught, or scored on, the opposite direction; judged by the words frequent early in train",
        fix="exchange the two files of that source, or its columns, so that all splits have one direction",
    ),
    "identical": Check(
        _graded("identical", "have the same sentence on both sides", warning=0.05, fatal=0.5),
        why="the model learns to copy instead of translating",
        fix="remove untranslated lines (filter.identical = true drops them), or check that two files were named",
    ),
    "blank": Check(
        _graded("blank", "have a blank side", warning=0.05, fatal=1),
        why="training drops them; in dev and test they score 0, and many of them hint at a broken extraction",
        fix="remove both lines of such a pair",
    ),
    "foreign script": Check(
        _graded("foreign script", "are mostly in a script that their side does not use", warning=0.01),
        why="these sentences are in another language, or still in the source language",
        fix="remove these pairs, or move them to the side they belong to",
    ),
    "mixed word": Check(
        _graded("mixed word", "have a word of both Latin and Cyrillic letters", warning=0.01),
        why="letters that only look alike make another word for the model",
        fix="replace the look-alike letters, usually left by OCR or a keyboard, by those of the language",
    ),
    "length ratio": Check(
        _length_ratio,
        why="one side of such a pair has text that the other lacks",
        fix="remove the pairs, or lower filter.max_ratio so that training drops them",
    ),
    "duplicate": Check(
        _duplicate,
        why="what is repeated counts many times, in training and in a score",
        fix="remove repeated pairs (filter.duplicate = true does so in training)",
    ),
    "several targets": Check(
        _several_targets,
        why="the model learns a mixture of them, and a score against one reference counts the others as wrong",
        fix="nothing to do when they are real alternatives; many for one source are usually placeholders to remove",
    ),
    "leaked": Check(
        _leaked,
        why="a score on sentences that were trained on says nothing about new text",
        fix="keep filter.leaked = true, and make dev and test of different sentences",
    ),
    "nearly leaked": Check(
        _nearly_leaked,
        why="training keeps such pairs, for filter.leaked compares exactly; the score comes out too high",
        fix="remove these pairs from train",
    ),
    "unseen characters": Check(
        _unseen_characters,
        why="they are spelt in bytes whose embeddings no training pair has formed",
        fix="nothing to do for a few; many mean that the splits differ in origin, encoding or normalisation",
    ),
}
"""Name -> check. A new one is a function above and an entry here."""
