"""Terms are found in sources and stand in translations as whole words, or the line says that they do not."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtattn.decode import DecodeConfig
from mtattn.errors import ConfigError, FileError
from mtattn.glossary import Glossary, WordEnd, load_glossary
from mtattn.tokenizer import TokenizerConfig, train_tokenizer
from mtattn.translate import Translator


def written(folder: Path, *terms: str) -> Path:
    path = folder / "terms.tsv"
    path.write_text("".join(f"{term}\n" for term in terms), encoding="utf-8")
    return path


@pytest.fixture
def glossary_of(tmp_path, tokenizer):
    return lambda *terms: load_glossary(written(tmp_path, *terms), tokenizer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The apple is red.", ["apple"]),
        ("Apple, APPLE", ["apple"]),
        ("apples and pineapple", []),
        ("an apple tree", ["apple tree"]),  # the longest wins
        ("an apple tree and an apple", ["apple tree", "apple"]),
        ("C++ beats C", ["C++"]),
        ("C+++", ["C++"]),
        ("a → b", ["→"]),
        ("apple\ttree", ["apple tree"]),
        ("an apple_tree", []),
        ("Äpfel sind rot", ["äpfel"]),
        ("करा, काकर", []),  # vowel signs go on with a word
        ("करा कर", ["कर"]),
        ("b a-b a-b", ["b a-b"]),
        ("bb a-b a-b", ["b a-b"]),  # the first place overlaps it
        ("", []),
    ],
)
def test_terms_are_found_as_whole_words(glossary_of, text, expected):
    more = ("äpfel\tapples", "tree\tBaum", "कर\tdo", "b a-b\tx")
    glossary = glossary_of("apple\tApfel", "apple tree\tApfelbaum", "C++\tC++", "→\t→", *more)
    assert [term.source for term in glossary.terms_in(text)] == expected


@pytest.mark.parametrize(
    ("target", "text", "met"),
    [
        ("Hund", "ein Hund, ja", True),
        ("Hund", "Hund", True),
        ("Hund", "Hunde", False),
        ("Hund", "ein hund", False),
        ("Hund", "Schäferhund", False),
        ("große Hund", "der große Hund.", True),
        ("der", "Der Hund", True),  # a capital where the translation starts
        ("der", "Ja, Der Hund", False),
        ("कर", "हे कर.", True),
        ("कर", "करा", False),
        ("कर", "काकर", False),
        ("猫", "我有一只猫和狗。", True),  # no spaces: any place will do
        ("猫", "我有狗。", False),
        ("ดี", "วันนี้ดีมาก", True),
        ("ด", "วันนี้ดีมาก", False),  # a vowel goes on with it
    ],
)
def test_a_term_is_met_as_whole_words(glossary_of, target, text, met):
    (term,) = glossary_of(f"dog\t{target}").terms_in("dog")
    assert term.met(text) is met


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("dog", "expected a source term, one tab and a target term"),
        ("dog\t", "expected a source term, one tab and a target term"),
        ("\tHund", "expected a source term, one tab and a target term"),
        ("dog\tHund\tnoun", "expected a source term, one tab and a target term"),
        ("Cat\tKater", "'Cat' stands at line 1 already"),
    ],
)
def test_a_bad_line_is_named(glossary_of, line, why):
    with pytest.raises(ConfigError, match=rf"terms\.tsv:3: {re.escape(why)}$"):
        glossary_of("cat\tKatze", "", line)


def test_what_cannot_be_spelled_or_read_is_named(tmp_path, toy_lines, tokenizer):
    folding, _ = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=600))  # NFKC takes the ligature apart
    with pytest.raises(ConfigError, match=r"terms\.tsv:2: the tokenizer cannot spell 'ﬁnal': it would write 'final'"):
        load_glossary(written(tmp_path, "a\tb", "final\tﬁnal"), folding)
    with pytest.raises(FileError, match=r"nowhere\.tsv: cannot be read: No such file"):
        load_glossary(tmp_path / "nowhere.tsv", tokenizer)
    (tmp_path / "terms.tsv").write_bytes(b"\xef\xbb\xbfa\tb\r\nc\t\xff\n")
    with pytest.raises(ConfigError, match=r"terms\.tsv:2: not valid UTF-8"):
        load_glossary(tmp_path / "terms.tsv", tokenizer)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_terms(tmp_path, tokenizer):
    (tmp_path / "terms.tsv").write_bytes("\ufeffdog\tHund\r\n".encode())
    (term,) = load_glossary(tmp_path / "terms.tsv", tokenizer).terms_in("dog")
    assert (term.source, term.met("Hund")) == ("dog", True)


def test_source_terms_are_found_between_words_that_have_no_spaces(glossary_of):
    glossary = glossary_of("猫\tKatze", "東京\tTokio", "cat\tKatze")
    assert [term.source for term in glossary.terms_in("东京、東京タワーと猫とcat")] == ["東京", "猫", "cat"]
    assert not glossary.terms_in("東 京 concat")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])  # ▁ 北京, and one piece with its space
def test_no_space_is_put_before_a_term_that_follows_on_text_without_spaces(kind, tmp_path):
    lines = ["北京很大", "北京很好", "北京大学", "我住在北京", "我在", "I live in 京"] * 20
    tokenizer, _ = train_tokenizer(lines, lines, TokenizerConfig(kind=kind, vocab_size=290))
    glossary = load_glossary(written(tmp_path, "Beijing\t北京"), tokenizer)
    (term,) = glossary.terms_in("Beijing")
    for before, expected in (("我住在", "我住在北京北京"), ("I live in", "I live in 北京北京"), ("", "北京北京")):
        ids = glossary._followed(tokenizer.encode_tgt([before])[0][:-1], [term, term])
        assert tokenizer.decode(ids) == expected


def test_word_end_forbids_continuations_at_one_place():
    rule = WordEnd([1, 2, 1], [False, True, True])
    forbidden = rule(torch.zeros(2, 1, 3), torch.zeros(2, 1, 1, dtype=torch.int64), torch.tensor([2, 1])) < 0
    assert forbidden.tolist() == [[[False, True, True]], [[False, False, False]]]


def test_pieces_that_go_on_with_a_word():
    pieces = {
        "▁कर": False,
        "कर": True,
        "ा": True,
        "\u0301": True,
        "_": True,
        "7": True,
        ".": False,
        "猫": False,
        "<0xE0>": True,
    }
    tokenizer = SimpleNamespace(tgt_vocab_size=len(pieces), tgt_pieces=lambda ids: [[*pieces][i] for i in ids])
    assert Glossary([], tokenizer)._continues == [*pieces.values()]


def translate(model, tokenizer, glossary: Glossary | None, lines, prefixes=None, **options):
    translator = Translator(
        model, tokenizer, DecodeConfig(**{"beam_size": 3, "max_len_ratio": 0.5, "max_len_extra": 14, **options})
    )
    if glossary is not None:
        translator.refine.append(glossary)
    return list(translator.translate(lines, prefixes=prefixes))


WORDS = ("Hund", "Fahrradweg", "über", "zwölf Äpfel", "µ-Wert", "C++", "日本", "x")


@settings(max_examples=10)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True), st.integers(0, 99), st.integers(1, 3))
def test_every_term_stands_in_the_translation_of_a_random_model(model, tokenizer, tmp_path_factory, words, line, beam):
    terms = [f"term{i}\t{word}" for i, word in enumerate(words)]
    glossary = load_glossary(written(tmp_path_factory.mktemp("glossary"), *terms), tokenizer)
    text = " and ".join(f"term{i}" for i in range(len(words))) + f" {line}"
    (translation,) = translate(model, tokenizer, glossary, [text], beam_size=beam)
    (segment,) = translation.segments
    missed = [word for word in words if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", translation.text)]
    assert glossary.num_asked == len(words)
    assert glossary.num_met == len(words) - len(missed)
    assert ("glossary-missed" in segment.flags) == bool(missed)
    assert not missed


def test_no_more_places_are_searched_together_than_there_is_room_for(model, tokenizer, glossary_of, monkeypatch):
    (together,) = translate(model, tokenizer, glossary_of("dragon\tDrache"), ["a dragon"])
    sizes, search = list[int](), Translator.search
    monkeypatch.setattr(
        Translator, "search", lambda self, parts, *rules: sizes.append(len(parts)) or search(self, parts, *rules)
    )
    monkeypatch.setattr("mtattn.glossary.STARTS", 1)
    (alone,) = translate(model, tokenizer, glossary_of("dragon\tDrache"), ["a dragon"])
    assert alone.texts == together.texts
    assert len(sizes) > 2 and set(sizes) == {1}


def test_lines_without_terms_are_what_they_were(model, tokenizer, toy_lines, glossary_of):
    lines = [*toy_lines[0][:4], "a dragon", ""]
    free = translate(model, tokenizer, None, lines)
    helped = translate(model, tokenizer, glossary_of("dragon\tDrache"), lines)
    assert [a.text == b.text for a, b in zip(free, helped, strict=True)] == [True] * 4 + [False, True]


def test_a_term_that_stands_there_already_changes_nothing(model, tokenizer, glossary_of):
    (free,) = translate(model, tokenizer, None, ["a dragon"])
    word = max(re.findall(r"\w+", free.text), key=len)
    glossary = glossary_of(f"dragon\t{word}")
    (same,) = translate(model, tokenizer, glossary, ["a dragon"])
    assert same == free
    assert glossary.report() == "glossary: 1 of 1 terms (100.0 %) stand in the translations; 1 did by themselves"


def test_a_term_comes_after_the_forced_prefix(model, tokenizer, glossary_of):
    (translation,) = translate(model, tokenizer, glossary_of("dragon\tDrache"), ["a dragon"], prefixes=["Anna hat"])
    assert re.match(r"Anna hat.*\bDrache\b", translation.text)


def test_every_hypothesis_of_the_list_has_the_terms(model, tokenizer, glossary_of):
    glossary = glossary_of("dragon\tDrache", "egg\tEi")
    (translation,) = translate(model, tokenizer, glossary, ["a dragon egg"], nbest=3)
    assert 1 <= len(translation.texts) <= 3
    assert len(set(translation.texts)) == len(translation.texts)
    assert all(re.search(r"\bDrache\b", text) and re.search(r"\bEi\b", text) for text in translation.texts)
    ranks = [(not h.finished, -h.log_prob) for h in translation.segments[0].hypotheses]
    assert ranks == sorted(ranks)


def test_without_room_the_translation_is_the_free_one_and_flagged(model, tokenizer, glossary_of):
    glossary = glossary_of("dragon\tDonaudampfschifffahrtsgesellschaft")
    limits = {"max_len_ratio": 0.0, "max_len_extra": 4}
    (free,) = translate(model, tokenizer, None, ["a dragon"], **limits)
    (missed,) = translate(model, tokenizer, glossary, ["a dragon"], **limits)
    assert missed.text == free.text
    assert missed.segments[0].flags == {"glossary-missed"}
    assert glossary.report() == "glossary: 0 of 1 terms (0.0 %) stand in the translations; 0 did by themselves"
