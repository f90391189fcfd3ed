"""Where attention is used otherwise than in the model: compiled, autocast, with nothing to attend to."""

import pytest
import torch

from mtattn.attention import SCORES, Learned, MultiHeadAttention, Rotary, Sinusoidal, attend, causal, packed


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
@pytest.mark.parametrize("score", sorted(SCORES))
def test_a_compiled_layer_computes_the_same(score):
    torch.manual_seed(0)
    layer, x = MultiHeadAttention(32, 4, score=score, position=Rotary(8)), torch.randn(2, 6, 32)
    compiled = torch.compile(layer, backend="eager")
    torch.testing.assert_close(compiled(x, mask=causal()), layer(x, mask=causal()))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # a norm's weight stays in float32
@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_reaches_every_score(score, dtype):
    torch.manual_seed(0)
    layer, x = MultiHeadAttention(32, 4, score=score, position=Rotary(8), qk_norm=True), torch.randn(2, 6, 32)
    with torch.autocast("cpu", dtype):
        found = layer(x)
    torch.testing.assert_close(found.float(), layer(x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@pytest.mark.parametrize("mask", [None, causal()])
def test_no_sentences_give_no_outputs(impl, mask):
    layer = MultiHeadAttention(32, 4, num_kv_heads=2, position=Rotary(8), impl=impl)
    assert layer(torch.zeros(0, 5, 32), mask=mask).shape == (0, 5, 32)
    assert attend(torch.zeros(0, 4, 3, 8), *torch.zeros(2, 0, 2, 7, 8), impl=impl).shape == (0, 4, 3, 8)


@pytest.mark.parametrize("impl", ["auto", "reference", "sdpa", "chunked"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("dtype", "bias_dtype"), [("float32", "float64"), ("float32", "bfloat16"), ("bfloat16", "float32")]
)
def test_a_bias_may_have_another_precision(impl, learned, dtype, bias_dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 8, dtype=getattr(torch, dtype))
    bias = torch.randn(1, 4, 5, 5, dtype=getattr(torch, bias_dtype)).requires_grad_(learned)
    found = attend(q, k, v, bias=bias, impl=impl)
    expected = attend(*(x.double() for x in (q, k, v)), bias=bias.double())
    assert found.dtype == q.dtype
    torch.testing.assert_close(
        found.double(), expected, atol=0.05 if "bfloat16" in (dtype, bias_dtype) else 1e-5, rtol=0
    )


def test_masks_of_no_sentences_combine():
    none = packed(torch.zeros(0, 4, dtype=torch.long))
    assert (causal() & none).batch == 0


@pytest.mark.parametrize("position", [Sinusoidal(32), Learned(32)])
def test_positions_of_embeddings_do_not_act_inside_a_layer(position):
    with pytest.raises(ValueError, match="are added to embeddings"):
        MultiHeadAttention(32, 4, position=position)


@pytest.mark.parametrize("options", [{"base": float("nan")}, {"scaling": "linear", "factor": float("inf")}])
def test_rotary_wants_finite_numbers(options):
    with pytest.raises(ValueError, match="base must be positive"):
        Rotary(8, **options)


def test_a_table_made_while_inferring_is_kept_there_and_not_trained_with():
    rotary, x = Rotary(8), torch.randn(1, 2, 5, 8)
    with torch.inference_mode():
        first = rotary.rotate(x)
        table = rotary._table
        rotary.rotate(x)
        assert rotary._table is table
    weight = torch.ones(8, requires_grad=True)
    rotary.rotate(x * weight).sum().backward()
    torch.testing.assert_close(rotary.rotate(x), first)
