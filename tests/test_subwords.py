"""Random segmentations: those of the model as their limit, the right probabilities, and the same in any process."""

import hashlib
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from mtattn.subwords import BPE, SubwordSampling, Unigram
from mtattn.tokenizer import EOS_ID, UNK_ID, TokenizerConfig, train_tokenizer

ODD = ["", " ", "Anna  hat\t2 Äpfel.", "日本 <s> ▁ 😀", "xxxxxxxxxxxxxxxx", "\u200b", "a\u0301"]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def config(request):
    return TokenizerConfig(kind=request.param, vocab_size=600, normalization="nmt_nfkc", sampling=0.3)


@pytest.fixture(scope="module")
def trained(config, toy_lines):
    return train_tokenizer(*toy_lines, config)[0]


def test_without_chance_it_is_sentencepieces_own(trained, config, toy_lines):
    certain = Unigram(trained.processors[0], 1000.0) if config.kind == "unigram" else BPE(trained.processors[0], 0.0)
    texts = [*toy_lines[0], *toy_lines[1], *ODD]
    assert [[*certain(text, Random(1)), EOS_ID] for text in texts] == trained.encode_src(texts)


def test_texts_stay_and_pieces_change_with_the_seed(trained, config, toy_lines):
    draw, (src, tgt) = SubwordSampling(trained, config, 256), ([*lines[:20], *ODD] for lines in toy_lines)
    first, second = draw(src, tgt, 3), draw(src, tgt, 4)
    assert first == draw(src, tgt, 3) != second
    for drawn, usual in zip(first, (trained.encode_src(src), trained.encode_tgt(tgt)), strict=True):
        assert drawn != usual
        assert trained.decode_all([ids[:-1] for ids in drawn]) == trained.decode_all([ids[:-1] for ids in usual])
        assert all(ids[-1] == EOS_ID and min(ids[:-1], default=4) > UNK_ID for ids in drawn)


def test_what_grows_too_long_has_its_usual_pieces(trained, config, toy_lines):
    src, tgt = (lines[:50] for lines in toy_lines)
    usual = trained.encode_src(src)
    longest = max(map(len, usual))
    free, bounded = (SubwordSampling(trained, config, most)(src, tgt, 1)[0] for most in (256, longest))
    assert max(map(len, free)) > longest == max(map(len, bounded))
    assert all(b == (f if len(f) <= longest else u) for f, b, u in zip(free, bounded, usual, strict=True))


PROGRAM = """
import hashlib, sys
from pathlib import Path
from mtattn.subwords import SubwordSampling
from mtattn.tokenizer import Tokenizer, TokenizerConfig
draw = SubwordSampling(Tokenizer(Path(sys.argv[1]).read_bytes()), TokenizerConfig(kind=sys.argv[2], sampling=0.3), 256)
drawn = draw(["Anna is baking a cake."] * 9, ["Anna backt einen Kuchen."] * 9, 7)
print(hashlib.sha256(str(drawn).encode()).hexdigest())
"""


def test_another_process_draws_the_same(trained, config, tmp_path: Path):
    (tmp_path / "m").write_bytes(trained.to_files()["tokenizer.model"])
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m"), config.kind]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    drawn = SubwordSampling(trained, config, 256)(["Anna is baking a cake."] * 9, ["Anna backt einen Kuchen."] * 9, 7)
    assert said == hashlib.sha256(str(drawn).encode()).hexdigest()


def test_unigram_draws_by_the_models_probability(toy_lines):
    trained, _ = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=600))
    unigram, random, word = Unigram(trained.processors[0], 0.4), Random(2), "▁Anna"

    def all_ways(rest: str) -> list[list[str]]:
        if not rest:
            return [[]]
        starts = [rest[:n] for n in range(1, len(rest) + 1) if n == 1 or rest[:n] in unigram._ids]
        return [[start, *more] for start in starts for more in all_ways(rest[len(start) :])]

    weights = {
        tuple(way): math.exp(0.4 * sum(unigram._scores.get(piece, unigram._least - 10) for piece in way))
        for way in all_ways(word)
    }
    total, times = sum(weights.values()), 20_000
    counts = Counter(tuple(unigram.draw(word, random)) for _ in range(times))
    assert set(counts) <= set(weights)
    for way, weight in weights.items():
        expected = weight / total
        assert abs(counts[way] / times - expected) < 5 * math.sqrt(expected * (1 - expected) / times) + 1e-4


def test_bpe_dropout_leaves_merges_out(toy_lines):
    trained, _ = train_tokenizer(*toy_lines, TokenizerConfig(kind="bpe", vocab_size=600))
    lens = []
    for alpha in (0.0, 0.1, 0.5, 0.999999):
        draw, random = BPE(trained.processors[0], alpha), Random(1)
        lens.append(sum(len(draw(text, random)) for text in toy_lines[0][:100]))
    assert lens == sorted(set(lens))
    characters = sum(len(trained.processors[0].normalize(text)) for text in toy_lines[0][:100])
    assert lens[-1] == pytest.approx(characters, rel=0.01)  # hardly a merge is left
