"""Keys by sentence, and whose they are: every hypothesis sees its ancestors and nothing else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtattn.keys import FIRST_CAPACITY, Ancestors, Grid, Keys


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(2, 5), st.booleans())
def test_ancestors_are_the_path_back(seed, num_sentences, beam_size, some_die):
    g = torch.Generator().manual_seed(seed)
    n, k, ancestors = num_sentences, beam_size, Ancestors(num_sentences, beam_size)
    written = [dict[int, int]() for _ in range(n)]  # place -> the number of the key that stands there
    paths, alive, number = [[[] for _ in range(k)] for _ in range(n)], torch.ones(n, k, dtype=torch.bool), 0
    for step in range(12):
        parents = None
        if step:
            parents = torch.randint(0, k, (n, k), generator=g)
            last = alive.int().argmax(1, keepdim=True)
            parents = torch.where(alive.gather(1, parents), parents, last)  # only the living have children
            paths = [[list(paths[i][parents[i, j]]) for j in range(k)] for i in range(n)]
        if some_die:
            alive = torch.rand(n, k, generator=g) < 0.6
            alive[torch.arange(n), torch.randint(0, k, (n,), generator=g)] = True
        places = ancestors.extend(parents, alive if some_die else None)
        for i, j in alive.nonzero().tolist():
            written[i][int(places[i, j])] = number
            paths[i][j].append(number)
            number += 1
        for i, j in alive.nonzero().tolist():
            seen = [written[i][place] for place in ancestors.seen[i, j].nonzero()[:, 0].tolist()]
            assert sorted(seen) == paths[i][j]
    assert (ancestors.bias() == 0).equal(ancestors.seen)


def test_places_are_given_out_again():
    ancestors = Ancestors(1, 3)
    for step in range(20):  # all three continue the first hypothesis: two of three keys are never seen again
        ancestors.extend(torch.zeros(1, 3, dtype=torch.int64) if step else None, None)
    assert ancestors.seen.shape == (1, 3, 22)


def test_keys_grow_and_attend_as_written_out():
    g = torch.Generator().manual_seed(0)
    keys, heads, length = Keys.empty(3, 2, 4), 4, FIRST_CAPACITY + 5
    k, v = (torch.randn(3, 2, length, 4, generator=g) for _ in range(2))
    sentences = torch.tensor([0, 1, 2])
    for place in range(length):
        if place % 2:
            keys.put(place + 1, None, k[:, :, place], v[:, :, place])
        else:
            keys.put(place + 1, (sentences, torch.full((3,), place)), k[:, :, place], v[:, :, place])
    q = torch.randn(4, heads, 4, generator=g)  # rows: two of sentence 0, one of each other, of 2 places each
    rows = torch.tensor([0, 1, 3, 4])
    bias = torch.randn(3, 1, 2, length, generator=g)
    found = keys.attend(q, Grid(rows, 6), length, bias)
    for r, row in enumerate(rows.tolist()):
        n, place = divmod(row, 2)
        for head in range(heads):
            weights = (k[n, head // 2] @ q[r, head] + bias[n, 0, place]).softmax(0)
            torch.testing.assert_close(found[r].view(heads, 4)[head], weights @ v[n, head // 2])
