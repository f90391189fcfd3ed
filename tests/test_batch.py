"""Batches: nothing is lost in padding or shifting, and a user can find the pairs of one."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtattn.batch import TokenTable, collate, pad, pair_names

PAD, BOS, EOS = 0, 1, 2


def test_collate_shifts_the_target():
    batch = collate([[5, 6, EOS], [7, EOS]], [[8, EOS], [9, 10, 11, EOS]], np.array([3, 1]), pad_id=PAD, bos_id=BOS)
    assert batch.src.tolist() == [[5, 6, EOS], [7, EOS, PAD]]
    assert batch.tgt_out.tolist() == [[8, EOS, PAD, PAD], [9, 10, 11, EOS]]
    assert batch.tgt_in[:, 0].tolist() == [BOS, BOS]
    real = batch.tgt_out[:, :-1] != PAD
    assert torch.equal(batch.tgt_in[:, 1:][real], batch.tgt_out[:, :-1][real])
    assert batch.num_tokens == 6 == int((batch.tgt_out != PAD).sum())
    assert batch.indices.tolist() == [3, 1]


@given(st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=5))
def test_pad_loses_nothing(rows):
    padded = pad(rows, PAD)
    assert padded.dtype == torch.int64
    assert padded.shape == (len(rows), max(map(len, rows)))
    assert [[i for i in line if i != PAD] for line in padded.tolist()] == rows


def test_batch_moves_whole():
    batch = collate([[4, EOS]], [[5, EOS]], np.array([0]), pad_id=PAD, bos_id=BOS)
    moved = batch.to(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(moved.tensors(), batch.tensors(), strict=True))
    assert (moved.num_tokens, moved.indices.tolist()) == (batch.num_tokens, [0])


def test_pairs_are_named_by_their_rows_in_the_corpus():
    batch = collate([[4, EOS]] * 3, [[5, EOS]] * 3, np.array([2, 0, 1]), pad_id=PAD, bos_id=BOS)
    numbers, rest = np.array([3, 8, 9]), ", blank or invalid ones not counted"
    assert pair_names([batch], numbers, 10) == f"training pairs 4, 9, 10{rest}"
    assert pair_names([batch] * 4, numbers, 10).endswith(f"10, 10, ...{rest}")


def test_pairs_of_an_old_corpus_are_not_counted_among_the_users_own():
    batch = collate([[4, EOS]] * 3, [[5, EOS]] * 3, np.array([2, 0, 1]), pad_id=PAD, bos_id=BOS)
    numbers, rest = np.array([3, 8, 9]), ", blank or invalid ones not counted"
    assert pair_names([batch], numbers, 8) == f"training pair 4 and pairs 1, 2 of the old corpus{rest}"
    assert pair_names([batch], numbers, 3) == f"pairs 1, 6, 7 of the old corpus{rest}"


@given(st.lists(st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=4), min_size=1, max_size=5))
def test_token_table_reads_rows_across_chunks(chunks):
    packed = [
        (np.array([i for row in rows for i in row], dtype=np.int64), np.cumsum([0, *(len(row) for row in rows)]))
        for rows in chunks
    ]
    table, rows = TokenTable(packed), [row for chunk in chunks for row in chunk]
    assert len(table) == len(rows)
    assert table.lens.tolist() == [len(row) for row in rows]
    assert [row.tolist() for row in table.rows(np.arange(len(rows)))] == rows
