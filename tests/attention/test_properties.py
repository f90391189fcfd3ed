"""What must hold for any input: symmetries and limits of attention, on every path that can run them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mtattn.attention import (
    IMPLS,
    MultiHeadAttention,
    attend,
    causal,
    key_padding,
    sliding_window,
)

seeds = st.integers(0, 2**31)
lengths = st.integers(1, 12)
impls = st.sampled_from([impl for impl in IMPLS if impl not in ("flex", "banded")])


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.double) for shape in shapes]


def qkv(seed, T, S, heads=2, kv_heads=2):
    return draw(seed, (2, heads, T, 4), (2, kv_heads, S, 4), (2, kv_heads, S, 4))


@given(seeds, lengths, lengths, impls)
def test_the_order_of_keys_does_not_matter_and_queries_keep_theirs(seed, T, S, impl):
    q, k, v = qkv(seed, T, S)
    keys, queries = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in (S, T))
    moved = attend(q[:, :, queries], k[:, :, keys], v[:, :, keys], impl=impl)
    torch.testing.assert_close(moved, attend(q, k, v, impl=impl)[:, :, queries])


@given(seeds, st.integers(2, 12), st.data(), impls)
def test_causal_outputs_ignore_later_tokens(seed, T, data, impl):
    at = data.draw(st.integers(1, T - 1))
    q, k, v = qkv(seed, T, T)
    before = attend(q, k, v, causal(), impl=impl)
    k[:, :, at:], v[:, :, at:] = 7.0, -7.0
    after = attend(q, k, v, causal(), impl=impl)
    assert after[:, :, :at].equal(before[:, :, :at])
    assert not torch.allclose(after[:, :, at:], before[:, :, at:])


@given(seeds, lengths, lengths, st.integers(1, 5), impls)
def test_padding_changes_nothing(seed, T, S, extra, impl):
    q, k, v = qkv(seed, T, S)
    (junk,) = draw(seed + 1, (2, 2, extra, 4))
    keep = torch.arange(S + extra).expand(2, -1) < S
    padded = attend(q, torch.cat((k, junk), 2), torch.cat((v, 1e6 * junk), 2), key_padding(keep), impl=impl)
    torch.testing.assert_close(padded, attend(q, k, v, impl=impl))


@given(seeds, lengths, lengths, st.floats(-50, 50), impls)
def test_a_constant_added_to_all_scores_changes_nothing(seed, T, S, constant, impl):
    q, k, v = qkv(seed, T, S)
    bias = torch.full((2, 2, T, 1), constant, dtype=torch.double)
    torch.testing.assert_close(attend(q, k, v, bias=bias, impl=impl), attend(q, k, v, impl=impl))


@given(seeds, lengths, st.integers(0, 5), st.sampled_from(["reference", "sdpa", "banded", "chunked"]))
def test_a_window_as_long_as_the_input_is_full_attention(seed, T, more, impl):
    q, k, v = qkv(seed, T, T)
    torch.testing.assert_close(attend(q, k, v, sliding_window(T + more), impl=impl), attend(q, k, v))


@given(seeds, lengths, lengths, impls)
def test_outputs_lie_among_the_values(seed, T, S, impl):
    q, k, v = qkv(seed, T, S)
    output = attend(q, k, v, impl=impl)
    assert (output <= v.amax(2, keepdim=True) + 1e-9).all() and (output >= v.amin(2, keepdim=True) - 1e-9).all()


@given(seeds, lengths, lengths, impls)
def test_equal_key_heads_are_one_key_head(seed, T, S, impl):
    q, k, v = qkv(seed, T, S, heads=4, kv_heads=1)
    many = attend(q, k.expand(-1, 4, -1, -1), v.expand(-1, 4, -1, -1), impl=impl)
    torch.testing.assert_close(attend(q, k, v, impl=impl), many)


@given(seeds, lengths)
def test_a_query_head_reads_its_own_group(seed, T):
    q, k, v = qkv(seed, T, T, heads=4, kv_heads=2)
    for head in range(4):
        alone = attend(q[:, [head]], k[:, [head // 2]], v[:, [head // 2]])
        torch.testing.assert_close(attend(q, k, v)[:, [head]], alone)


@given(seeds, lengths)
def test_as_many_key_heads_as_heads_is_multi_head(seed, T):
    torch.manual_seed(seed)
    grouped, plain = MultiHeadAttention(16, 4, num_kv_heads=4).double(), MultiHeadAttention(16, 4).double()
    plain.load_state_dict(grouped.state_dict())
    (x,) = draw(seed, (2, T, 16))
    assert grouped(x).equal(plain(x))


@given(seeds, st.integers(2, 8))
def test_without_positions_self_attention_is_equivariant(seed, T):
    torch.manual_seed(seed)
    attention, order = MultiHeadAttention(16, 4, qk_norm=True).double(), torch.randperm(T)
    (x,) = draw(seed, (2, T, 16))
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])
