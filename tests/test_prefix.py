"""Prefixes are paired with lines, and translations start with them."""

import pytest

from mtattn.decode import DecodeConfig
from mtattn.errors import CorpusError
from mtattn.prefix import paired
from mtattn.tokenizer import TokenizerConfig, train_tokenizer
from mtattn.translate import Translator


@pytest.fixture
def translator(model, tokenizer):
    return Translator(model, tokenizer, DecodeConfig(beam_size=3, nbest=3, max_len_extra=6), max_len=30)


def test_pairs_are_read_in_step():
    assert list(paired(["a", "b"], ["x", ""])) == [("a", "x"), ("b", "")]
    assert list(paired([], [])) == []


@pytest.mark.parametrize(("lines", "prefixes", "said"), [(3, 1, "more than 1"), (0, 2, "0"), (2, 5, "2")])
def test_unequal_counts_are_both_named(lines, prefixes, said):
    with pytest.raises(CorpusError, match=rf"^{said} lines to translate, but {prefixes} lines of prefixes"):
        list(paired(["a"] * lines, ["x"] * prefixes))


def test_a_line_without_a_prefix_is_said_before_more_lines_are_asked_for():
    def lines():
        yield from ("a", "b")
        pytest.fail("who waits for an answer sends no third line")

    with pytest.raises(CorpusError, match=r"^more than 1 lines"):
        list(paired(lines(), ["x"]))


def test_every_hypothesis_starts_with_its_lines_own_prefix(translator, toy_lines):
    lines, prefixes = toy_lines[0][:6], ["Anna hat", "", "Die alte", "Kein Zweif", "", "Wo ist"]
    for translation, prefix in zip(translator.translate(lines, prefixes=prefixes), prefixes, strict=True):
        assert len(translation.texts) == 3
        assert all(text.startswith(prefix) for text in translation.texts)
    assert not translator.flagged["prefix-missed"]


def test_an_empty_prefix_changes_nothing(translator, toy_lines):
    free = list(translator.translate(toy_lines[0][:5]))
    forced = list(translator.translate(toy_lines[0][:5], prefixes=["", "Sie", "", " ", ""]))
    assert [free[i].text == forced[i].text for i in range(5)] == [True, False, True, True, True]


def test_a_prefix_that_the_model_would_write_anyway_changes_nothing(translator, toy_lines):
    free = list(translator.translate(toy_lines[0][:5]))
    ids = [translation.segments[0].hypotheses[0].ids for translation in free]
    starts = [translator.tokenizer.decode(x[:3]) for x in ids]
    usual = [translator.tokenizer.encode_tgt([start])[0][:-1] == x[:3] for start, x in zip(starts, ids, strict=True)]
    forced = list(translator.translate(toy_lines[0][:5], prefixes=starts))
    same = [one.text == other.text for one, other in zip(free, forced, strict=True)]
    assert any(usual)
    assert all(equal for equal, is_usual in zip(same, usual, strict=True) if is_usual)


def test_a_long_line_has_its_prefix_once(translator, toy_lines):
    line = " ".join(toy_lines[0][:6])
    (translation,) = translator.translate([line], prefixes=["Anna"])
    assert len(translation.segments) > 1
    assert translation.text.startswith("Anna")
    (free,) = translator.translate([line])
    assert [s.texts for s in translation.segments[1:]] == [s.texts for s in free.segments[1:]]


def test_a_prefix_without_room_is_flagged_and_counted(translator, toy_lines):
    translation, other = translator.translate(["Anna", "Anna"], prefixes=[toy_lines[1][0] * 5, "Anna"])
    assert translation.segments[0].flags == {"prefix-missed"}
    assert other.segments[0].flags == frozenset()
    assert translator.notes()[0] == "warning: 1 prefixes did not fit into what [decode] allows"


def test_a_long_line_that_begins_blank_has_its_prefix_too(make_model, toy_lines):
    tokenizer, _ = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=600))
    translator = Translator(make_model(tokenizer.src_vocab_size), tokenizer, DecodeConfig(max_len_extra=6), max_len=30)
    (translation,) = translator.translate(["\u200b " + "y" * 200], prefixes=["Anna"])
    assert translation.text.startswith("Anna")
