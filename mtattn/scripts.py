"""Scripts that write no spaces between words, as those of Chinese, Japanese and Thai: told from the text alone."""

from collections.abc import Iterable

CHARS_PER_WORD = 15  # between white space; more than any language has that writes spaces between words


def chars_per_word(texts: Iterable[str]) -> float:
    """Characters of some texts for each word of them, as white space divides them; 0 where there is no text."""
    chars = words = 0
    for text in texts:
        chars += len(text)
        words += len(text.split())
    return chars / max(words, 1)


def unspaced(texts: Iterable[str]) -> bool:
    """Whether words of these texts have no spaces between them."""
    return chars_per_word(texts) > CHARS_PER_WORD
