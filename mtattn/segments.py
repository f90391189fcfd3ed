"""Lines that hold more than a model was trained on, cut where sentences end, so that nothing is dropped.

A model whose corpus has a sentence a line takes what ends a sentence for the end of all: of two sentences on a line it
translates one and a half.
"""

import re
from collections.abc import Callable, Iterable

# After a full stop, question or exclamation mark (of several scripts) and before white space; after those of Chinese
# and Japanese, which write no spaces, also before all but more marks and closing brackets.
SENTENCE_END = re.compile(r"(?<=[.!?…।])(?=\s)|(?<=[。！？])(?![。！？…」』）”])")
# What has a full stop and seldom ends a sentence: a letter (J. Smith, a.m.), Latin letters without a vowel (Dr., Mrs.),
# and a small number (in German an ordinal).
ABBREVIATION = re.compile(r"(?<!\w)(?:\d{1,2}|(?:[^\W\d_]\.)*[^\W\d_]|[bcdfghjklmnpqrstvwxz]+)\.$", re.IGNORECASE)
LONGEST = 20  # characters of an abbreviation: in a line of a megabyte no more are looked at for each stop
WORD_END = re.compile(r"(?=\s)")
SELDOM = 200  # lines, of which a corpus has one with so many sentences that its model has learnt to go on


def sentences(text: str) -> list[str]:
    """The sentences of a line, in order; white space between two leads the second."""
    found: list[list[str]] = []
    worded = False  # whether the last one has a letter or a digit: ". . ." is none by itself
    for unit in filter(None, SENTENCE_END.split(text)):
        has_word = any(map(str.isalnum, unit))
        if found and (not (worded and has_word) or _goes_on(found[-1][-1], unit)):
            found[-1].append(unit)
            worded = worded or has_word
        else:
            found.append([unit])
            worded = has_word
    return ["".join(units) for units in found]


def _goes_on(before: str, unit: str) -> bool:
    """Whether a sentence does not end between these two: before a small letter, or after an abbreviation."""
    return unit[0].isspace() and bool(unit.lstrip()[0].islower() or ABBREVIATION.search(before[-LONGEST:]))


def learnt_sentences(texts: Iterable[str]) -> int:
    """How many sentences a line may have for a model of these training lines: more than one in SELDOM has so many."""
    counts = sorted((len(sentences(text)) for text in texts), reverse=True)
    return max(1, counts[len(counts) // SELDOM])


def split_long(text: str, length: Callable[[str], int], limit: int, most: int = 0) -> list[str]:
    """Cut a text into consecutive parts of at most `limit`, at sentence ends where possible, else words, else anywhere.

    Args:
        text: one line.
        length: measures a part, in pieces; longer text never measures less.
        limit: at least 1; what is longer is one character, which some normalizations spell out.
        most: sentences of a part; 0: any number.

    Returns:
        Parts that hold all words of the text in order, white space between them as one space, and none around them.
    """
    text = " ".join(text.split())
    units = sentences(text)
    if length(text) <= limit and not 0 < most < len(units):
        return [text]
    if len(units) > 1:
        return _pack(units, length, limit, most)
    units = [unit for unit in WORD_END.split(text) if unit]  # a space leads the next unit
    if len(units) > 1:
        return _pack(units, length, limit)
    middle = len(text) // 2
    if not middle:
        return [text]
    return split_long(text[:middle], length, limit) + split_long(text[middle:], length, limit)


def _pack(units: list[str], length: Callable[[str], int], limit: int, most: int = 0) -> list[str]:
    """Join neighbours while they fit, at most so many; a unit that does not fit alone is cut further."""
    parts: list[str] = []
    current, used, count = "", 0, 0
    for unit in units:
        # Lengths add up at spaces; without one, what stands before a unit changes the pieces that it is cut into.
        alone = length(unit.lstrip())
        total = used + alone if unit[0].isspace() else length((current + unit).lstrip())
        if current and (total > limit or count == most > 0):
            parts.append(current.lstrip())
            current, total, count = "", alone, 0
        if total > limit:
            parts.extend(split_long(unit.lstrip(), length, limit))
            used = 0
        else:
            current += unit
            used, count = total, count + 1
    return [*parts, current.lstrip()] if current else parts
