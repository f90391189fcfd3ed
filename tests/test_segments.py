"""Long lines are cut, never shortened."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtattn.segments import learnt_sentences, sentences, split_long


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("One two.", 9, ["One two."]),
        ("One two. Three four! Five?", 9, ["One two.", "Three", "four!", "Five?"]),
        ("One. Two. Three.", 10, ["One. Two.", "Three."]),
        ("यह है। वह था।", 7, ["यह है।", "वह था।"]),
        ("一二。三四五！六？", 6, ["一二。", "三四五！六？"]),
        ("何？！「五。」六七。 八", 8, ["何？！", "「五。」六七。 八"]),
        ("日本語は。English is. 三", 7, ["日本語は。", "English", "is.", "三"]),
        ("aaaaaa", 3, ["aaa", "aaa"]),
        ("  \t      aaaaaa  ", 3, ["aaa", "aaa"]),
        (" One \n  two. ", 8, ["One two."]),
    ],
)
def test_cuts_where_sentences_end_then_between_words_then_anywhere(text: str, limit: int, parts: list[str]) -> None:
    assert split_long(text, len, limit) == parts


@given(st.text(max_size=200), st.integers(2, 20))
def test_every_part_fits_and_no_character_but_white_space_is_lost(text: str, limit: int) -> None:
    def pieces(part: str) -> int:
        return len("".join(part.split()))

    parts = split_long(text, pieces, limit)
    assert all(pieces(part) <= limit for part in parts)
    assert all(part.strip() for part in parts) or parts == [""]
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_what_is_joined_without_a_space_is_measured_together() -> None:
    def pieces(part: str) -> int:
        """One for a word after a space; elsewhere, as for a tokenizer that knows no such piece, one for a character."""
        return sum(
            1 if i == 0 else len(run) for word in part.split() for i, run in enumerate(re.findall(r"\w+|\W", word))
        )

    text = "yesterday。" * 60
    parts = split_long(text, pieces, 50)
    assert all(pieces(part) <= 50 for part in parts)
    assert "".join(parts) == text and len(parts) == 12


def test_after_a_word_that_is_cut_parts_are_full_again() -> None:
    count = lambda text: sum(not c.isspace() for c in text)  # noqa: E731
    text = "aaaaaaa " + "x" * 12 + " cc dd ee ff gg hh"
    assert split_long(text, count, 8)[-2:] == ["cc dd ee ff", "gg hh"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("A man sleeps.", 1),
        ("A man sleeps. A dog runs! Why?", 3),
        ("Dr. Smith met Mrs. J. R. Jones at 5 a.m. on Mt. Fuji.", 1),
        ("Am 20. Mai kam er z.B. nicht. Ich auch nicht.", 2),
        ("He left in 1990. She stayed.", 2),
        ("Wait... what? he said.", 1),
        ("What ? ! . . . A dog runs .", 2),
        ("- . ! ?", 1),
        ("मी आलो. तू गेलास.", 2),
        ("一二。三四！五？", 3),
        ("日本語は。english", 2),
    ],
)
def test_sentences_end_neither_after_abbreviations_nor_before_small_letters(text: str, count: int) -> None:
    assert len(sentences(text)) == count
    assert "".join(sentences(text)) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [(". " * 300_000, 1), ("A. " * 300_000, 1), ("a." * 300_000 + "! Then", 2), ("Go. " * 300_000, 300_000)],
)
def test_a_line_of_a_megabyte_is_read_once(text: str, count: int) -> None:
    found = sentences(text)
    assert "".join(found) == text
    assert len(found) == count


def test_parts_have_at_most_so_many_sentences() -> None:
    assert split_long("One. Two. Three. Four. Five.", len, 100, 2) == ["One. Two.", "Three. Four.", "Five."]
    assert split_long("One. Two.  Three.", len, 9, 2) == ["One. Two.", "Three."]
    assert split_long("One. Two.", len, 100, 2) == ["One. Two."]


@pytest.mark.parametrize(("count", "expected"), [(5, 1), (6, 3)])
def test_a_model_is_trusted_with_as_many_sentences_as_one_line_in_200_has(count: int, expected: int) -> None:
    assert learnt_sentences(["One."] * (1_000 - count) + ["One. Two. Three."] * count) == expected
