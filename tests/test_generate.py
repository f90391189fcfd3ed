"""The toy corpus: reproducible, cleanly split, rich enough to learn every word, and rightly aligned."""

import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data"
sys.path.insert(0, str(DATA))

import generate  # noqa: E402
import grammar  # noqa: E402
import lexicon as lx  # noqa: E402
import sampling  # noqa: E402

SPLITS = ("train", "dev", "test")
SIDES = ("en", "de", "align")
HELD_OUT = list(chain(*generate.HELD_OUT.values()))


def lines(split: str, side: str) -> list[str]:
    return (DATA / "toy" / f"{split}.{side}").read_text(encoding="utf-8").removesuffix("\n").split("\n")


CORPUS = {(split, side): lines(split, side) for split in SPLITS for side in SIDES}


def test_the_committed_files_are_what_the_command_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DATA / "generate.py", "--out", tmp_path], check=True)
    for split, side in CORPUS:
        name = f"{split}.{side}"
        assert (tmp_path / name).read_bytes() == (DATA / "toy" / name).read_bytes(), name


def test_the_readme_states_the_sums_of_the_files() -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for file in sorted((DATA / "toy").iterdir()):
        assert f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" in readme


def test_the_corpus_is_as_large_as_it_says() -> None:
    for split, size in generate.SIZES.items():
        assert [len(CORPUS[split, side]) for side in SIDES] == [size] * 3
    assert sum(file.stat().st_size for file in (DATA / "toy").iterdir()) < 2_000_000


@pytest.mark.parametrize("side", ["en", "de"])
def test_sentences_are_short_and_written_as_sentences(side: str) -> None:
    lengths = [len(line.split()) for line in CORPUS["train", side]]
    assert 8 <= sum(lengths) / len(lengths) <= 11
    for line in chain(*(CORPUS[split, side] for split in SPLITS)):
        assert len(line.split()) <= generate.MAX_WORDS
        assert line == " ".join(line.split())
        assert line[0].isupper()
        assert line[-1] in ".?"


@pytest.mark.parametrize("side", ["en", "de"])
def test_no_sentence_occurs_twice_within_or_across_splits(side: str) -> None:
    for split in SPLITS:
        assert len(set(CORPUS[split, side])) == len(CORPUS[split, side])
    for one, other in combinations(SPLITS, 2):
        assert not set(CORPUS[one, side]) & set(CORPUS[other, side])


@pytest.mark.parametrize("pair", HELD_OUT, ids="+".join)
def test_a_held_out_combination_is_in_test_alone(pair: tuple[str, str]) -> None:
    meets = Counter(split for split in SPLITS for line in CORPUS[split, "en"] if pair in generate.held_out_pairs(line))
    assert (meets["train"], meets["dev"]) == (0, 0)
    assert meets["test"] >= 3


def test_a_held_out_combination_is_found_in_every_form() -> None:
    assert generate.held_out_pairs("Does Anna want to eat two pears?") == [("eat", "pear")]
    assert generate.held_out_pairs("Clara and Tom are calling us.") == [("Clara", "call")]
    assert generate.held_out_pairs("Anna is eating a cake.") == []


def test_a_third_of_test_is_made_of_held_out_combinations() -> None:
    num_composed = sum(bool(generate.held_out_pairs(line)) for line in CORPUS["test", "en"])
    assert num_composed == generate.NUM_COMPOSED
    assert 0.3 < num_composed / len(CORPUS["test", "en"]) < 0.4


def counts(side: str) -> Counter[str]:
    return Counter(word for line in CORPUS["train", side] for word in generate.bare_words(line))


def german_forms(entry: lx.Noun | lx.Verb | lx.Adjective) -> set[str]:
    if isinstance(entry, lx.Noun):
        return {entry.de.lower(), entry.de_plural.lower(), entry.de_plural.lower() + "n"}
    if isinstance(entry, lx.Adjective):
        return {entry.de, *(entry.stem + ending for ending in ("e", "en", "er", "es", "em"))}
    finite = {entry.present(person) for person in range(5)}
    past = set(lx.PRETERITE.get(entry.infinitive, ()))
    nonfinite = {entry.prefix + entry.infinitive, f"{entry.prefix}zu{entry.infinitive}", entry.participle}
    return finite | {entry.prefix + form for form in finite} | past | nonfinite


@pytest.mark.parametrize("table", ["NOUNS", "VERBS", "ADJECTIVES", "MOODS", "SKIES", "CLIMATES"])
def test_every_content_word_occurs_often_in_train(table: str) -> None:
    en, de = counts("en"), counts("de")
    for name, entry in getattr(lx, table).items():
        english = set(entry.en) if isinstance(entry, lx.Verb) else generate.forms(name)
        assert sum(en[form] for form in english) >= 15, name
        assert sum(de[form] for form in german_forms(entry)) >= 15, name


@pytest.mark.parametrize("words", [lx.CITIES, lx.NUMBERS, {name: name for name in chain(*lx.NAMES.values())}])
def test_every_name_and_number_occurs_often_in_train(words: dict[str, str]) -> None:
    en, de = counts("en"), counts("de")
    for english, german in words.items():
        assert min(en[english.lower()], de[german.lower()]) >= 15, english


@pytest.mark.parametrize("side", ["en", "de"])
def test_dev_and_test_hold_no_unknown_form(side: str) -> None:
    known = counts(side)
    for line in CORPUS["dev", side] + CORPUS["test", side]:
        assert all(known[word] for word in generate.bare_words(line)), line


