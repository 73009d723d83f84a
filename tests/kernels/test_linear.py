"""A map with what stands behind it against the formula, and the attention sublayer at every kind of sequence."""

from __future__ import annotations

import auxmae_kernels as kernels
import pytest
import torch
import torch.nn.functional as F

from tests.kernels import checks
from tests.kernels.checks import leaf, odd
from tests.kernels.naive import naive_attention, random_slots

pytest.importorskip("triton", reason="Triton is not installed")

from auxmae_kernels import dropout
from auxmae_kernels.linear import linear, pays


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5


@pytest.mark.parametrize(("rows", "width", "outputs"), [(5, 40, 7), (130, 17, 200), (1, 300, 3)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_every_combination(launched, rows, width, outputs, gelu, added, p):
    x, weight, bias = odd(rows, width), draw(outputs, width), draw(outputs) if rows != 1 else None
    residual = odd(rows, outputs)
    seed = torch.randint(2**62, (1,)) if p else None
    result = linear(
        x, weight, bias, gelu=gelu, residual=(residual, 0.7) if added else None,
        seed=seed, dropout=p, stream=dropout.HIDDEN_MASK,
    )  # fmt: skip
    expected = F.linear(x, weight, bias)
    expected = F.gelu(expected) if gelu else expected
    expected = dropout.drop(expected, seed, p, dropout.HIDDEN_MASK)
    checks.assert_close([result], [residual + 0.7 * expected if added else expected], 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_errs_no_more_than_pytorch(launched, dtype):
    x, weight, bias, residual = (part.to(dtype) for part in (torch.randn(30, 48), draw(50, 48), draw(50), torch.randn(30, 50)))

    def pytorch(x, weight, bias, residual):
        return residual + 0.5 * F.gelu(F.linear(x, weight, bias))

    inputs = (x, weight, bias, residual)
    ours = linear(x, weight, bias, gelu=True, residual=(residual, 0.5))
    checks.assert_errs_no_more([ours], [pytorch(*inputs)], [pytorch(*(part.double() for part in inputs))])


def test_which_widths_pay():
    assert [pays(width, torch.bfloat16) for width in (16, 512, 513)] == [True, True, False]
    assert not pays(512, torch.float32)


LONG = [
    ("patch", (1, 2, 33), 2, 8, "", ["norm_forward", "packed_forward", "fused_linear"]),
    ("patch", (1, 2, 130), 2, 8, "lengths", ["norm_forward", "streaming_forward", "fused_linear"]),
    ("channel", (1, 40, 3), 1, 8, "slots", ["norm_forward", "packed_forward", "fused_linear"]),
    ("channel", (1, 140, 2), 2, 8, "slots lengths", ["norm_forward", "streaming_forward", "fused_linear"]),
    ("patch", (1, 2, 5), 3, 264, "", ["norm_forward", "packed_forward", "fused_linear"]),
    ("channel", (1, 3, 2), 5, 520, "slots", ["norm_forward", "packed_forward"]),
    pytest.param("patch", (1, 1, 1000), 1, 8, "", ["norm_forward", "streaming_forward", "fused_linear"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("axis", "grid", "heads", "width", "kind", "kernels_of_the_way_forward"), LONG)
def test_long_wide_and_ragged_attention_sublayers(launched, axis, grid, heads, width, kind, kernels_of_the_way_forward):
    """Values, gradients, and what is kept: the input and O(tokens · heads)."""
    batch, channels, tokens = grid
    slots = random_slots(batch, channels, max(1, tokens - 1), tokens + 1, torch.Generator()) if "slots" in kind else None
    lengths = torch.randint(0, tokens + 1, (batch, channels)) if "lengths" in kind else None
    shapes = ((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,))
    x, parts = leaf(odd(*grid, width)), [leaf(draw(*shape)) for shape in shapes]

    def formula(x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, b_out):
        n = F.layer_norm(x, (width,), norm_weight, norm_bias, 1e-6)
        return x + F.linear(naive_attention(F.linear(n, w_qkv, b_qkv), heads, axis, slots, lengths), w_out, b_out)

    def composed(*inputs):
        return kernels.attention_block(*inputs, heads, axis, slots, lengths)

    composed(x, *parts)
    assert launched == kernels_of_the_way_forward
    upstream = [odd(*grid, width)]
    ours = checks.values_and_gradients(composed, [x, *parts], upstream)
    checks.assert_close(ours, checks.values_and_gradients(formula, [x, *parts], upstream), 1e-9)
    weights = max(part.numel() for part in parts)
    largest = max(checks.kept_sizes(lambda: composed(x, *parts)))
    assert largest <= max(x.numel() + batch * channels * tokens * heads, weights)
