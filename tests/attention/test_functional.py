"""attend: every path against the formula in float64, values and gradients, and its messages."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracle import error, oracle, values_and_gradients

from mtattn.attention import (
    IMPLS,
    attend,
    attention_weights,
    causal,
    chosen_impl,
    distance_windows,
    key_padding,
    packed,
    prefix_lm,
    sliding_window,
)

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

B, H, E = 2, 4, 16
SHAPES = {"square": (300, 300), "longer keys": (70, 290), "short": (5, 5), "one query": (1, 9)}
HAS_BACKWARD = [impl for impl in IMPLS if impl != "flex"]
BANDED = {"window": sliding_window(20), "causal window": causal() & sliding_window(70)}


def masks(T, S):
    """Every mask, alone and combined; some leave queries with no key."""
    keep = torch.arange(S).expand(B, S) < torch.tensor([[S], [0]])
    made = {
        "none": None,
        "causal": causal(),
        "padding": key_padding(keep),
        "causal padding": causal() & key_padding(torch.rand(B, S) > 0.3),
        "prefix": prefix_lm(torch.tensor([2, 7])),
        "distance": distance_windows(torch.tensor([1, 3, 30, 200])),
        "packed": packed(torch.arange(T).expand(B, T) // 7, torch.arange(S).expand(B, S) // 9),
        "either": ~causal() | sliding_window(3),
        "bool": torch.rand(B, 1, T, S) > 0.5,
        "shared bool": torch.rand(T, S) > 0.5,
        **BANDED,
    }
    return made


def allowed(mask, T, S):
    return mask if mask is None or isinstance(mask, torch.Tensor) else mask.dense(T, S).allowed


def qkv(T, S, kv_heads=H, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    shapes = ((B, H, T, E), (B, kv_heads, S, E), (B, kv_heads, S, E))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def check(impl, inputs, mask, dense, **options):
    """Hold `impl` in float32 to the float64 oracle, within twice the error of the float32 reference."""
    upstream = torch.randn(*inputs[0].shape, dtype=torch.float64)
    names = ("q", "k", "v", "bias")[: len(inputs)]
    exact = values_and_gradients(
        lambda *x: oracle(**dict(zip(names, x, strict=True)), allowed=dense, **options),
        [x.double() for x in inputs],
        upstream,
    )

    def run(name):
        return lambda *x: attend(**dict(zip(names, x, strict=True)), mask=mask, impl=name, **options)

    own = error(values_and_gradients(run("reference"), inputs, upstream), exact)
    if impl == "flex":
        with torch.no_grad():
            got = error([run(impl)(*inputs)], exact[:1])
    else:
        got = error(values_and_gradients(run(impl), inputs, upstream), exact)
    size = [torch.linalg.vector_norm(x).item() for x in exact]
    for name, mine, reference, norm in zip(("output", *names), got, own, size, strict=False):
        # The reference itself is held to rounding, and a few roundings of the largest tensor are granted: where the
        # reference is exact by luck, as with a single key, twice its error is nothing.
        assert reference <= 1e-5 * norm + 3e-7 * max(size), name
        assert mine <= 2 * reference + 3e-7 * max(size), name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", masks(1, 1))
@pytest.mark.parametrize("impl", ["sdpa", "chunked", "auto"])
def test_paths_equal_the_formula(impl, mask, shape):
    T, S = SHAPES[shape]
    torch.manual_seed(1)
    made = masks(T, S)[mask]
    check(impl, qkv(T, S), made, allowed(made, T, S))


@pytest.mark.parametrize("mask", ["none", "causal", "padding", "distance", "bool", "window"])
def test_flex_equals_the_formula(mask):
    made = masks(40, 50)[mask]
    check("flex", qkv(40, 50, kv_heads=2), made, allowed(made, 40, 50))
    bias = torch.randn(1, H, 40, 50)
    check("flex", [*qkv(40, 50), bias], made, allowed(made, 40, 50), softcap=2.0)


@pytest.mark.parametrize("shape", ["square", "longer keys"])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("mask", ["window", "causal window", "distance", "padded window"])
def test_banded_equals_the_formula(mask, kv_heads, shape):
    T, S = SHAPES[shape]
    padded = sliding_window(9) & key_padding(torch.arange(S).expand(B, S) < torch.tensor([[S], [30]]))
    made = padded if mask == "padded window" else masks(T, S)[mask]
    check("banded", qkv(T, S, kv_heads), made, allowed(made, T, S))


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("impl", ["sdpa", "chunked", "auto"])
def test_shared_key_heads_equal_the_formula(impl, kv_heads):
    mask = causal() & key_padding(torch.rand(B, 300) > 0.2)
    check(impl, qkv(300, 300, kv_heads), mask, allowed(mask, 300, 300))


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("mask", ["none", "causal", "causal padding", "bool"])
@pytest.mark.parametrize("shape", [(1, 1), (1, H), (B, H)])
@pytest.mark.parametrize("impl", ["sdpa", "chunked", "auto"])
def test_bias_and_its_gradient_equal_the_formula(impl, shape, mask, kv_heads):
    T, S = 60, 270
    bias = torch.randn(*shape, T, S)
    made = masks(T, S)[mask]
    check(impl, [*qkv(T, S, kv_heads), bias], made, allowed(made, T, S))


@pytest.mark.parametrize("impl", ["chunked", "auto"])
@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_scale_and_softcap_equal_the_formula(impl, mask):
    made = masks(300, 300)[mask]
    bias = torch.randn(1, H, 1, 300)
    check(impl, [*qkv(300, 300), bias], made, allowed(made, 300, 300), scale=0.7, softcap=3.0)


@pytest.mark.parametrize("impl", [*HAS_BACKWARD, "auto"])
def test_paths_equal_torch(impl):
    mask = sliding_window(40) & causal()
    q, k, v = qkv(128, 128, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, mask.dense(128, 128).allowed)
    torch.testing.assert_close(attend(q, k, v, mask, impl=impl), expected)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("impl", [*IMPLS, "auto"])
def test_dead_queries_give_zeros_and_zero_gradients(impl, as_tensor):
    keep = torch.tensor([[True, True, False, True], [False] * 4])
    mask = key_padding(keep) & ~causal()  # later keys alone: row 1 sees nothing, nor does the last query of row 0
    mask = mask & sliding_window(3) if impl == "banded" else mask
    dense = mask.dense(4, 4).allowed
    dead = ~dense.expand(B, H, 4, 4).any(-1)
    assert dead[1].all() and dead[0].any() and not dead[0].all()
    if as_tensor and impl != "banded":
        mask = dense
    inputs = qkv(4, 4)
    if impl == "flex":
        output = attend(*inputs, mask, impl=impl)
        assert not output[dead].any() and output[~dead].all()
        return
    upstream = torch.ones(B, H, 4, E)
    output, *gradients = values_and_gradients(lambda *x: attend(*x, mask, impl=impl), inputs, upstream)
    assert not output[dead].any() and output[~dead].all()
    assert not gradients[0][dead].any()
    assert not any(gradient[1].any() for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_weights_are_what_the_output_is_made_of():
    q, k, v = qkv(6, 8, kv_heads=2, dtype=torch.float64)
    mask = key_padding(torch.arange(8).expand(B, 8) < torch.tensor([[3], [0]]))
    weights = attention_weights(q, k, mask, softcap=2.0)
    assert weights[0].sum(-1).allclose(torch.ones(H, 6, dtype=torch.float64)) and not weights[1].any()
    assert not weights[..., 3:].any()
    torch.testing.assert_close(weights @ v.repeat_interleave(2, 1), attend(q, k, v, mask, softcap=2.0))


def test_long_rows_in_bfloat16_lose_no_more_in_chunks_than_the_reference():
    inputs = [x.bfloat16() for x in qkv(40, 3000)]
    upstream = torch.randn(B, H, 40, E, dtype=torch.float64)
    exact = values_and_gradients(lambda *x: attend(*x, impl="reference"), [x.double() for x in inputs], upstream)
    chunks, formula = (
        error(values_and_gradients(lambda *x, impl=impl: attend(*x, impl=impl), inputs, upstream), exact)
        for impl in ("chunked", "reference")
    )
    assert all(mine <= 1.5 * reference for mine, reference in zip(chunks, formula, strict=True))


def test_chunks_have_no_second_derivative():
    q, k, v = (x.requires_grad_() for x in qkv(4, 4))
    (gradient,) = torch.autograd.grad(attend(q, k, v, impl="chunked").square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("impl", [*HAS_BACKWARD, "auto"])
def test_large_logits_stay_finite(impl):
    q, k, v = qkv(8, 8)
    q = (q * 1e4).requires_grad_()
    mask = sliding_window(3) if impl == "banded" else causal()
    output = attend(q, k * 1e4, v, mask, impl=impl)
    output.sum().backward()
    assert output.isfinite().all() and q.grad.isfinite().all()


@pytest.mark.parametrize("impl", ["reference", "sdpa", "banded"])
def test_dropout_drops_weights_and_keeps_the_mean(impl):
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 400, 2), torch.zeros(1, 1, 400, 2), torch.ones(1, 1, 400, 2)
    mask = sliding_window(30) if impl == "banded" else None
    output = attend(q, k, v, mask, dropout=0.25, impl=impl)
    assert output.mean() == pytest.approx(1.0, abs=0.02) and output.std() > 0.01


def test_auto_says_what_it_chose():
    q = torch.zeros(1, 1, 16, 8)
    long = torch.zeros(1, 1, 2048, 8)
    with_grad = q.bfloat16().requires_grad_()
    bias = torch.zeros(16, 16, requires_grad=True)
    huge = torch.empty(1, device="meta").expand(1, 1, 2**15, 8)
    assert chosen_impl(q, q, q) == "sdpa"
    assert chosen_impl(q, q, q, softcap=1.0) == "reference"
    window = causal() & sliding_window(64)
    assert chosen_impl(long, long, long, window) == "banded"
    assert chosen_impl(q[:, :, :1], long, long, window.shifted(2047)) == "sdpa"  # a step of decoding fills no block
    assert chosen_impl(q, q, q, bias=bias) == "reference"
    assert chosen_impl(q, q, q, dropout=0.1) == "reference"
    assert chosen_impl(with_grad, with_grad, with_grad) == "reference"
    with torch.no_grad():
        assert chosen_impl(with_grad, with_grad, with_grad) == "sdpa"
        assert chosen_impl(q, q, q, bias=bias) == "sdpa"
    assert chosen_impl(huge, huge, huge, softcap=1.0) == "chunked"
    assert chosen_impl(huge, huge, huge, softcap=1.0, dropout=0.1) == "reference"
    assert chosen_impl(long, long, long, sliding_window(64)) == "banded"
    assert chosen_impl(long, long, long, sliding_window(1024)) == "sdpa"
    assert chosen_impl(long, long, long, sliding_window(64), bias=torch.zeros(1, 2048)) == "sdpa"


def test_padding_without_padding_costs_no_mask():
    keep = torch.ones(B, 8, dtype=torch.bool)
    assert key_padding(keep).simplified() is None
    rule = causal()
    assert (rule & key_padding(keep)).simplified() is rule and (key_padding(keep) & rule).simplified() is rule
    assert (rule | key_padding(keep)).simplified() is None
    assert (rule & key_padding(keep)).shifted(1).simplified() is not None
    assert key_padding(keep).shifted(1).simplified() is None
    keep[0, 7] = False
    both = rule & key_padding(keep)
    assert both.simplified() is both


x = torch.zeros(2, 4, 5, 8)
BAD = {
    "rank": (dict(q=x[0]), "rank 4"),
    "batch of k": (dict(k=x[:1]), r"q's B = 2"),
    "d_head of k": (dict(k=x[..., :4]), r"E = 8"),
    "length of v": (dict(v=x[:, :, :3]), r"v must share"),
    "heads of k": (dict(k=x[:, :3], v=x[:, :3]), r"divide the 4 heads of q, got 3"),
    "no heads": (dict(k=x[:, :0], v=x[:, :0]), r"got 0"),
    "dtype": (dict(k=x.double()), "one dtype"),
    "float mask": (dict(mask=torch.zeros(5, 5)), "mask must be bool"),
    "mask of rank 3": (dict(mask=torch.ones(2, 5, 5, dtype=torch.bool)), r"mask must be \[T, S\] or"),
    "mask of another length": (dict(mask=torch.ones(5, 6, dtype=torch.bool)), r"got \[5, 6\]"),
    "mask for another batch": (dict(mask=key_padding(torch.zeros(3, 5) > 0)), "batch = 3"),
    "mask for other heads": (dict(mask=distance_windows(torch.tensor([1, 2]))), "heads = 2"),
    "mask for other keys": (dict(mask=key_padding(torch.zeros(2, 6) > 0)), "6 keys, but there are 5"),
    "bias shape": (dict(bias=torch.zeros(2, 2)), "bias must be"),
    "bool bias": (dict(bias=torch.ones(5, 5, dtype=torch.bool)), "bias must be floating"),
    "dropout": (dict(dropout=1.0), r"dropout must be in \[0, 1\)"),
    "negative dropout": (dict(dropout=-0.1), "got -0.1"),
    "softcap": (dict(softcap=0.0), "softcap must be positive"),
    "impl": (dict(impl="fast"), "impl must be one of auto, reference, sdpa, banded, chunked, flex, got 'fast'"),
    "softcap in sdpa": (dict(softcap=1.0, impl="sdpa"), "'sdpa' has no softcap"),
    "dropout in chunked": (dict(dropout=0.1, impl="chunked"), "'chunked' has no dropout"),
    "dropout in flex": (dict(dropout=0.1, impl="flex"), "'flex' has no dropout"),
    "flex training on a CPU": (dict(q=x.clone().requires_grad_(), impl="flex"), "no backward on a CPU"),
    "banded without a band": (dict(mask=causal(), impl="banded"), "needs a mask that bounds"),
    "banded with a bias": (dict(bias=torch.zeros(5, 5), impl="banded"), "no bias or softcap"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        attend(**{"q": x, "k": x, "v": x, **arguments})


def test_scale_defaults_to_the_root_of_d_head():
    q, k, v = qkv(4, 4)
    torch.testing.assert_close(attend(q, k, v), attend(q, k, v, scale=1 / math.sqrt(E)))
    assert not torch.allclose(attend(q, k, v), attend(q, k, v, scale=1.0))


@pytest.mark.parametrize("impl", HAS_BACKWARD)
def test_values_may_have_another_size_than_keys(impl):
    q, k, v = qkv(70, 70)
    narrow, whole = (attend(q, k, values, sliding_window(20), impl=impl) for values in (v[..., :3], v))
    torch.testing.assert_close(narrow, whole[..., :3])
