"""Write the toy corpus: English and German sentences with their word alignments, from a small bilingual grammar.

    python data/generate.py [--out DIR]

Every English sentence has one German sentence, so a model that has learned the grammar can be right about every word.
The words are in lexicon.py, the grammar in grammar.py, who does what in sampling.py, the sentences in sentences.py.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import lexicon as lx
from grammar import Phrase
from sentences import TEMPLATES

SEED = 20240229
SIZES = {"train": 8000, "dev": 500, "test": 500}
NUM_COMPOSED = 170  # sentences of test that hold a pair from HELD_OUT
MIN_FAMILIAR = 6  # a word of dev or test occurs at least so often outside the composed sentences
MAX_WORDS = 20

# Pairs of English words that never meet in one sentence of train or dev; each word alone is frequent in train.
HELD_OUT = {
    "verb and object": [
        ("bake", "bread"), ("open", "parcel"), ("drink", "milk"), ("eat", "pear"), ("find", "camera"),
        ("close", "door"), ("understand", "word"), ("lose", "umbrella"), ("paint", "cat"), ("plant", "rose"),
        ("read", "letter"), ("repair", "computer"), ("visit", "uncle"), ("wear", "scarf"),
    ],
    "adjective and noun": [
        ("interesting", "museum"), ("black", "bag"), ("cheap", "table"), ("funny", "film"), ("long", "book"),
        ("difficult", "exam"), ("small", "kitchen"), ("red", "coat"), ("small", "dog"), ("white", "shirt"),
    ],
    "subject and verb": [("Clara", "call"), ("Jonas", "cook"), ("Lena", "swim"), ("Max", "buy"), ("teacher", "help")],
}  # fmt: skip


class Pair(NamedTuple):
    """A sentence pair as it is written: two lines of text and their alignment in Pharaoh format."""

    en: str
    de: str
    align: str

    @property
    def words(self) -> list[str]:
        """The words of both sides without punctuation and capitals."""
        return bare_words(f"{self.en} {self.de}")


def written(phrase: Phrase) -> Pair:
    """The text of both sides and the links "i-j", sorted, of the tokens that share a key."""
    links = [f"{i}-{j}" for i, a in enumerate(phrase.en) for j, b in enumerate(phrase.de) if a.keys & b.keys]
    return Pair(" ".join(t.text for t in phrase.en), " ".join(t.text for t in phrase.de), " ".join(links))


def bare_words(line: str) -> list[str]:
    """The words of a line without punctuation and capitals."""
    return [word.strip(".,?").lower() for word in line.split()]


def forms(word: str) -> set[str]:
    """All English forms of a word of the lexicon, in lower case."""
    noun, verb = lx.NOUNS.get(word), lx.VERBS.get(word)
    return {form.lower() for form in (word, *([noun.en_plural] if noun else []), *(verb.en if verb else []))}


def held_out_pairs(line: str) -> list[tuple[str, str]]:
    """The pairs of HELD_OUT that meet in an English line."""
    present = set(bare_words(line))
    return [pair for pair, both in HELD_OUT_FORMS.items() if all(present & one for one in both)]


HELD_OUT_FORMS = {pair: (forms(pair[0]), forms(pair[1])) for pair in chain(*HELD_OUT.values())}


def candidates(rng: random.Random) -> Iterator[Pair]:
    """Endless new pairs: neither side has occurred before. Of two draws the one with the rarest word wins."""
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    kinds, weights = list(TEMPLATES), list(TEMPLATES.values())
    while True:
        draws = [written(kind(rng)) for kind in rng.choices(kinds, weights, k=2)]
        pair = min(draws, key=lambda draw: min(counts[word] for word in draw.words))
        if pair.en in seen or pair.de in seen or max(len(pair.en.split()), len(pair.de.split())) > MAX_WORDS:
            continue
        seen.update((pair.en, pair.de))
        counts.update(pair.words)
        yield pair


def build(seed: int = SEED) -> dict[str, list[Pair]]:
    """All splits. Pairs that hold a held-out combination go to test alone, of each combination about as many."""
    rng = random.Random(seed)
    ordinary: list[Pair] = []
    composed: list[Pair] = []
    stream = candidates(rng)
    while len(ordinary) < sum(SIZES.values()) - NUM_COMPOSED:
        pair = next(stream)
        (composed if held_out_pairs(pair.en) else ordinary).append(pair)
    counts = Counter(word for pair in ordinary for word in pair.words)
    rng.shuffle(ordinary)
    ordinary.sort(key=lambda pair: min(counts[word] for word in pair.words) >= MIN_FAMILIAR)  # rare forms stay in train
    bounds = [0, SIZES["train"], SIZES["train"] + SIZES["dev"]]
    train, dev, test = (ordinary[a:b] for a, b in zip(bounds, [*bounds[1:], None], strict=True))
    test += evenly(pair for pair in composed if all(counts[word] >= MIN_FAMILIAR for word in pair.words))[:NUM_COMPOSED]
    rng.shuffle(test)
    return {"train": train, "dev": dev, "test": test}


def evenly(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs in an order that takes one of each held-out combination, then a second of each, and so on."""
    uses: Counter[tuple[str, str]] = Counter()
    ranked: list[tuple[int, Pair]] = []
    for pair in pairs:
        combination = held_out_pairs(pair.en)[0]
        ranked.append((uses[combination], pair))
        uses[combination] += 1
    return [pair for _, pair in sorted(ranked, key=lambda item: item[0])]


def write(out: Path) -> None:
    """Write each split as three files of equally many lines: .en, .de and .align."""
    out.mkdir(parents=True, exist_ok=True)
    for split, pairs in build().items():
        for side in Pair._fields:
            lines = "".join(getattr(pair, side) + "\n" for pair in pairs)
            (out / f"{split}.{side}").write_bytes(lines.encode())


def main() -> None:
    """Read the command line and write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "toy", help="folder to write to")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
