"""What the doctor keeps of a corpus while it streams past: some 24 bytes a pair, never the text."""

import tempfile
import unicodedata
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mtattn.config import Config
from mtattn.corpus import DataConfig, is_unicode
from mtattn.errors import ConfigError, CorpusError
from mtattn.filtering import is_copy
from mtattn.readers import READERS, ReaderInput
from mtattn.sides import SideProfile, mixes_alphabets
from mtattn.sources import Corpus, LocatedSource, as_sources, locate

NUM_EXAMPLES = 3  # places that a finding names
PROFILE_PAIRS = 10_000  # pairs of train from which the doctor learns what each side looks like
SPLITS = ("dev", "test", "train")  # in this order: what is held out must be known when train is read
LONGEST = 65_535  # characters; longer texts count as this long


@dataclass
class Tally:
    """How often something was seen, and where first."""

    count: int = 0
    where: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.where) < NUM_EXAMPLES:
            self.where.append(where)


@dataclass
class HeldOut:
    """Hashes of the sentences of a dev or test split, either side: as they are, and with case and signs ignored."""

    exact: set[int] = field(default_factory=set)
    near: set[int] = field(default_factory=set)


@dataclass
class SplitFacts:
    """One split.

    Attributes:
        name: "train", "dev" or "test".
        chars: [pairs] length in characters, for source and target.
        words: length in words -> number of texts, for source and target.
        pair_hashes, src_hashes: [pairs] of the pair and of its source.
        lines: [pairs] line or row in its file.
        files: (number of its first pair, (source file, target file)) of each source of pairs.
        alphabet: characters seen, for source and target.
        tallies: by name, what was seen line by line (LINE_TESTS, "invalid utf-8", "leaked dev", "near dev", ...).
        found: by name ("leaked dev", "near dev", ...), hashes of the sentences of dev or test that each side has.
        error: why reading stopped, "" when it did not.
    """

    name: str
    chars: tuple["array[int]", "array[int]"] = field(default_factory=lambda: (array("H"), array("H")))
    words: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))
    pair_hashes: "array[int]" = field(default_factory=lambda: array("q"))
    src_hashes: "array[int]" = field(default_factory=lambda: array("q"))
    lines: "array[int]" = field(default_factory=lambda: array("I"))
    files: list[tuple[int, tuple[str, str]]] = field(default_factory=list)
    alphabet: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    tallies: dict[str, Tally] = field(default_factory=dict)
    found: dict[str, tuple[set[int], set[int]]] = field(default_factory=lambda: defaultdict(lambda: (set(), set())))
    error: str = ""

    def __len__(self) -> int:
        return len(self.lines)

    def tally(self, name: str) -> Tally:
        """What was counted under a name, so far."""
        return self.tallies.setdefault(name, Tally())

    def place(self, number: int, side: int = 0) -> str:
        """`file:line` of a pair, on its source (0) or target (1) side."""
        _, paths = self.files[bisect_right(self.files, number, key=lambda item: item[0]) - 1]
        return f"{paths[side]}:{self.lines[number]}"

    def add(self, line: int, pair: tuple[str, str]) -> None:
        """Keep what is needed of one pair, but not its text."""
        self.lines.append(line)
        self.pair_hashes.append(hash(pair))
        self.src_hashes.append(hash(pair[0]))
        for side, text in enumerate(pair):
            self.chars[side].append(min(len(text), LONGEST))
            self.words[side][len(text.split())] += 1
            self.alphabet[side].update(text)


@dataclass
class CorpusFacts:
    """All splits that a config names, and the config, which says what training will drop by itself."""

    config: Config
    splits: dict[str, SplitFacts]


LineTest = Callable[[SideProfile, str, str], int | None]
"""The side (0 or 1) on which a pair has a fault, None when it has not."""


def _blank(_: SideProfile, src: str, tgt: str) -> int | None:
    return 0 if not src.strip() else 1 if not tgt.strip() else None


def _identical(_: SideProfile, src: str, tgt: str) -> int | None:
    return 1 if is_copy(src, tgt) else None


def _swapped(profile: SideProfile, src: str, tgt: str) -> int | None:
    return 0 if profile.swapped(src, tgt) else None


def _foreign(profile: SideProfile, src: str, tgt: str) -> int | None:
    return 0 if profile.foreign(src, 0) else 1 if profile.foreign(tgt, 1) else None