def test_alignments_point_at_words_and_are_sorted() -> None:
    for split in SPLITS:
        for en, de, align in zip(*(CORPUS[split, side] for side in SIDES), strict=True):
            links = [(int(i), int(j)) for i, j in (link.split("-") for link in align.split())]
            assert links == sorted(set(links))
            assert all(i < len(en.split()) and j < len(de.split()) for i, j in links), en


UNALIGNED: dict[str, set[str]] = {"en": {"of"}, "de": set()}


def test_only_function_words_are_unaligned() -> None:
    for en, de, align in zip(*(CORPUS["train", side] for side in SIDES), strict=True):
        links = [tuple(map(int, link.split("-"))) for link in align.split()]
        for k, (side, line) in enumerate((("en", en), ("de", de))):
            aligned = {link[k] for link in links}
            loose = {word for i, word in enumerate(generate.bare_words(line)) if i not in aligned}
            assert loose <= UNALIGNED[side], line


def clause(verb: str, tense: str, **parts: object) -> grammar.Clause:
    anna = grammar.Subject(grammar.words("Anna", "Anna"), 2, "she")
    return replace(grammar.Clause(anna, lx.VERBS[verb], tense), **parts)


def noun(name: str, code: str, case: str = "acc", adjective: str = "") -> grammar.Phrase:
    return grammar.noun_phrase(lx.NOUNS[name], code, case, lx.ADJECTIVES.get(adjective), "her", "two")


YESTERDAY = grammar.words("yesterday", "gestern")
KITCHEN = sampling.place("kitchen")
BECAUSE = grammar.words("because", "weil")
DENIAL = object()
NO_CAKE = grammar.noun_phrase(lx.NOUNS["cake"], "k", "acc", denial=DENIAL)
CASES = [
    (
        grammar.statement(clause("buy", "past", object=noun("hat", "i", "acc", "red"), time=YESTERDAY)),
        ("Anna bought a red hat yesterday.", "Anna hat gestern einen roten Hut gekauft."),
        "0-0 1-1 1-6 2-3 3-4 4-5 5-2",
    ),
    (
        grammar.time_first(clause("call", "past", object=noun("grandmother", "p"), time=YESTERDAY)),
        ("Yesterday Anna called her grandmother.", "Gestern hat Anna ihre Großmutter angerufen."),
        "0-0 1-2 2-1 2-5 3-3 4-4",
    ),
    (
        grammar.statement(clause("call", "progressive", pronoun=grammar.words("him", "ihn"))),
        ("Anna is calling him.", "Anna ruft ihn an."),
        "0-0 1-1 1-3 2-1 2-3 3-2",
    ),
    (
        grammar.statement(clause("bake", "future", object=NO_CAKE, negated=True, denial=DENIAL)),
        ("Anna will not bake a cake.", "Anna wird keinen Kuchen backen."),
        "0-0 1-1 2-2 3-4 4-2 5-3",
    ),
    (
        grammar.question(clause("open", "past", object=noun("window", "d")), grammar.words("when", "wann")),
        ("When did Anna open the window.", "Wann hat Anna das Fenster geöffnet."),
        "0-0 1-1 2-2 3-5 4-3 5-4",
    ),
    (
        grammar.statement(clause("wait", "want", topic=grammar.prepositional("for", "auf", noun("bus", "d")))),
        ("Anna wants to wait for the bus.", "Anna will auf den Bus warten."),
        "0-0 1-1 2-1 3-5 4-2 5-3 6-4",
    ),
    (
        grammar.subordinate(clause("rest", "progressive", place=KITCHEN), BECAUSE),
        ("Because Anna is resting in the kitchen.", "Weil Anna sich in der Küche ausruht."),
        "0-0 1-1 2-2 2-6 3-2 3-6 4-3 5-4 6-5",
    ),
    (
        grammar.infinitive(clause("pick up", "past", object=noun("son", "p")), "um"),
        ("To pick up her son.", "Um ihren Sohn abzuholen."),
        "0-0 0-3 1-3 2-3 3-1 4-2",
    ),
    (
        grammar.statement(clause("play", "likes", object=noun("chess", "b"), place=sampling.place("garden"))),
        ("Anna likes to play chess in the garden.", "Anna spielt gern im Garten Schach."),
        "0-0 1-2 2-2 3-1 4-5 5-3 6-3 7-4",
    ),
]


@pytest.mark.parametrize(("phrase", "text", "align"), CASES, ids=[text[0] for _, text, _ in CASES])
def test_both_orders_and_the_alignment(phrase: grammar.Phrase, text: tuple[str, str], align: str) -> None:
    assert generate.written(grammar.sentence(phrase)) == (*text, align)


@pytest.mark.parametrize(
    ("phrase", "german"),
    [
        (noun("hat", "d", "nom", "old"), "der alte Hut"),
        (noun("hat", "i", "nom", "old"), "ein alter Hut"),
        (noun("hat", "d", "acc", "old"), "den alten Hut"),
        (noun("hat", "p", "dat", "old"), "ihrem alten Hut"),
        (noun("bag", "i", "acc", "old"), "eine alte Tasche"),
        (noun("bag", "d", "dat", "old"), "der alten Tasche"),
        (noun("car", "k", "acc", "expensive"), "kein teures Auto"),
        (noun("car", "n", "acc", "expensive"), "zwei teure Autos"),
        (noun("apple", "n", "dat", "fresh"), "zwei frischen Äpfeln"),
        (noun("milk", "b", "acc", "cold"), "kalte Milch"),
        (noun("coffee", "b", "acc", "hot"), "heißen Kaffee"),
        (noun("neighbour", "p", "acc", "new"), "ihren neuen Nachbarn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_german_agreement(phrase: grammar.Phrase, german: str) -> None:
    assert " ".join(token.text for token in phrase.de) == german
