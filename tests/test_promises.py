"""The product's promises: as many lines out as in, in order, whatever the bytes, the neighbours and the batch."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtattn import translate
from mtattn.decode import DecodeConfig
from mtattn.progress import Reporter
from mtattn.textio import open_lines, open_output
from mtattn.translate import Translation, Translator

CONFIG = DecodeConfig(beam_size=2, max_len_ratio=0.5, max_len_extra=3)
SEARCHES = {
    "beam": CONFIG,
    "greedy": replace(CONFIG, beam_size=1),
    "diverse": replace(CONFIG, beam_size=4, nbest=3, length_penalty=0.6, diversity=0.5),
    "sample": replace(CONFIG, search="sample", nbest=2, temperature=0.7, top_k=9),
    "restricted": replace(CONFIG, min_len=2, min_len_ratio=0.4, no_repeat_ngram_size=2),
}
AWKWARD = (
    "\0",
    "\r",
    "\v\f",
    "\x1b[31m",
    "\x85",
    "\u2028",
    "\ufeff",
    "\u200b",
    "</s>",
    "<2de>",
    "<pad>",
    "<0x0A>",
    "▁",
    "𝄞",
)
BYTES = st.lists(
    st.sampled_from([b"\n", b"\n", b" ", b"\r\n", b"\xff\xfe", b"\xc3", *(text.encode() for text in AWKWARD)])
    | st.binary(max_size=6)
    | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
    max_size=12,
).map(b"".join)
LINES = st.lists(st.text(max_size=20).filter(lambda text: "\n" not in text), min_size=1, max_size=6)


def through(folder: Path, data: bytes, translator: Translator) -> bytes:
    """What `mtattn translate` writes for these bytes."""
    source, target = folder / "in", folder / "out"
    source.write_bytes(data)
    with open_lines(source, Reporter()) as lines, open_output(target, source, force=True) as write:
        for translation in translator.translate(lines):
            write(translation.text)
    return target.read_bytes()


@settings(max_examples=25)
@given(BYTES)
def test_any_bytes_in_as_many_lines_out_each_what_it_would_be_alone(model, tokenizer, tmp_path_factory, data):
    translator, folder = Translator(model, tokenizer, CONFIG, max_len=12), tmp_path_factory.mktemp("lines")
    raw = data.removesuffix(b"\n").split(b"\n") if data else []
    out = through(folder, data, translator)
    assert out.count(b"\n") == len(raw)
    assert out.endswith(b"\n") or not out
    # A byte order mark is taken off a file's first line alone, so every other line stands second in a file of its own.
    alone = [through(folder, b"\n" * (i > 0) + line + b"\n", translator)[i > 0 :] for i, line in enumerate(raw)]
    assert b"".join(alone) == out


def outcome(translation: Translation) -> list[tuple[list[int], str]]:
    return [
        (hypothesis.ids, text)
        for segment in translation.segments
        for hypothesis, text in zip(segment.hypotheses, segment.texts, strict=True)
    ]


def scores(translation: Translation) -> list[float]:
    return [hypothesis.score for segment in translation.segments for hypothesis in segment.hypotheses]


def same(one: list[Translation], other: list[Translation]) -> None:
    """In float32 only the last bits of scores may differ."""
    assert [outcome(x) for x in one] == [outcome(x) for x in other]
    for x, y in zip(one, other, strict=True):
        assert scores(x) == pytest.approx(scores(y), abs=1e-4)


def one_by_one(translator: Translator, lines: list[str]) -> list[Translation]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translate, "BATCH_POSITIONS", 1)
        return list(translator.translate(lines))


@pytest.mark.parametrize("config", SEARCHES.values(), ids=SEARCHES)
@given(lines=LINES, random=st.randoms(use_true_random=False))
@settings(max_examples=6)
def test_neighbours_and_order_do_not_matter(model, tokenizer, config, lines, random):
    translator = Translator(model, tokenizer, config, max_len=12)
    together = list(translator.translate(lines))
    same(one_by_one(translator, lines), together)
    if config.search == "beam":  # a sample belongs to its line's number
        order = random.sample(range(len(lines)), len(lines))
        same(list(translator.translate([lines[i] for i in order])), [together[i] for i in order])


def test_a_batch_of_1_equals_a_batch_of_64(model, tokenizer, toy_lines):
    lines = toy_lines[0][:64]
    translator = Translator(model, tokenizer, replace(CONFIG, max_len_ratio=1.0), max_len=99)
    assert len(list(translator._batches(translator._split([(line, "") for line in lines], 0)))) == 1
    together = list(translator.translate(lines))
    same(one_by_one(translator, lines), together)
    assert len({translation.text for translation in together}) > 32  # the model does tell sentences apart


@pytest.mark.parametrize("lines_ahead", [1, 3])
def test_blocks_do_not_show(model, tokenizer, toy_lines, monkeypatch, lines_ahead):
    lines, prefixes = [*toy_lines[0][:5], "", "a"], ["", "Er", "", "Sie", "", "x", ""]
    for config in SEARCHES.values():
        translator = Translator(model, tokenizer, config, max_len=12)
        whole = [outcome(x) for x in translator.translate(lines, prefixes=prefixes)]
        with monkeypatch.context() as patch:
            patch.setattr(translate, "FIRST_LINES", lines_ahead)
            patch.setattr(translate, "LINES_AHEAD", lines_ahead)
            assert [outcome(x) for x in translator.translate(lines, prefixes=prefixes)] == whole


@pytest.mark.parametrize("config", SEARCHES.values(), ids=SEARCHES)
@given(lines=LINES)
@settings(max_examples=6)
def test_scores_are_sums_of_the_returned_log_probs_which_are_the_models_own(model, tokenizer, config, lines):
    for translation in Translator(model, tokenizer, config, max_len=12).translate(lines):
        for segment in translation.segments:
            for hypothesis in segment.hypotheses:
                ids = [*hypothesis.ids, tokenizer.eos_id] if hypothesis.finished else hypothesis.ids
                assert len(hypothesis.token_log_probs) == len(ids)
                assert hypothesis.log_prob == pytest.approx(math.fsum(hypothesis.token_log_probs), abs=1e-4)
                assert hypothesis.score == pytest.approx(hypothesis.log_prob / len(ids) ** config.length_penalty)
                tgt_in = torch.tensor([[tokenizer.bos_id, *ids[:-1]]])
                with torch.inference_mode():
                    log_probs = model(torch.tensor([segment.src_ids]), tgt_in)[0].log_softmax(-1)
                expected = log_probs[torch.arange(len(ids)), ids]
                torch.testing.assert_close(torch.tensor(hypothesis.token_log_probs), expected, atol=1e-4, rtol=0)
