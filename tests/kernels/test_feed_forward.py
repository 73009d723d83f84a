"""The fused feed-forward sublayer against the formula in double precision."""

from __future__ import annotations

import math

import auxmae_kernels as kernels
import pytest
import torch

from tests.kernels import checks
from tests.kernels.checks import leaf, odd


def naive(x, norm_weight, norm_bias, w1, b1, w2, b2):
    centred = x - x.mean(-1, keepdim=True)
    n = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm_weight + norm_bias
    h = n @ w1.T + b1
    return x + 0.5 * ((h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))) @ w2.T + b2)


def fused(*inputs):
    return kernels.feed_forward(*inputs, residual_scale=0.5)


def parameters(width, hidden, dtype=torch.float64):
    shapes = ((width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,))
    return [leaf(torch.randn(shape, dtype=torch.float64) / math.sqrt(shape[-1]), dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("rows", "width", "hidden"), [(3, 8, 16), (70, 17, 23), (1, 32, 40), (100, 5, 3), (9, 260, 20), (3, 520, 20)]
)
def test_value_and_gradients(launched, rows, width, hidden):
    inputs = [leaf(odd(2, rows, width)), *parameters(width, hidden)]
    upstream = [odd(2, rows, width)]
    checks.check_value_and_gradients(fused, naive, inputs, upstream)
    maps = ["fused_linear"] * 2 if max(width, hidden) <= 512 else []
    backward = ["norm_forward", "scaled_rows", "gelu_backward", "norm_backward", "add_rows"]
    assert launched == ["norm_forward", *maps, *backward] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [24, 260])
def test_reduced_precision_errs_no_more_than_pytorch(launched, dtype, width):
    inputs = [leaf(torch.randn(40, width), dtype), *parameters(width, 48, dtype)]
    checks.check_precision(fused, naive, inputs, [torch.randn(40, width).to(dtype)])
    assert ("fused_linear" in launched) == (dtype != torch.float32)


def test_gradcheck_and_what_is_kept(launched):
    inputs = [leaf(torch.randn(3, 4, dtype=torch.float64)), *parameters(4, 6)]
    assert torch.autograd.gradcheck(fused, inputs)
    wide = [leaf(torch.randn(50, 4, dtype=torch.float64)), *parameters(4, 6)]
    assert max(checks.kept_sizes(lambda: fused(*wide))) == 50 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_residual_stream(launched, dtype):
    inputs = [leaf(torch.randn(10, 24), dtype), *parameters(24, 32, torch.float32)]
    upstream = [torch.randn(10, 24).to(dtype)]
    with torch.autocast("cpu", torch.bfloat16):
        checks.check_like_pytorch(fused, inputs, upstream, 0.03)


def test_empty_and_expanded(launched):
    inputs = [leaf(torch.zeros(0, 3, 8, dtype=torch.float64)), *parameters(8, 16)]
    results = checks.values_and_gradients(fused, inputs, [torch.zeros(0, 3, 8, dtype=torch.float64)])
    checks.assert_close(results, checks.values_and_gradients(naive, inputs, [torch.zeros(0, 3, 8, dtype=torch.float64)]), 0.0)
    row = torch.randn(1, 8, dtype=torch.float64)
    inputs[0] = leaf(row).expand(5, 8)
    upstream = [torch.ones(1, 1, dtype=torch.float64).expand(5, 8)]
    checks.assert_close(
        checks.values_and_gradients(fused, inputs, upstream), checks.values_and_gradients(naive, inputs, upstream), 1e-10
    )


def test_the_operator_is_sound_and_compiles_whole(launched):
    inputs = [leaf(torch.randn(6, 8)), *parameters(8, 16, torch.float32)]
    checks.check_operator("feed_forward", (*inputs, 0.5, 1e-6), fused, inputs, [torch.randn(6, 8)], 1e-6)
