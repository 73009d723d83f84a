"""The fused residual add and LayerNorm against the formula in double precision."""

from __future__ import annotations

import auxmae_kernels as kernels
import pytest
import torch
from auxmae_kernels import KernelUnavailableError

from tests.kernels import checks
from tests.kernels.checks import leaf, odd


def naive(x, residual, weight, bias):
    total = residual + 0.3 * x
    centred = total - total.mean(-1, keepdim=True)
    return total, centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def fused(*inputs):
    return kernels.add_norm(*inputs, residual_scale=0.3)


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 70, 17), (7, 1), (4, 300), (0, 6), (300, 2)])
def test_value_and_gradients(launched, shape):
    inputs = [leaf(odd(*shape)), leaf(odd(*shape)), *(leaf(torch.randn(shape[-1:], dtype=torch.float64)) for _ in range(2))]
    upstream = [odd(*shape), odd(*shape)]
    checks.check_value_and_gradients(fused, naive, inputs, upstream, 1e-9)
    assert launched == (["add_norm_forward", "add_norm_backward"] * 2 if shape[0] else [])


@pytest.mark.parametrize(
    "types", [(torch.float32,) * 2, (torch.float16,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)]
)
def test_reduced_precision_errs_no_more_than_pytorch(launched, types):
    vector = torch.promote_types(*types)
    inputs = [leaf(torch.randn(40, 24) + 3, kind) for kind in types] + [leaf(torch.randn(24), vector) for _ in range(2)]
    upstream = [torch.randn(40, 24).to(vector) for _ in range(2)]
    checks.check_precision(fused, naive, inputs, upstream)


def test_one_result_is_enough_and_shapes_broadcast(launched):
    x, residual = leaf(torch.randn(1, 6, dtype=torch.float64)), leaf(torch.randn(5, 6, dtype=torch.float64))
    weight, bias = (leaf(torch.randn(6, dtype=torch.float64)) for _ in range(2))
    for which in (0, 1):
        ours = torch.autograd.grad(fused(x, residual, weight, bias)[which].sum(), [x, residual])
        theirs = torch.autograd.grad(naive(x, residual, weight, bias)[which].sum(), [x, residual])
        checks.assert_close(ours, theirs, 1e-9)


def test_gradcheck_operator_compilation_and_what_is_kept(launched):
    shapes = ((5, 6), (5, 6), (6,), (6,))
    inputs = [leaf(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    assert torch.autograd.gradcheck(fused, inputs)
    assert sum(size for size in checks.kept_sizes(lambda: fused(*inputs))) == 5 * 6 + 6 + 2 * 5
    upstream = [torch.randn(5, 6, dtype=torch.float64) for _ in range(2)]
    checks.check_operator("add_norm", (*inputs, 0.3, 1e-6), fused, inputs, upstream)


def test_a_width_beyond_a_tile_is_said(launched):
    wide = torch.randn(1, 8_193)
    with pytest.raises(KernelUnavailableError, match="8193"):
        kernels.add_norm(wide, wide, wide[0], wide[0])
