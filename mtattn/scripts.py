"""Scripts that write no spaces between words, as those of Chinese, Japanese and Thai: told from the text alone."""

from collections.abc import Iterable

CHARS_PER_WORD = 15  # between white space; more than any language has that writes spaces between words


def unspaced(texts: Iterable[str]) -> bool:
    """Whether words of these texts have no spaces between them."""
    chars = words = 0
    for text in texts:
        chars += len(text)
        words += len(text.split())
    return chars > CHARS_PER_WORD * max(words, 1)
