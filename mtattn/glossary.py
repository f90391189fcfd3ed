"""A glossary: where a source term stands in a line, its target term has to stand in the translation, as whole words.

Lines whose best translation lacks a term are searched again, once for each place between two of its words: up to there
the translation is forced, then comes the term, and the search goes on freely. The likeliest wins. So the search
itself knows of no terms (as that of Post & Vilar 2018 does, https://arxiv.org/abs/1804.06609), and since the end of the
translation is one of the places, a term is missing only where [decode] leaves no room for it or forbids to repeat it.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mtattn.errors import ConfigError, FileError
from mtattn.history import Hypothesis
from mtattn.scripts import CHARS, UNSPACED
from mtattn.tokenizer import BYTE_PIECE, Tokenizer
from mtattn.translate import Part, Search, Segment

# What terms are looked up by: a part of a word where that has combining marks, a character in scripts without spaces.
WORD = re.compile(rf"[{CHARS}]|[^\W{CHARS}]+")
STARTS = 12  # searched together: as many sources of 256 pieces, with a beam of 5, as a CPU's batch has room for


@dataclass(frozen=True)
class Term:
    """One line of a glossary.

    in_source: finds the source term in text that is `_folded`, as the term itself is. in_target: finds the target term
    as it is written, or with a capital where a translation starts. ids: the target term's; inner_ids: without a space
    before it, where it follows on text of a script that has none, as it has none itself.
    """

    source: str
    in_source: re.Pattern[str]
    in_target: re.Pattern[str]
    ids: list[int]
    inner_ids: list[int]

    def met(self, text: str) -> bool:
        """Whether a translation has the target term, as whole words."""
        return any(_whole_words(self.in_target, text))


class Glossary:
    """Terms, and how many of them translations had; a `Refine` of the Translator.

    Of a line that is too long for the model, terms are looked for in each part.

    Args:
        terms: each source term once.
        tokenizer: the model's.

    Attributes:
        num_asked: terms that translations had to have so far: each counts once a line (or part of a long one).
        num_free: those that the search found by itself.
        num_met: those that the translations have.
    """

    def __init__(self, terms: Sequence[Term], tokenizer: Tokenizer) -> None:
        self._by_word: dict[str, list[Term]] = defaultdict(list)  # by the first word; "" where there is none
        for term in terms:
            self._by_word[_first_word(term.source)].append(term)
        self._tokenizer = tokenizer
        pieces = tokenizer.tgt_pieces(range(tokenizer.tgt_vocab_size))
        self._continues = [_goes_on(piece[0]) or bool(BYTE_PIECE.fullmatch(piece)) for piece in pieces]
        self.num_asked = self.num_free = self.num_met = 0

    def terms_in(self, text: str) -> list[Term]:
        """The terms that stand in a source text, in its order; of those that overlap the first and longest."""
        text = _folded(text)
        words = {"", *WORD.findall(text)}
        spans = [
            (match.start(), -match.end(), term)
            for word in words
            for term in self._by_word.get(word, ())
            for match in _whole_words(term.in_source, text)
        ]
        found, end = dict[str, Term](), 0
        for start, negated_end, term in sorted(spans, key=lambda span: span[:2]):
            if start >= end:
                found[term.source] = term
                end = -negated_end
        return list(found.values())

    def __call__(self, parts: Sequence[Part], segments: Sequence[Segment], search: Search) -> list[Segment]:
        """The segments, those that lacked terms searched again; flagged "glossary-missed" if that did not help."""
        return [self._with_terms(part, segment, search) for part, segment in zip(parts, segments, strict=True)]

    def _with_terms(self, part: Part, free: Segment, search: Search) -> Segment:
        terms = self.terms_in(part.text)
        segment = free
        for term in terms:
            kept = [other for other in terms if other.met(segment.texts[0])]
            if term not in kept:
                segment = self._inserted(part, segment, [term], kept, search) or segment
        if not all(term.met(segment.texts[0]) for term in terms):  # the first terms left the others no room
            segment = self._inserted(part, free, terms, [], search) or segment
        met = [term for term in terms if term.met(segment.texts[0])]
        self.num_asked += len(terms)
        self.num_free += sum(term.met(free.texts[0]) for term in terms)
        self.num_met += len(met)
        as_good = [i for i, text in enumerate(segment.texts) if all(term.met(text) for term in met)]
        return replace(
            segment,
            hypotheses=[segment.hypotheses[i] for i in as_good],
            texts=[segment.texts[i] for i in as_good],
            flags=segment.flags if len(met) == len(terms) else segment.flags | {"glossary-missed"},
        )

    def _inserted(
        self, part: Part, segment: Segment, terms: Sequence[Term], kept: Sequence[Term], search: Search
    ) -> Segment | None:
        """With these terms, one after the other, and still with `kept`, in each hypothesis; None: no room."""
        ids = segment.hypotheses[0].ids
        places = [t for t in range(len(part.prefix), len(ids)) if not (t and self._continues[ids[t]])] + [len(ids)]
        starts = [self._followed(ids[:t], terms) for t in places]
        found = [segment]
        for first in range(0, len(starts), STARTS):
            some = starts[first : first + STARTS]
            whole = WordEnd([len(start) for start in some], self._continues)
            found += search([replace(part, prefix=start) for start in some], [whole])
        return _best(found, [*terms, *kept])

    def _followed(self, ids: list[int], terms: Sequence[Term]) -> list[int]:
        for term in terms:
            inner = UNSPACED.match(self._tokenizer.decode(ids)[-1:])
            ids = [*ids, *(term.inner_ids if inner else term.ids)]
        return ids

    def report(self) -> str:
        """The hit rate, for people."""
        share = f" ({100 * self.num_met / self.num_asked:.1f} %)" if self.num_asked else ""
        return (
            f"glossary: {self.num_met} of {self.num_asked} terms{share} stand in the translations; "
            f"{self.num_free} did by themselves"
        )


class WordEnd:
    """Makes a word of each target end at a given place (see `mtattn.processors.Processor`).

    Args:
        lengths: for each sentence, the tokens before that place.
        continues: [V] bool, which tokens would go on with a word.
    """

    def __init__(self, lengths: Sequence[int], continues: Sequence[bool]) -> None:
        self.lengths, self.continues = torch.tensor(lengths), torch.tensor(continues)

    def __call__(self, log_probs: Tensor, history: Tensor, sentences: Tensor) -> Tensor:
        self.lengths, self.continues = self.lengths.to(log_probs.device), self.continues.to(log_probs.device)
        here = self.lengths[sentences] == history.size(2)  # [N]
        return log_probs.masked_fill_(here[:, None, None] & self.continues, -torch.inf)


def _best(segments: Sequence[Segment], terms: Sequence[Term]) -> Segment | None:
    """The first segment with the best of all hypotheses that have the terms: finished ones first, the likeliest first.

    As many as it had, each text once; None where no hypothesis has the terms. The score, a mean over tokens, would
    prefer to say things twice: "Ein Mann Herr mit Hut" has only one token that is unlikely, of many.
    """
    pool = [
        (hypothesis, text)
        for segment in segments
        for hypothesis, text in zip(segment.hypotheses, segment.texts, strict=True)
        if all(term.met(text) for term in terms)
    ]
    if not pool:
        return None
    best = dict[str, Hypothesis]()
    for hypothesis, text in sorted(pool, key=lambda pair: (not pair[0].finished, -pair[0].log_prob)):
        best.setdefault(text, hypothesis)
    count = len(segments[0].texts)
    return replace(segments[0], hypotheses=list(best.values())[:count], texts=list(best)[:count])


def load_glossary(path: Path, tokenizer: Tokenizer) -> Glossary:
    """Read a glossary: a line a term, the source term, a tab, the target term; blank lines are skipped.

    Raises:
        FileError: it cannot be read. ConfigError: a line is not UTF-8 or not two terms, repeats a source term, or has a
            target term that the tokenizer cannot write.
    """
    try:
        raw_lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None
    terms, first = list[Term](), dict[str, int]()
    numbers = {piece: i for i, piece in enumerate(tokenizer.tgt_pieces(range(tokenizer.tgt_vocab_size)))}
    for number, raw in enumerate(raw_lines, start=1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        term = _parse(raw, where, tokenizer, numbers)
        if first.setdefault(_folded(term.source), number) != number:
            raise ConfigError(f"{where}: {term.source!r} stands at line {first[_folded(term.source)]} already")
        terms.append(term)
    return Glossary(terms, tokenizer)


def _parse(raw: bytes, where: str, tokenizer: Tokenizer, numbers: Mapping[str, int]) -> Term:
    try:
        fields = raw.decode("utf-8").split("\t")
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not valid UTF-8") from None
    source, target = (" ".join(field.split()) for field in fields) if len(fields) == 2 else ("", "")
    if not source or not target:
        raise ConfigError(f"{where}: expected a source term, one tab and a target term")
    ids = tokenizer.encode_tgt([target])[0][:-1]
    if (spelled := tokenizer.decode(ids)) != target:
        raise ConfigError(f"{where}: the tokenizer cannot spell {target!r}: it would write {spelled!r}")
    at_start = f"|^{re.escape(target[:1].upper() + target[1:])}"
    in_source = r"\s+".join(re.escape(word) for word in _folded(source).split())
    inner_ids = ids
    if UNSPACED.match(target):
        bare = tokenizer.tgt_pieces(ids[:1])[0].removeprefix("▁")
        inner_ids = ids[1:] if not bare else [numbers.get(bare, ids[0]), *ids[1:]]
    return Term(source, re.compile(in_source), re.compile(re.escape(target) + at_start), ids, inner_ids)


def _whole_words(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Where a pattern matches and no word goes on right before or after; matches may overlap."""
    match = pattern.search(text)
    while match:
        start, end = match.span()
        if not (any(map(_in_word, text[start - 1 : start])) or any(map(_goes_on, text[end : end + 1]))):
            yield match
        match = pattern.search(text, start + 1)


def _goes_on(char: str) -> bool:
    """Whether a word goes on with it: a mark, as vowels of Devanagari and Thai are, or what `_in_word` says."""
    return unicodedata.category(char).startswith("M") or _in_word(char)


def _in_word(char: str) -> bool:
    r"""Whether a word that it belongs to may go on: a letter, a digit, an underscore (\w), or a mark on one.

    In scripts without spaces nothing tells where a word ends, so that any place will do.
    """
    is_part = char.isalnum() or char == "_" or unicodedata.category(char).startswith("M")
    return is_part and not UNSPACED.match(char)


def _first_word(text: str) -> str:
    match = WORD.search(_folded(text))
    return match[0] if match else ""


def _folded(text: str) -> str:
    """The text without what spellings of one word differ in: capitals, and characters in one piece or composed."""
    return unicodedata.normalize("NFKC", text).casefold()
