"""KVCache and BeamTree by themselves: growth, order, rows, messages."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtattn.attention import BeamTree, KVCache


@given(st.integers(1, 5), st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_a_cache_returns_what_was_appended(capacity, sizes):
    cache, parts = KVCache(capacity), [torch.randn(2, 2, 3, size, 4) for size in sizes]
    for k, v in parts:
        keys, values = cache.append(k, v)
    assert keys.equal(torch.cat([k for k, _ in parts], 2)) and values.equal(torch.cat([v for _, v in parts], 2))
    assert len(cache) == sum(sizes) and cache.positions.tolist() == list(range(sum(sizes)))
    assert cache.keys.equal(keys) and cache.values.equal(values)


def test_appending_moves_nothing_until_the_buffer_doubles():
    cache, step = KVCache(capacity=4), torch.zeros(1, 1, 1, 2)
    places = []
    for _ in range(9):
        cache.append(step, step)
        places.append((cache.keys.data_ptr(), cache._capacity))
    assert len(set(places[:4])) == len(set(places[4:8])) == 1
    assert [capacity for _, capacity in places] == [4] * 4 + [8] * 4 + [16]


def test_given_positions_are_kept_in_either_rank():
    k = torch.zeros(2, 1, 3, 4)
    shared, own = KVCache(1), KVCache(1)
    for _ in range(2):
        shared.append(k, k, torch.tensor([5, 5, 5]))
        own.append(k, k, torch.tensor([[0, 1, 2], [7, 8, 9]]))
    assert shared.positions.tolist() == [5] * 6
    own.select(torch.tensor([1]))
    assert own.positions.tolist() == [[7, 8, 9, 7, 8, 9]]


def test_select_keeps_rows_in_order_and_the_cache_grows_on():
    cache, k = KVCache(2), torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 1)
    cache.append(k, -k)
    cache.select(torch.tensor([2, 0]))
    cache.append(torch.full((2, 1, 1, 1), 9.0), torch.full((2, 1, 1, 1), 8.0))
    assert cache.keys[:, 0, :, 0].tolist() == [[2, 2, 9], [0, 0, 9]]
    assert cache.values[:, 0, :, 0].tolist() == [[-2, -2, 8], [0, 0, 8]]
    empty = KVCache()
    empty.select(torch.tensor([0]))
    assert len(empty) == 0


def test_a_memory_cache_is_read_only_and_selects():
    memory = KVCache.of_memory(torch.arange(2.0).view(2, 1, 1, 1), torch.ones(2, 1, 1, 1))
    assert memory.is_memory and len(memory) == 1
    memory.select(torch.tensor([1]))
    assert memory.keys.flatten().tolist() == [1.0] and memory.positions.tolist() == [0]
    with pytest.raises(ValueError, match="holds a memory"):
        memory.append(memory.keys, memory.values)


@given(st.integers(1, 3), st.integers(2, 4), st.data())
def test_a_beam_sees_exactly_its_ancestors(sentences, beams, data):
    tree, paths = BeamTree(sentences, beams), [[[] for _ in range(beams)] for _ in range(sentences)]
    for step in range(data.draw(st.integers(1, 5))):
        parents = None
        if step and data.draw(st.booleans()):
            row = st.lists(st.integers(0, beams - 1), min_size=beams, max_size=beams)
            parents = data.draw(st.lists(row, min_size=sentences, max_size=sentences))
            paths = [[list(old[parent]) for parent in chosen] for old, chosen in zip(paths, parents, strict=True)]
        mask = tree.extend(None if parents is None else torch.tensor(parents))
        for row in paths:
            for beam, path in enumerate(row):
                path.append(step * beams + beam)
        assert mask.shape == (sentences, 1, beams, (step + 1) * beams)
        assert [[mask[n, 0, j].nonzero().flatten().tolist() for j in range(beams)] for n in range(sentences)] == paths
        assert tree.positions.tolist() == [step] * beams


def test_selected_sentences_keep_their_ancestors():
    tree = BeamTree(3, 2)
    tree.extend()
    tree.extend(torch.tensor([[0, 0], [1, 1], [1, 0]]))
    tree.select(torch.tensor([2, 0]))
    mask = tree.extend()
    assert mask[:, 0].int().tolist() == [
        [[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 1]],
        [[1, 0, 1, 0, 1, 0], [1, 0, 0, 1, 0, 1]],
    ]


BAD = {
    "capacity": (lambda: KVCache(0), "capacity must be at least 1"),
    "nothing yet": (lambda: KVCache().keys, "nothing was appended yet"),
    "beam size": (lambda: BeamTree(1, 0), "beam_size >= 1, got 1, 0"),
    "parents": (lambda: BeamTree(2, 3).extend(torch.zeros(2, 2).long()), r"parents must be \[2, 3\], got \[2, 2\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shape", [(3, 1, 1, 4), (2, 2, 1, 4), (2, 1, 1, 5)])
def test_keys_of_another_shape_are_refused(shape):
    cache = KVCache()
    cache.append(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4))
    with pytest.raises(ValueError, match="does not continue"):
        cache.append(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match="does not continue"):
        cache.append(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4), torch.zeros(2, 1).long())
