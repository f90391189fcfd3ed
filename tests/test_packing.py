"""Pairs laid end to end: every pair once, nothing beyond the row, and the losses and gradients of padded batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtattn.batch import Batch, TokenTable, collate, pack
from mtattn.gradient import Gradient
from mtattn.loss import LossConfig
from mtattn.model import PositionConfig
from mtattn.objective import batch_loss
from mtattn.packing import RowShape, assign, fitted, lay_out, plan_rows

PAD, BOS = 0, 1
lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40)


def random_pairs(sizes, seed=0):
    draw = np.random.default_rng(seed)
    return [[draw.integers(4, 23, size[side]) for size in sizes] for side in (0, 1)]


def packed_batch(src, tgt, shape: RowShape) -> Batch:
    lens = [np.array([*map(len, side)]) for side in (src, tgt)]
    rows = assign(*lens, shape)
    assert (rows >= 0).all()
    order = np.argsort(rows, kind="stable")
    sides = [
        (np.concatenate([side[i] for i in order]), size[order]) for side, size in zip((src, tgt), lens, strict=True)
    ]
    return pack(*sides, order, rows[order], pad_id=PAD, bos_id=BOS, shape=shape)


@given(lengths, st.integers(1, 600), st.integers(0, 99))
def test_every_pair_is_in_one_batch_and_its_row_has_room_for_it(sizes, batch_tokens, seed):
    src_lens, tgt_lens = map(np.array, zip(*sizes, strict=True))
    shape = RowShape.for_lengths(src_lens, tgt_lens, batch_tokens)
    order = np.random.default_rng(seed).permutation(len(sizes))
    numbers, rows = plan_rows(order, src_lens[order], tgt_lens[order], shape)
    assert sorted(np.concatenate(numbers).tolist()) == sorted(order.tolist())
    for batch, own in zip(numbers, rows, strict=True):
        assert len(batch) and (np.diff(own) >= 0).all() and own[-1] < shape.rows
        for lens, length in ((src_lens, shape.src_len), (tgt_lens, shape.tgt_len)):
            assert np.bincount(own, lens[batch]).max() < length  # a token of padding is left
            places, positions = lay_out(lens[batch], own, length)
            assert (np.diff(places[np.diff(positions, append=0) > 0]) >= 1).all() and len(set(places)) == len(places)
            assert (places // length == np.repeat(own, lens[batch])).all()


def test_rows_are_nearly_full():
    draw = np.random.default_rng(0)
    tgt_lens = draw.integers(5, 30, 5000)
    src_lens = np.maximum(1, tgt_lens + draw.integers(-4, 5, 5000))
    shape = RowShape.for_lengths(src_lens, tgt_lens, 4096)
    numbers, _ = plan_rows(np.arange(5000), src_lens, tgt_lens, shape)
    filled = [tgt_lens[batch].sum() / (shape.rows * shape.tgt_len) for batch in numbers[:-1]]
    assert shape == RowShape(32, 128, 128) and min(filled) > 0.93


@pytest.mark.parametrize("rdrop", [0.0, 4.0])
@pytest.mark.parametrize("position", ["rotary", "sinusoidal"])
def test_packed_losses_and_gradients_are_those_of_padded_batches(position, rdrop, make_model):
    model = make_model(dropout=0.0, inner_dropout=0.0, position=PositionConfig(position)).train()
    for writer in (p for name, p in model.named_parameters() if "out_proj" in name or "down_proj" in name):
        torch.nn.init.normal_(writer, std=0.1)  # they start at zero, where attention would not matter
    src, tgt = random_pairs([(3, 9), (7, 2), (1, 1), (12, 11), (5, 6)])
    padded = collate(src, tgt, np.arange(5), pad_id=PAD, bos_id=BOS)
    packed = packed_batch(src, tgt, RowShape(2, 20, 20))
    assert packed.num_tokens == padded.num_tokens == 29 and packed.src.shape == (2, 20)
    gradient = Gradient(lambda batch: batch_loss(model, batch, LossConfig(rdrop=rdrop)), torch.device("cpu"))
    found = []
    for batch in (padded, packed, packed):  # the second packed one is copied to where the first lay
        model.zero_grad()
        nats = gradient(batch, batch.num_tokens).clone()
        found.append({"nats": nats, **{name: p.grad.clone() for name, p in model.named_parameters()}})
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], found[1], rtol=0, atol=0)


def test_a_pair_does_not_feel_its_neighbours(make_model):
    model = make_model(dropout=0.0, inner_dropout=0.0).eval()
    src, tgt = random_pairs([(5, 6), (4, 5), (2, 4)])
    shape = RowShape(1, 16, 16)
    first = packed_batch(src, tgt, shape)
    other = packed_batch([src[0], src[1] + 1, src[2]], [tgt[0], tgt[1] + 1, tgt[2]], shape)
    hidden = [model.hidden(batch.src, batch.tgt_in, batch.packing)[0] for batch in (first, other)]
    torch.testing.assert_close(hidden[0][:6], hidden[1][:6])
    torch.testing.assert_close(hidden[0][11:15], hidden[1][11:15])
    assert not torch.allclose(hidden[0][6:11], hidden[1][6:11])


def test_some_rows_of_a_batch_keep_their_pairs():
    src, tgt = random_pairs([(9, 8), (7, 5), (2, 6), (8, 8)])
    batch = packed_batch(src, tgt, RowShape(3, 12, 12))
    assert batch.pair_rows.tolist() == [0, 1, 2, 2] and batch.indices.tolist() == [0, 3, 1, 2]
    part = batch.rows(slice(1, None), PAD)
    assert part.indices.tolist() == [3, 1, 2] and part.pair_rows.tolist() == [0, 1, 1] and part.num_tokens == 19
    for whole, some in zip(batch.tensors(), part.tensors(), strict=True):
        assert torch.equal(whole[1:], some)


@given(lengths, st.integers(0, 99))
def test_flat_ids_are_the_rows_one_after_the_other(sizes, seed):
    rows, _ = random_pairs(sizes)
    parts = [part for part in (rows[:3], rows[3:5], rows[5:]) if part]
    chunks = [(np.concatenate(part), np.cumsum([0, *map(len, part)])) for part in parts]
    table = TokenTable(chunks)
    numbers = np.random.default_rng(seed).permutation(len(rows))
    assert table.flat(numbers).tolist() == np.concatenate([rows[i] for i in numbers]).tolist()


def test_sampled_texts_stand_in_as_long_as_their_row_has_room():
    plain, sampled, rows = [[1], [2], [3]], [[1, 1, 1], [2, 2], [3, 3, 3, 3]], np.array([0, 0, 1])
    assert fitted(sampled, plain, rows, room=5) == sampled
    assert fitted(sampled, plain, rows, room=4) == [[1, 1, 1], [2], [3, 3, 3, 3]]
    assert fitted(sampled, plain, rows, room=3) == [[1], [2, 2], [3]]
    assert fitted(sampled, plain, rows, room=2) == plain
