"""What a line of output says, and where each word looked."""

import json

import pytest
import torch

from mtattn.alignment import Look, look
from mtattn.attention import capture_weights
from mtattn.batch import pad
from mtattn.decode import DecodeConfig
from mtattn.flags import flags
from mtattn.history import Hypothesis
from mtattn.inspect import draw, inspect_lines
from mtattn.model import ModelConfig, PositionConfig, Transformer
from mtattn.render import as_json, as_text
from mtattn.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from mtattn.translate import Segment, Translation, Translator

TEXTS = [f"the {a} dog sees the {b} cat number {n}" for n in range(40) for a in ("old", "big") for b in ("red", "shy")]


@pytest.fixture(scope="module")
def translator() -> Translator:
    tokenizer, _ = train_tokenizer(TEXTS, TEXTS, TokenizerConfig(vocab_size=340))
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=3)
    model = Transformer(config, tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    for name, weight in model.named_parameters():
        if "out_proj" in name or "down_proj" in name:
            torch.nn.init.normal_(weight)  # they start at zero, and then nobody looks anywhere
    return Translator(model, tokenizer, DecodeConfig(beam_size=2, nbest=2), max_len=60)


def translated(translator: Translator, line: str) -> Translation:
    (translation,) = translator.translate([line])
    return translation


def test_json_has_scores_tokens_and_alignment_of_each_hypothesis(translator: Translator) -> None:
    translation = translated(translator, "the old dog")
    found = json.loads(as_json(translation, translator))
    assert found["text"] == found["hypotheses"][0]["text"] == as_text(translation).split("\t")[0]
    assert len(found["hypotheses"]) == 2
    assert found["source_words"] == ["the", "old", "dog"]
    for hypothesis in found["hypotheses"]:
        assert hypothesis["log_prob"] == pytest.approx(sum(hypothesis["token_log_probs"]), abs=1e-4)
        words = "".join(hypothesis["tokens"]).split("\u2581")
        assert [t for _, t in hypothesis["alignment"]] == list(range(len([w for w in words if w])))
        assert all(0 <= s < 3 for s, _ in hypothesis["alignment"])


def test_a_blank_line_is_blank(translator: Translator) -> None:
    assert as_text(translated(translator, "  ")) == ""
    assert json.loads(as_json(translated(translator, ""), translator)) == {"text": "", "flags": [], "hypotheses": []}


def test_a_long_line_is_split_and_says_so(translator: Translator) -> None:
    line = " ".join(TEXTS[:8])
    before = translator.flagged["split"]
    translation = translated(translator, line)
    found = json.loads(as_json(translation, translator))
    assert translator.flagged["split"] == before + 1
    assert "split" in found["flags"]
    parts = "".join(part["hypotheses"][0]["text"] for part in found["segments"])
    assert found["text"].replace(" ", "") == parts.replace(" ", "")  # between them a space, if the script has any
    read = [i for segment in translation.segments for i in segment.src_ids if i != Tokenizer.eos_id]
    assert translator.tokenizer.decode(read) == line
    assert all(len(segment.src_ids) <= translator.max_len for segment in translation.segments)


@pytest.mark.parametrize(
    ("ids", "finished", "expected"),
    [
        ([5, 6, 7], True, []),
        ([], True, ["empty"]),
        ([0], True, ["empty"]),
        ([3, 4, 5, 6, 7, 8] * 4, True, ["loop"]),
        ([3, 4, 5, 6, 7, 8] * 3, True, []),
        ([5, 6], False, ["cut"]),
        ([5, 6, 6, 6, 6], True, ["loop"]),
        ([5, 6, 6, 6, 7], True, []),
        ([1, 2] * 4, False, ["cut", "loop"]),
        ([1, 2] * 3, True, []),
    ],
)
def test_flags(ids: list[int], finished: bool, expected: list[str]) -> None:
    text = " " * len(ids) if ids == [0] else "x" * len(ids)
    assert flags(Hypothesis(ids, 0.0, 0.0, [], finished), text) == expected


def test_a_tab_in_a_translation_starts_no_column() -> None:
    hypotheses = [Hypothesis([5], 0.0, 0.0, [], True)] * 2
    assert as_text(Translation([Segment([5, 2], hypotheses, ["a\tb", "c"])])) == "a b\tc"
    assert as_text(Translation([Segment([5, 2], hypotheses[:1], ["a\tb"])])) == "a\tb"


def test_wide_characters_keep_the_columns_of_a_picture() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    header, first, second, *_ = draw(Look(["a", "b"], ["\u732b", "cat"], weights)).split("\n")
    assert header == "       1  2"
    assert (first, second) == (" \u732b    @   ", "cat       @")  # the first is two columns wide


def test_words_of_unknown_characters_are_readable(translator: Translator) -> None:
    tokenizer = translator.tokenizer
    src, tgt = tokenizer.encode_src(["the \u00c4pfel \U0001f600 <0x41>"]), tokenizer.encode_tgt(["\u65e5\u672c"])
    (seen,) = look(translator.model, tokenizer, src, [tgt[0][:-1]])
    assert seen.src_words == ["the", "\u00c4pfel", "\U0001f600", "<0x41>"]
    assert seen.tgt_words == ["\u65e5\u672c"]
    (cut,) = look(translator.model, tokenizer, src, [[*tgt[0][:2], tokenizer._tgt.piece_to_id("<0x0A>")]])
    assert set(cut.tgt_words[0]) == {"\ufffd"}  # half a character, and one that breaks lines


def test_look_sums_the_pieces_of_source_words_and_forgets_padding(translator: Translator) -> None:
    model, tokenizer = translator.model, translator.tokenizer
    src, tgt = (
        tokenizer.encode_src(["the old dog", "the shy cat sees the old dog"]),
        tokenizer.encode_tgt(["cat", "shy"]),
    )
    targets = [ids[:-1] for ids in tgt]
    both, alone = look(model, tokenizer, src, targets), look(model, tokenizer, src[:1], targets[:1])[0]
    torch.testing.assert_close(both[0].weights, alone.weights)
    assert both[1].src_words == ["the", "shy", "cat", "sees", "the", "old", "dog"]
    with capture_weights(model) as captured:
        model.eval().hidden(pad(src[:1], 0), pad([[tokenizer.bos_id, *targets[0]]], 0))
    rows = captured["decoder.1.cross_attn"][-1].mean(1)[0, : len(targets[0]), :-1]
    assert float(alone.weights.sum()) == pytest.approx(len(alone.tgt_words))
    expected = rows.sum(0) / rows.sum()
    pieces = tokenizer.src_pieces(src[0][:-1])
    first_word = next((i for i, piece in enumerate(pieces) if i and piece.startswith("\u2581")), len(pieces))
    assert float(alone.weights[0, 0]) == pytest.approx(float(expected[:first_word].sum()), abs=1e-5)


def test_look_needs_no_more_positions_than_there_are_tokens(make_model, tokenizer) -> None:
    model = make_model(tokenizer.src_vocab_size, position=PositionConfig("learned", max_len=4))
    full, empty = look(model, tokenizer, [[5, 6, 7, 2], [5, 2]], [[8, 9, 10, 11], []])  # the first was cut at 4
    assert full.weights.sum() == pytest.approx(len(full.tgt_words))
    assert empty.weights.shape == (0, 1)


def test_draw_puts_the_darkest_mark_where_a_word_looked() -> None:
    seen = Look(["a", "b"], ["x", "yy"], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert draw(seen).splitlines() == ["      1  2", " x       @", "yy    @   ".rstrip() + "   ", "", "1 a  2 b"]
    assert seen.links() == [(1, 0), (0, 1)]


def test_inspect_shows_source_translation_and_grid(translator: Translator) -> None:
    picture, blank = inspect_lines(translator, ["the old dog", ""])
    assert picture.startswith("the old dog\n" + translated(translator, "the old dog").text + "\n")
    assert "1 the  2 old  3 dog" in picture
    assert blank == "(blank)\n"
