"""Random segmentations: a text comes in other pieces each time, so that a model learns what pieces have in common.

SentencePiece draws them too, but from a generator that no seed makes repeat in another process (since 0.2.2), and a run
that was interrupted has to see what it would have seen. Words are segmented alone, as its pieces never span two.
"""

import math
import re
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from random import Random
from typing import Any

from mtattn.tokenizer import EOS_ID, Tokenizer, TokenizerConfig

WORDS = re.compile(r"▁[^▁]*|[^▁]+")  # of normalized text, in which ▁ stands for a space
UNKNOWN = 10.0  # nats by which bytes are less likely than the rarest piece: SentencePiece's own penalty
KEPT, SHORT = 2**16, 24  # words remembered, and characters of one at most: a sentence without spaces will not recur

Ids = list[int]


class SubwordSampling:
    """Draws segmentations of both sides.

    Args:
        config: its `sampling` is the strength.
        max_len: pieces, EOS included, of a text at most; what would be longer has its usual ones.
    """

    def __init__(self, tokenizer: Tokenizer, config: TokenizerConfig, max_len: int) -> None:
        make = {"unigram": Unigram, "bpe": BPE}[config.kind]
        src, tgt = tokenizer.processors
        self._src = make(src, config.sampling)
        self._tgt = self._src if tgt is src else make(tgt, config.sampling)
        self._tokenizer, self._max_len = tokenizer, max_len

    def __call__(self, src: Sequence[str], tgt: Sequence[str], seed: int) -> tuple[list[Ids], list[Ids]]:
        """Ids of each text, ended by EOS, drawn anew for another seed and the same for the same."""
        random, encode_src, encode_tgt = Random(seed), self._tokenizer.encode_src, self._tokenizer.encode_tgt
        drawn = [self._drawn(text, self._src, encode_src, random) for text in src]
        return drawn, [self._drawn(text, self._tgt, encode_tgt, random) for text in tgt]

    def _drawn(self, text: str, draw: "Pieces", usual: Callable[[list[str]], list[Ids]], random: Random) -> Ids:
        ids = [*draw(text, random), EOS_ID]
        return ids if len(ids) <= self._max_len else usual([text])[0]


class Pieces:
    """What both kinds share: the vocabulary of a SentencePiece processor.

    Args:
        alpha: the strength; see TokenizerConfig.sampling.
    """

    def __init__(self, processor: Any, alpha: float) -> None:
        self._processor, self._alpha = processor, alpha
        special = (processor.is_control, processor.is_unknown, processor.is_byte)
        ids = [i for i in range(processor.get_piece_size()) if not any(test(i) for test in special)]
        self._ids: dict[str, int] = {processor.id_to_piece(i): i for i in ids}
        self._scores: dict[str, float] = {piece: processor.get_score(i) for piece, i in self._ids.items()}
        self._bytes = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]

    def __call__(self, text: str, random: Random) -> Ids:
        """Ids of one text, without EOS."""
        words = WORDS.findall(self._processor.normalize(text))
        return [i for word in words for piece in self.draw(word, random) for i in self._spelled(piece)]

    def draw(self, word: str, random: Random) -> list[str]:
        """One segmentation of a word; a character that is no piece stands alone."""
        raise NotImplementedError

    def _spelled(self, piece: str) -> Ids:
        known = self._ids.get(piece)
        return [self._bytes[byte] for byte in piece.encode()] if known is None else [known]


class Unigram(Pieces):
    """Subword regularisation (Kudo 2018, https://aclanthology.org/P18-1007): all segmentations of a word, each with a
    probability in proportion to that of the unigram model to the power of alpha."""

    def __init__(self, processor: Any, alpha: float) -> None:
        super().__init__(processor, alpha)
        self._longest, self._least = max(map(len, self._ids)), min(self._scores.values())
        self._ends: Callable[[str], list[tuple[list[float], list[str]]]] = lru_cache(KEPT)(self._lattice)

    def _lattice(self, word: str) -> list[tuple[list[float], list[str]]]:
        """Forward filtering: for each length of a start of the word, its last pieces, and their weights added up.

        totals[end] is the logarithm of the sum over all segmentations of word[:end].
        """
        totals, ends = [0.0], list[tuple[list[float], list[str]]]()
        for end in range(1, len(word) + 1):
            pieces = [word[start:end] for start in range(max(0, end - self._longest), end)]
            pieces = [piece for piece in pieces if piece in self._ids or len(piece) == 1]
            scores = [self._scores.get(piece, self._least - UNKNOWN) for piece in pieces]
            nats = [totals[end - len(piece)] + self._alpha * s for piece, s in zip(pieces, scores, strict=True)]
            highest = max(nats)
            sums = list(accumulate(math.exp(x - highest) for x in nats))
            totals.append(highest + math.log(sums[-1]))
            ends.append((sums, pieces))
        return ends

    def draw(self, word: str, random: Random) -> list[str]:
        """Backward sampling: the last piece first."""
        ends = self._ends(word) if len(word) <= SHORT else self._lattice(word)
        end, found = len(word), list[str]()
        while end:
            sums, pieces = ends[end - 1]
            piece = pieces[min(bisect(sums, random.random() * sums[-1]), len(pieces) - 1)]
            found.append(piece)
            end -= len(piece)
        return found[::-1]


class BPE(Pieces):
    """BPE-dropout (Provilkov et al. 2020, https://arxiv.org/abs/1910.13267): before each merge, each that is possible
    is left out with probability alpha; when none is left, the word is done."""

    def draw(self, word: str, random: Random) -> list[str]:
        """Merge from single characters on."""
        parts = list(word)
        while True:
            joined = (first + second for first, second in pairwise(parts))
            merges = [
                (-self._scores[both], place)
                for place, both in enumerate(joined)
                if both in self._ids and random.random() >= self._alpha
            ]
            if not merges:
                return parts
            _, place = min(merges)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
