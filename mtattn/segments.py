"""Input longer than a model was trained for, cut where sentences end, so that nothing is dropped."""

import re
from collections.abc import Callable

# After a full stop, question or exclamation mark (of several scripts) and before white space; after those of Chinese
# and Japanese, which write no spaces, also before all but more marks and closing brackets. Else after words.
SENTENCE_END = re.compile(r"(?<=[.!?…।])(?=\s)|(?<=[。！？])(?![。！？…」』）”])")
WORD_END = re.compile(r"(?=\s)")


def split_long(text: str, length: Callable[[str], int], limit: int) -> list[str]:
    """Cut a text into consecutive parts of at most `limit`, at sentence ends where possible, else words, else anywhere.

    Args:
        text: one line.
        length: measures a part, in pieces; longer text never measures less.
        limit: at least 1; what is longer is one character, which some normalizations spell out.

    Returns:
        Parts that hold all words of the text in order, white space between them as one space, and none around them.
    """
    text = " ".join(text.split())
    if length(text) <= limit:
        return [text]
    for border in (SENTENCE_END, WORD_END):
        units = [unit for unit in border.split(text) if unit]  # a space leads the next unit
        if len(units) > 1:
            return _pack(units, length, limit)
    middle = len(text) // 2
    if not middle:
        return [text]
    return split_long(text[:middle], length, limit) + split_long(text[middle:], length, limit)


def _pack(units: list[str], length: Callable[[str], int], limit: int) -> list[str]:
    """Join neighbours while they fit; a unit that does not fit alone is cut further."""
    parts: list[str] = []
    current, used = "", 0
    for unit in units:
        # Lengths add up at spaces; without one, what stands before a unit changes the pieces that it is cut into.
        alone = length(unit.lstrip())
        total = used + alone if unit[0].isspace() else length((current + unit).lstrip())
        if current and total > limit:
            parts.append(current.lstrip())
            current, used, total = "", 0, alone
        if total > limit:
            parts.extend(split_long(unit.lstrip(), length, limit))
        else:
            current += unit
            used = total
    return [*parts, current.lstrip()] if current else parts
