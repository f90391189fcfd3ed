"""Scores: sacreBLEU's own numbers, each with its signature; the loss on dev is the model's."""

import math

import pytest
import sacrebleu
import torch

from mtattn.batch import collate
from mtattn.decode import DecodeConfig
from mtattn.evaluate import score
from mtattn.prepare import Pairs
from mtattn.translate import Translator
from mtattn.validate import dev_loss, validate

HYPOTHESES = ["Der Hund schläft im Garten.", "Eine Frau liest ein Buch.", ""]
REFERENCES = ["Der Hund schläft im Haus.", "Die Frau liest gerade ein Buch.", "Ein Wort."]


def test_scores_are_sacrebleus():
    scores = score(HYPOTHESES, REFERENCES)
    assert scores.bleu == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score)
    assert scores.chrf == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score)
    assert scores.ter == pytest.approx(sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score)
    assert scores.num_sentences == 3
    assert set(scores.signature) == {"bleu", "chrf", "ter"}
    for name, part in (("bleu", "tok:13a"), ("chrf", "nc:6"), ("ter", "tok:tercom")):
        assert part in scores.signature[name]
        assert f"version:{sacrebleu.__version__}" in scores.signature[name]


def test_the_reference_itself_scores_the_best():
    scores = score(REFERENCES, REFERENCES)
    assert scores.bleu == pytest.approx(100)
    assert scores.chrf == pytest.approx(100)
    assert scores.ter == pytest.approx(0)


def test_ter_can_be_left_out():
    scores = score(HYPOTHESES, REFERENCES, ter=False)
    assert scores.ter is None
    assert "ter" not in scores.signature


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_unequal_or_no_lines(hypotheses, references):
    with pytest.raises(ValueError, match=f"{len(hypotheses)} hypotheses, {len(references)} references"):
        score(hypotheses, references)


# Validation


@pytest.fixture(scope="module")
def dev(toy_lines) -> Pairs:
    return Pairs(toy_lines[0][:140], toy_lines[1][:140])  # more than one batch


def test_dev_loss_computes_few_long_pairs_together(model, tokenizer, dev, monkeypatch):
    whole = dev_loss(model, tokenizer, dev)
    sizes = []
    hidden = type(model).hidden
    monkeypatch.setattr(
        type(model), "hidden", lambda self, src, tgt: sizes.append(src.numel()) or hidden(self, src, tgt)
    )
    monkeypatch.setattr("mtattn.validate.BATCH_POSITIONS", {False: 100})
    assert dev_loss(model, tokenizer, dev) == pytest.approx(whole, rel=1e-5)
    assert len(sizes) > 1 and max(sizes) <= 100


def test_dev_loss_is_the_mean_over_tokens(model, tokenizer, dev):
    total, count = 0.0, 0
    for src, tgt in zip(dev.src, dev.tgt, strict=True):
        ids = tokenizer.encode_src([src]), tokenizer.encode_tgt([tgt])
        batch = collate(*ids, None, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id)
        with torch.no_grad():
            log_probs = model(batch.src, batch.tgt_in)[0].log_softmax(-1)  # [T, V]
        total -= log_probs.gather(-1, batch.tgt_out.T).sum().item()
        count += batch.num_tokens
    assert dev_loss(model, tokenizer, dev) == pytest.approx(total / count, rel=1e-5)


def test_validation_is_greedy_and_shows_samples(model, tokenizer, dev):
    few = Pairs(dev.src[:7], dev.tgt[:7])
    calls: list[int] = []
    decode = DecodeConfig(search="sample", nbest=3, max_len_ratio=0.0, max_len_extra=5)
    outcome = validate(model, tokenizer, few, decode, check=lambda: calls.append(1))
    greedy = Translator(model, tokenizer, DecodeConfig(beam_size=1, max_len_ratio=0.0, max_len_extra=5))
    outputs = [translation.text for translation in greedy.translate(few.src)]
    assert outcome.samples == [(few.src[i], few.tgt[i], outputs[i]) for i in (0, 3, 6)]
    assert outcome.scores.bleu == pytest.approx(sacrebleu.corpus_bleu(outputs, [few.tgt]).score)
    assert outcome.perplexity == pytest.approx(math.exp(outcome.loss))
    assert len(calls) >= 2
    assert not model.training


def test_without_spaces_between_words_bleu_counts_characters():
    texts = ["我们今天去公园里散步然后回家吃饭", "猫坐在垫子上看着窗外的小鸟飞来飞去"]
    found = score(texts, texts)
    assert found.bleu == pytest.approx(100)
    assert "tok:char" in found.signature["bleu"]
    short = ["我喜欢狗。", "他昨天没来。", "你会说英语吗？"]
    assert "tok:char" in score(short, short).signature["bleu"]
    for spaced in ("the cat sat on a mat", "개가 잔디 위에서 뛰어논다", "https://example.org/reports/2023/annual", ""):
        assert "tok:13a" in score(["a cat"], [spaced]).signature["bleu"]
