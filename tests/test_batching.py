"""Batching: every pair once an epoch, within the budget, the same from any position."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import token_table

from mtattn.batch import Batch, collate
from mtattn.batching import Batches, Position, plan_epoch
from mtattn.filtering import FilterConfig
from mtattn.subwords import SubwordSampling
from mtattn.tokenizer import TokenizerConfig

PAD, BOS, EOS = 0, 1, 2
lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=120)


def random_ids(count: int, seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [[*random.integers(4, 600, random.integers(1, 25)).tolist(), EOS] for _ in range(count)]


@pytest.fixture
def batches(tokenizer) -> Batches:
    tables = (token_table(random_ids(70, seed)) for seed in (1, 2))
    return Batches(*tables, tokenizer, batch_tokens=128, seed=5)


def take(stream, count: int) -> list[tuple[Batch, Position]]:
    taken = [next(stream) for _ in range(count)]
    stream.close()
    return taken


def same(one: Batch, other: Batch) -> bool:
    return (
        np.array_equal(one.indices, other.indices)
        and one.num_tokens == other.num_tokens
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("src", "tgt_in", "tgt_out"))
    )


# The plan


@given(lengths, st.integers(1, 100), st.integers(0, 3), st.integers(1, 9))
def test_plan_has_every_pair_once_within_the_budget(pairs, batch_tokens, epoch, slab):
    src, tgt = np.array(pairs).T
    plan = plan_epoch(src, tgt, batch_tokens=batch_tokens, seed=1, epoch=epoch, slab=slab)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(pairs)))
    for batch in plan:
        longest = max(src[batch].max(), tgt[batch].max())
        assert len(batch) * longest <= batch_tokens or len(batch) == 1
        assert len(batch) > 0


@given(lengths, st.integers(0, 2**40), st.integers(0, 9))
def test_plan_is_a_function_of_seed_and_epoch(pairs, seed, epoch):
    src, tgt = np.array(pairs).T
    first, second = (plan_epoch(src, tgt, batch_tokens=90, seed=seed, epoch=epoch) for _ in range(2))
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]


def test_epochs_and_seeds_differ():
    lens = np.full(200, 10)
    plans = [
        np.concatenate(plan_epoch(lens, lens, batch_tokens=50, seed=seed, epoch=epoch)).tolist()
        for seed, epoch in ((1, 0), (1, 1), (2, 0))
    ]
    assert plans[0] != plans[1] != plans[2] != plans[0]


def test_lengths_in_a_batch_are_alike():
    random = np.random.default_rng(0)
    src = random.integers(2, 60, 3000)
    tgt = np.maximum(2, src + random.integers(-5, 6, 3000))
    plan = plan_epoch(src, tgt, batch_tokens=2048, seed=0, epoch=0)
    real = sum(src[b].sum() + tgt[b].sum() for b in plan)
    padded = sum(len(b) * (src[b].max() + tgt[b].max()) for b in plan)
    assert real / padded > 0.9  # unsorted batches reach about 0.5


# The stream


def test_an_epoch_holds_every_pair_once(batches):
    seen = take(batches.stream(Position()), len(batches.plan(0)) + 1)
    assert sorted(int(i) for batch, _ in seen[:-1] for i in batch.indices) == list(range(70))
    assert seen[-2][1] == Position(0, len(batches.plan(0)))
    assert seen[-1][1] == Position(1, 1)


def test_a_batch_holds_its_pairs(batches):
    src, tgt = random_ids(70, 1), random_ids(70, 2)
    batch = batches.at(Position(0, 2))
    expected = collate(
        [src[i] for i in batch.indices], [tgt[i] for i in batch.indices], batch.indices, pad_id=PAD, bos_id=BOS
    )
    assert same(batch, expected)


@pytest.mark.parametrize("sampling", [0.0, 0.3])
def test_stream_resumes_at_any_position(batches, tokenizer, toy_lines, sampling):
    if sampling:
        src, tgt = (lines[:40] for lines in toy_lines)
        tables = token_table(tokenizer.encode_src(src)), token_table(tokenizer.encode_tgt(tgt))
        draw = SubwordSampling(tokenizer, TokenizerConfig(sampling=sampling), 256)
        batches = Batches(
            *tables,
            tokenizer,
            batch_tokens=128,
            seed=5,
            sample=lambda chosen, seed: draw([src[i] for i in chosen], [tgt[i] for i in chosen], seed),
        )
    whole = take(batches.stream(Position()), 2 * len(batches.plan(0)))
    for start in (0, 1, len(batches.plan(0)) - 1, len(batches.plan(0)), len(batches.plan(0)) + 2):
        position = whole[start - 1][1] if start else Position()
        resumed = take(batches.stream(position), 4 if start < len(whole) - 4 else 1)
        for (batch, after), (expected, expected_after) in zip(resumed, whole[start:], strict=False):
            assert same(batch, expected)
            assert after == expected_after


def test_sampling_differs_between_epochs(tokenizer, toy_lines):
    src, tgt = (lines[:1] for lines in toy_lines)
    tables = token_table(tokenizer.encode_src(src)), token_table(tokenizer.encode_tgt(tgt))
    draw = SubwordSampling(tokenizer, TokenizerConfig(sampling=0.1), 256)
    batches = Batches(*tables, tokenizer, batch_tokens=99, seed=5, sample=lambda chosen, seed: draw(src, tgt, seed))
    first, *others = (batches.at(Position(epoch, 0)).src.tolist() for epoch in range(4))
    assert any(other != first for other in others)


def test_the_loop_and_the_thread_ahead_of_it_keep_a_plan_each(batches, monkeypatch):
    made: list[int] = []

    def counted(*lens, epoch, **options):
        made.append(epoch)
        return plan_epoch(*lens, epoch=epoch, **options)

    monkeypatch.setattr("mtattn.batching.plan_epoch", counted)
    plans = [(batches.plan(0), batches.plan(1)) for _ in range(3)]
    assert made == [0, 1]  # at millions of pairs a plan takes seconds
    assert all(one is other for one, other in zip(plans[0], plans[2], strict=True))


def test_batches_have_room_for_longer_spellings(tokenizer):
    """Sampled pieces are more than the usual ones: here twice as many of each text."""
    table = token_table([[5] * n for n in range(1, 40)])

    def sample(chosen, seed):
        return [[*row, *row] for row in table.rows(chosen)], table.rows(chosen)

    batches = Batches(table, table, tokenizer, batch_tokens=256, seed=1, sample=sample)
    for number in range(len(batches.plan(0))):
        batch = batches.at(Position(0, number))
        assert batch.src.numel() <= 256
        assert batch.tgt_in.numel() <= 128


def test_an_error_while_preparing_reaches_the_reader(tokenizer):
    def sample(chosen, seed):
        if gone:
            raise OSError("the disk is gone")
        return table.rows(chosen), table.rows(chosen)

    table, gone = token_table(random_ids(5, 1)), False
    batches = Batches(table, table, tokenizer, batch_tokens=99, seed=1, sample=sample)
    gone = True
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches.stream(Position()))


def test_closing_the_stream_ends_its_thread(batches):
    take(batches.stream(Position()), 2)
    assert "batches" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("options", [{"max_len": 1}, {"max_ratio": 0.5}, {"max_ratio": math.nan}])
def test_filter_config_says_what_is_allowed(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*allowed"):
        FilterConfig(**options)
