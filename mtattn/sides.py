"""What tells the source side from the target side: frequent words and scripts, learned from the corpus itself.

Nothing here knows a language: the first pairs of the training corpus say what each side looks like.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache

FREQUENT = 300  # words and characters a side that are looked at
LEAST = 3  # a word seen less often tells nothing
SURE = 3.0  # log-odds, in nats, from which a sentence counts as the other side's
MAIN_SHARE = 0.1  # of a side's letters, from which a script is one of its own (Japanese has three)
FEW_LETTERS = 5  # a text with fewer is too short to have a script
MIXED_WORD = re.compile("[A-Za-z][\u0400-\u04ff]|[\u0400-\u04ff][A-Za-z]")


class SideProfile:
    """Which words and scripts belong to which side.

    Args:
        pairs: some pairs that are right; a minority of wrong ones does no harm.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        words: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        letters: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for pair in pairs:
            for side, text in enumerate(pair):
                words[side].update(_features(text))
                letters[side].update(text)
        self._log_odds = _log_odds(*words)
        self._scripts = tuple(_main_scripts(counter) for counter in letters)

    def leaning(self, text: str) -> float:
        """Log-odds, in nats, that a text is the source side's rather than the target side's; 0 when nothing tells."""
        return sum(self._log_odds.get(feature, 0.0) for feature in _features(text))

    def swapped(self, src: str, tgt: str) -> bool:
        """Whether each text of a pair is surely the other side's."""
        return self.leaning(src) < -SURE and self.leaning(tgt) > SURE

    def foreign(self, text: str, side: int) -> bool:
        """Whether most letters of a text are of a script that its side (0 source, 1 target) does not use."""
        own = self._scripts[side]
        if not own or (text.isascii() and "LATIN" in own):
            return False
        scripts = Counter(name for char in text if (name := script(char)))
        strange = sum(count for name, count in scripts.items() if name not in own)
        return scripts.total() >= FEW_LETTERS and 2 * strange > scripts.total()


def mixes_alphabets(text: str) -> bool:
    """Whether Latin and Cyrillic letters stand side by side in one word: they look alike and are not."""
    return not text.isascii() and MIXED_WORD.search(text) is not None


@cache
def script(char: str) -> str:
    """The script of a letter by its Unicode name, such as "LATIN" or "DEVANAGARI"; "" for what is no letter."""
    return unicodedata.name(char, "").partition(" ")[0] if char.isalpha() else ""


def _features(text: str) -> set[str]:
    """Words, and characters beyond ASCII: the latter serve languages that write no spaces."""
    text = text.lower()
    features = set(text.split())
    return features if text.isascii() else features | {char for char in text if char > "\x7f"}


def _log_odds(src: Counter[str], tgt: Counter[str]) -> dict[str, float]:
    frequent = {word for side in (src, tgt) for word, count in side.most_common(FREQUENT) if count >= LEAST}
    ratio = (tgt.total() + 1) / (src.total() + 1)
    return {word: max(-3.0, min(3.0, math.log(ratio * (src[word] + 0.5) / (tgt[word] + 0.5)))) for word in frequent}


def _main_scripts(letters: Counter[str]) -> frozenset[str]:
    scripts: Counter[str] = Counter()
    for char, count in letters.items():
        scripts[script(char)] += count
    del scripts[""]
    return frozenset(name for name, count in scripts.items() if count >= MAIN_SHARE * scripts.total())
