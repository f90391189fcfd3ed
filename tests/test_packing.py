"""Pairs laid end to end: every pair once, nothing beyond the row, and the losses and gradients of padded batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtattn.batching import Batch, TokenTable, collate, pack
from mtattn.gradient import Gradient
from mtattn.loss import LossConfig
from mtattn.model import PositionConfig
from mtattn.objective import batch_loss
from mtattn.packing import RowShape, cut, fitted, lay_out

PAD, BOS = 0, 1
lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40)


def random_pairs(sizes, seed=0):
    draw = np.random.default_rng(seed)
    return [[draw.integers(4, 23, size[side]) for size in sizes] for side in (0, 1)]


def packed_batch(src, tgt, shape: RowShape) -> Batch:
    flat = [(np.concatenate(side), np.array([*map(len, side)])) for side in (src, tgt)]
    return pack(*flat, np.arange(len(src)), pad_id=PAD, bos_id=BOS, shape=shape)


@given(lengths, st.integers(1, 200), st.randoms(use_true_random=False))
def test_every_pair_is_in_one_batch_and_fits(sizes, batch_tokens, random):
    src_lens, tgt_lens = map(np.array, zip(*sizes, strict=True))
    shape = RowShape.for_lengths(src_lens, tgt_lens, batch_tokens)
    order = list(range(len(sizes)))
    random.shuffle(order)
    batches = cut(order, src_lens[order], tgt_lens[order], shape)
    assert [number for batch in batches for number in batch] == order
    for batch in batches:
        for lens, length in ((src_lens[batch], shape.src_len), (tgt_lens[batch], shape.tgt_len)):
            starts, positions = lay_out(lens, length, shape.num_pairs, shape.num_padding)
            sizes_laid = np.diff(starts)
            assert len(starts) == shape.num_pairs + 1 and starts[-1] == len(positions) == length
            assert sizes_laid[: len(lens)].tolist() == lens.tolist() and sizes_laid.max() <= shape.longest
            assert (sizes_laid[-shape.num_padding :] > 0).all()  # padding sees padding, on both sides
            assert positions.tolist() == [i for size in sizes_laid for i in range(size)]


def test_rows_are_nearly_full():
    draw = np.random.default_rng(0)
    tgt_lens = draw.integers(5, 30, 5000)
    src_lens = np.maximum(1, tgt_lens + draw.integers(-4, 3, 5000))
    shape = RowShape.for_lengths(src_lens, tgt_lens, 4096)
    batches = cut(range(5000), src_lens, tgt_lens, shape)
    assert sum(tgt_lens[batch].sum() for batch in batches[:-1]) > 0.97 * shape.tgt_len * (len(batches) - 1)


@pytest.mark.parametrize("rdrop", [0.0, 4.0])
@pytest.mark.parametrize("position", ["rotary", "sinusoidal"])
def test_packed_losses_and_gradients_are_those_of_padded_batches(position, rdrop, make_model):
    model = make_model(dropout=0.0, inner_dropout=0.0, position=PositionConfig(position)).train()
    for writer in (p for name, p in model.named_parameters() if "out_proj" in name or "down_proj" in name):
        torch.nn.init.normal_(writer, std=0.1)  # they start at zero, where attention would not matter
    src, tgt = random_pairs([(3, 9), (7, 2), (1, 1), (12, 11), (5, 6)])
    padded = collate(src, tgt, np.arange(5), pad_id=PAD, bos_id=BOS)
    packed = packed_batch(src, tgt, RowShape.for_lengths([28], [29], 40))
    assert packed.num_tokens == padded.num_tokens == 29 and packed.num_pairs == 5
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
    src, tgt = random_pairs([(3, 4), (7, 5), (2, 6)])
    shape = RowShape.for_lengths([12], [15], 20)
    first = packed_batch(src, tgt, shape)
    other = packed_batch([src[0], src[1] + 1, src[2]], [tgt[0], tgt[1] + 1, tgt[2]], shape)
    hidden = [model.hidden(batch.src, batch.tgt_in, batch.packing)[0] for batch in (first, other)]
    torch.testing.assert_close(hidden[0][:4], hidden[1][:4])
    torch.testing.assert_close(hidden[0][9:15], hidden[1][9:15])
    assert not torch.allclose(hidden[0][4:9], hidden[1][4:9])


def test_rows_of_a_packed_batch_are_padded_pairs():
    src, tgt = random_pairs([(3, 4), (7, 5), (2, 6)])
    part = packed_batch(src, tgt, RowShape.for_lengths([12], [15], 20)).rows(slice(0, None, 2), PAD)
    expected = collate([src[0], src[2]], [tgt[0], tgt[2]], np.array([0, 2]), pad_id=PAD, bos_id=BOS)
    for found, wanted in zip(part.tensors(), expected.tensors(), strict=True):
        assert torch.equal(found, wanted)
    assert part.packing is None and part.num_tokens == 10 and part.indices.tolist() == [0, 2]


@given(lengths, st.integers(0, 99))
def test_flat_ids_are_the_rows_one_after_the_other(sizes, seed):
    rows, _ = random_pairs(sizes)
    parts = [part for part in (rows[:3], rows[3:5], rows[5:]) if part]
    chunks = [(np.concatenate(part), np.cumsum([0, *map(len, part)])) for part in parts]
    table = TokenTable(chunks)
    numbers = np.random.default_rng(seed).permutation(len(rows))
    assert table.flat(numbers).tolist() == np.concatenate([rows[i] for i in numbers]).tolist()


def test_sampled_rows_stand_in_as_long_as_there_is_room():
    plain, sampled = [[1], [2], [3]], [[1, 1, 1], [2, 2], [3, 3, 3, 3, 3]]
    assert fitted(sampled, plain, room=9, longest=5) == [[1, 1, 1], [2, 2], [3]]
    assert fitted(sampled, plain, room=10, longest=5) == sampled
    assert fitted(sampled, plain, room=10, longest=4) == [[1, 1, 1], [2, 2], [3]]
    assert fitted(sampled, plain, room=3, longest=5) == plain
