"""Translator: as many lines out as in, in order, each as if it were alone; blank stays blank; nothing is dropped."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtattn.decode import DecodeConfig
from mtattn.model import PositionConfig, Transformer
from mtattn.segments import sentences
from mtattn.translate import Segment, Translation, Translator

SHORT = {"max_len_ratio": 0.2, "max_len_extra": 4}
any_lines = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=12), max_size=6
)


@pytest.fixture(scope="module")
def model(make_model, tokenizer) -> Transformer:
    return make_model(tokenizer.src_vocab_size, encoder_layers=1, decoder_layers=1)


@pytest.fixture
def lines(toy_lines) -> list[str]:
    return toy_lines[0][:64]


def outcomes(translator: Translator, lines: list[str]) -> list[tuple[list[str], list[float]]]:
    return [
        (translation.texts, [hypothesis.score for segment in translation.segments for hypothesis in segment.hypotheses])
        for translation in translator.translate(lines)
    ]


@pytest.mark.parametrize(
    "options", [{"beam_size": 1}, {"beam_size": 4, "nbest": 2}, {"search": "sample", "nbest": 2, "top_k": 10}]
)
@pytest.mark.parametrize("position", ["rotary", "t5", "learned"])
def test_a_batch_of_one_equals_a_batch_of_64(make_model, tokenizer, lines, options, position):
    model = make_model(tokenizer.src_vocab_size, position=PositionConfig(position, max_len=64), decoder_layers=1)
    config = DecodeConfig(**SHORT, **options)
    together = outcomes(Translator(model, tokenizer, config), lines)
    alone = Translator(model, tokenizer, config)
    for number, line in enumerate(lines[:5]):
        # Blank lines before it give it the number, and so the random seed, that it has in the batch.
        texts, scores = outcomes(alone, [""] * number + [line])[-1]
        assert texts == together[number][0]
        assert scores == pytest.approx(together[number][1], abs=1e-4)


@pytest.mark.parametrize("options", [{"beam_size": 3, "nbest": 2}, {"search": "sample", "nbest": 2}])
def test_batches_side_by_side_find_what_one_after_the_other_do(model, tokenizer, lines, options, monkeypatch):
    monkeypatch.setattr("mtattn.translate.BATCH_POSITIONS", 60)
    translator = Translator(model, tokenizer, DecodeConfig(**SHORT, **options))
    expected = outcomes(translator, lines)
    translator.workers = 3
    found = outcomes(translator, lines)
    assert [texts for texts, _ in found] == [texts for texts, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_few_lines_keep_all_workers_busy(model, tokenizer, lines):
    translator = Translator(model, tokenizer, DecodeConfig(beam_size=2, **SHORT))
    translator.workers = 3
    searched = list[int]()
    search = translator.search
    translator.search = lambda parts, processors=(): searched.append(len(parts)) or search(parts, processors)
    list(translator.translate(["", *lines[:8]]))
    assert sorted(searched) == [2, 3, 3]


def test_an_error_in_one_batch_ends_all(model, tokenizer, lines):
    translator = Translator(model, tokenizer, DecodeConfig(beam_size=2, **SHORT))
    translator.workers = 2
    translator.search = lambda parts, processors=(): 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(translator.translate(lines))


@pytest.mark.parametrize("beam_size", [1, 4])
def test_on_graphs_the_outcome_is_the_same(model, tokenizer, lines, beam_size, monkeypatch):
    config = DecodeConfig(beam_size=beam_size, nbest=beam_size, **SHORT)
    expected = outcomes(Translator(model, tokenizer, config), lines)
    translator = Translator(model, tokenizer, config)
    assert not translator.on_graphs  # on a CPU
    translator.on_graphs = True
    monkeypatch.delattr("mtattn.translate.search")
    found = outcomes(translator, lines)
    assert [texts for texts, _ in found] == [texts for texts, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_what_graphs_cannot_do_is_done_step_by_step(model, tokenizer, lines):
    for options in ({"search": "sample", "nbest": 2}, {"beam_size": 3, "no_repeat_ngram_size": 2}):
        expected, found = (Translator(model, tokenizer, DecodeConfig(**options, **SHORT)) for _ in range(2))
        found.on_graphs = True
        assert outcomes(found, lines[:9]) == outcomes(expected, lines[:9])
    prefixes = ["Er", "Sie"]
    translator = Translator(model, tokenizer, DecodeConfig(beam_size=2, max_len_extra=20))
    translator.on_graphs = True
    assert [t.text[:2] for t in translator.translate(lines[:2], prefixes=prefixes)] == ["Er", "Si"]


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 3, "nbest": 2},
        {"beam_size": 3, "min_len": 4},
        {"beam_size": 1},
        {"search": "sample", "nbest": 2, "top_k": 5},
    ],
)
def test_a_device_that_is_asked_now_and_then_finds_the_same(model, tokenizer, lines, monkeypatch, options):
    """As on a GPU: places of dead hypotheses are computed, and done sentences leave every few steps."""
    translator = Translator(model, tokenizer, DecodeConfig(**options, **SHORT))
    expected = outcomes(translator, lines[:9])
    monkeypatch.setattr("mtattn.decode.KNOWN_AT_ONCE", ())
    for translator.start in (None, model.start):
        found = outcomes(translator, lines[:9])
        assert [texts for texts, _ in found] == [texts for texts, _ in expected]
        for (_, ours), (_, theirs) in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


@settings(max_examples=8)
@given(any_lines)
def test_as_many_lines_out_as_in(model, tokenizer, lines):
    found = list(Translator(model, tokenizer, DecodeConfig(beam_size=2, **SHORT)).translate(lines))
    assert len(found) == len(lines)
    for line, translation in zip(lines, found, strict=True):
        assert "\n" not in translation.text
        assert "\r" not in translation.text
        if not line.strip(" "):
            assert translation.text == ""
            assert translation.segments == []


def test_blank_lines_among_others_stay_in_their_place(model, tokenizer, lines):
    translator = Translator(model, tokenizer, DecodeConfig(beam_size=1, **SHORT))
    mixed = ["", lines[0], "   ", lines[1], ""]
    texts = [t.text for t in translator.translate(mixed)]
    assert [texts[i] for i in (0, 2, 4)] == ["", "", ""]
    assert [texts[1], texts[3]] == [t.text for t in translator.translate(lines[:2])]


def test_no_line_gives_no_translation(model, tokenizer):
    assert list(Translator(model, tokenizer, DecodeConfig()).translate([])) == []


def test_a_line_too_long_is_split_and_said(model, tokenizer, lines):
    translator = Translator(model, tokenizer, DecodeConfig(beam_size=1, **SHORT), max_len=40)
    long = " ".join(lines[:10])
    (translation,) = translator.translate([long])
    assert translator.flagged["split"] == 1
    assert len(translation.segments) > 1
    assert all(len(segment.src_ids) <= 40 for segment in translation.segments)
    covered = [i for segment in translation.segments for i in segment.src_ids[:-1]]
    assert "".join(tokenizer.src_pieces(covered)) == "▁" + long.replace(" ", "▁")


def test_lines_of_more_sentences_than_a_model_learnt_are_translated_in_parts(model, tokenizer, lines):
    def translator(most):
        return Translator(model, tokenizer, DecodeConfig(beam_size=2, max_sentences=most, **SHORT))

    three = " ".join(lines[:3])
    assert len(sentences(three)) == 3
    alone = [translation.text for translation in translator(1).translate(lines[:3])]
    parted = translator(1)
    (translation,) = parted.translate([three])
    assert (translation.text, translation.flags & {"split"}) == (" ".join(alone), {"split"})
    assert "1 lines of over 1 sentence or 256 pieces were split, at sentence ends where possible" in parted.notes()
    for most in (0, 3):
        assert len(next(translator(most).translate([three])).segments) == 1
    assert [len(segment.src_ids) for segment in next(translator(2).translate([three])).segments] == [
        len(ids) for ids in tokenizer.encode_src([" ".join(lines[:2]), lines[2]])
    ]


def test_a_character_of_more_pieces_than_fit_is_translated(make_model, tokenizer):
    model = make_model(tokenizer.src_vocab_size, position=PositionConfig("learned", max_len=4))
    decode = DecodeConfig(max_len_ratio=1.0, max_len_extra=1)
    assert len(tokenizer.encode_src(["ﷺ"])[0]) > 4
    assert len(list(Translator(model, tokenizer, decode, max_len=3).translate(["ﷺ", "a cat"]))) == 2


@pytest.mark.parametrize(
    ("part", "between"), [("Ein Hund bellt.", " "), ("一只棕色的大狗在邻居的院子里大声叫着。", "")]
)
def test_parts_are_joined_as_their_script_joins_sentences(part, between):
    assert Translation([Segment([], [], [part])] * 3).text == between.join([part] * 3)


def test_blocks_change_nothing(model, tokenizer, lines, monkeypatch):
    translator = Translator(model, tokenizer, DecodeConfig(beam_size=1, **SHORT))
    whole = outcomes(translator, lines[:9])
    monkeypatch.setattr("mtattn.translate.FIRST_LINES", 2)
    monkeypatch.setattr("mtattn.translate.LINES_AHEAD", 3)
    monkeypatch.setattr("mtattn.translate.BATCH_POSITIONS", 1)
    counts: list[int] = []
    assert [t.texts for t in translator.translate(lines[:9], counts.append)] == [texts for texts, _ in whole]
    assert counts == list(range(1, 10))


def test_the_first_lines_come_soon_and_blocks_grow(model, tokenizer, monkeypatch):
    monkeypatch.setattr("mtattn.translate.FIRST_LINES", 256)
    monkeypatch.setattr("mtattn.translate.LINES_AHEAD", 900)
    num_read = 0

    def reading():
        nonlocal num_read
        for num_read in range(1, 3001):  # noqa: B007
            yield ""

    translator = Translator(model, tokenizer, DecodeConfig())
    seen = [num_read for _ in translator.translate(reading())]
    assert len(seen) == 3000
    assert sorted(set(seen)) == [256, 768, 1668, 2568, 3000]


def test_the_mode_of_the_model_stays(make_model, tokenizer, lines):
    model = make_model(tokenizer.src_vocab_size).train()
    translator = Translator(model, tokenizer, DecodeConfig(beam_size=1, **SHORT))
    first, second = ([t.text for t in translator.translate(lines[:5])] for _ in range(2))
    assert first == second  # without dropout
    assert model.training


def test_parts_of_long_lines_are_as_few_as_their_words_allow(model, tokenizer):
    line = " ".join(["Anna"] * 100)
    pieces = len(tokenizer.encode_src([line])[0]) - 1
    translator = Translator(model, tokenizer, DecodeConfig(beam_size=1, **SHORT), max_len=31)
    (translation,) = translator.translate([line])
    each = pieces // 100
    assert len(translation.segments) == -(-100 // (30 // each))


def test_what_is_cut_or_loops_is_said(model, tokenizer, lines):
    translator = Translator(model, tokenizer, DecodeConfig(beam_size=1, max_len_ratio=0, max_len_extra=1))
    list(translator.translate([*lines[:3], ""]))
    assert translator.notes() == [
        "warning: 3 translations were cut at the length that [decode] allows: max_len_ratio, max_len_extra"
    ]
