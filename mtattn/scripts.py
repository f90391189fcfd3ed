"""Scripts that write no spaces between words, as those of Chinese, Japanese and Thai: told from the text alone."""

import re
from collections.abc import Iterable

CHARS = r"\u0e00-\u109f\u1780-\u17ff\u3040-\u9fff"  # Thai, Lao, Tibetan, Burmese; Khmer; Japanese, Chinese
UNSPACED = re.compile(f"[{CHARS}]")
WORDS = re.compile(rf"[{CHARS}]{{1,2}}|[^\s{CHARS}]+")


def unspaced(texts: Iterable[str]) -> bool:
    """Whether most letters of these texts are of a script that has no spaces between words."""
    ours = letters = 0
    for text in texts:
        ours += len(UNSPACED.findall(text))
        letters += sum(map(str.isalpha, text))
    return 2 * ours > letters


def num_words(text: str) -> int:
    """Words of a text; in a script that has no spaces between them two characters each."""
    return len(WORDS.findall(text))