def _mixed(_: SideProfile, src: str, tgt: str) -> int | None:
    return 0 if mixes_alphabets(src) else 1 if mixes_alphabets(tgt) else None


LINE_TESTS: dict[str, LineTest] = {
    "blank": _blank,
    "identical": _identical,
    "swapped": _swapped,
    "foreign script": _foreign,
    "mixed word": _mixed,
}
"""Name of a tally -> the test that fills it, pair by pair."""


def gather(config: Config, done: Callable[[str, int], None] = lambda split, count: None) -> CorpusFacts:
    """Read every split that a config names, once, and the first pairs of train twice.

    Args:
        done: told now and then which split is being read, and how many of its pairs have been.

    Raises:
        ConfigError: no training corpus is named, or a format cannot be told. FileError: the system refuses to read.
    """
    if not as_sources(config.data.train):
        raise ConfigError('no training corpus is named; set for example data.train = "train.{en,de}"')
    held_out: dict[str, HeldOut] = {}
    splits: dict[str, SplitFacts] = {}
    profile = _profile(config.data)
    for name in SPLITS:
        if corpus := getattr(config.data, name):
            splits[name] = _gather_split(name, corpus, config.data, profile, held_out, done)
    return CorpusFacts(config, splits)


def _profile(data: DataConfig) -> SideProfile:
    try:
        pairs = (pair for _, _, pair in _pairs(data.train, data) if all(map(is_unicode, pair)))
        return SideProfile(islice(pairs, PROFILE_PAIRS))
    except CorpusError:  # reported when the split itself is read
        return SideProfile([])


def _gather_split(
    name: str,
    corpus: Corpus,
    data: DataConfig,
    profile: SideProfile,
    held_out: dict[str, HeldOut],
    done: Callable[[str, int], None],
) -> SplitFacts:
    facts = SplitFacts(name)
    own = HeldOut()
    try:
        for source, line, pair in _pairs(corpus, data):
            if not facts.files or facts.files[-1][1] is not source.paths:
                facts.files.append((len(facts), source.paths))
            facts.add(line, pair)
            _test(facts, pair, profile, held_out, own if name != "train" else None)
            if len(facts) % 10_000 == 0:
                done(name, len(facts))
    except CorpusError as error:
        facts.error = str(error)
    if name != "train":
        held_out[name] = own
    return facts


def _test(
    facts: SplitFacts, pair: tuple[str, str], profile: SideProfile, held_out: dict[str, HeldOut], own: HeldOut | None
) -> None:
    number = len(facts) - 1
    if not all(map(is_unicode, pair)):
        facts.tally("invalid utf-8").add(facts.place(number, 0 if not is_unicode(pair[0]) else 1))
        return
    for name, test in LINE_TESTS.items():
        if (side := test(profile, *pair)) is not None:
            facts.tally(name).add(facts.place(number, side))
    if not held_out and own is None:
        return
    exact = [hash(text) if text.strip() else None for text in pair]
    near = [hash(plain) if (plain := plain_text(text)) else None for text in pair]
    for other, sentences in held_out.items():
        for name, known, own_hashes in (("leaked", sentences.exact, exact), ("near", sentences.near, near)):
            if not known.isdisjoint(own_hashes):
                facts.tally(f"{name} {other}").add(facts.place(number))
                for seen, each in zip(facts.found[f"{name} {other}"], own_hashes, strict=True):
                    if each in known:
                        seen.add(each)
                break
    if own is not None:
        own.exact.update(each for each in exact if each is not None)
        own.near.update(each for each in near if each is not None)


def _pairs(corpus: Corpus, data: DataConfig) -> Iterator[tuple[LocatedSource, int, tuple[str, str]]]:
    """(where it comes from, line number, pair) of everything in a corpus, blank and invalid lines too."""
    for source in [locate(source, data.folder, (data.src, data.tgt)) for source in as_sources(corpus)]:
        with tempfile.TemporaryDirectory() as scratch:
            given = ReaderInput(source.paths, (data.src, data.tgt), source.columns, Path(scratch))
            for line, src, tgt in READERS[source.format](given):
                yield source, line, (src, tgt)


class _Plain(dict[int, str]):
    """A table for str.translate: punctuation, symbols, separators and control characters become spaces."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = " " if unicodedata.category(char)[0] in "PSZC" else char
        return self[code]


_PLAIN = _Plain()


def plain_text(text: str) -> str:
    """A text without what two copies of a sentence differ in: case, signs, spaces, compatibility forms (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_PLAIN).split())
