"""The fused residual add and LayerNorm against the formula in double precision."""

from __future__ import annotations

import auxmae_kernels as kernels
import pytest
import torch
from auxmae_kernels import KernelUnavailableError

from tests.kernels.fused_checks import (
    assert_close,
    assert_errs_no_more,
    interpreted,
    kept_sizes,
    leaf,
    odd,
    use_triton,
    values_and_gradients,
)


def naive(x, residual, weight, bias):
    total = residual + 0.3 * x
    centred = total - total.mean(-1, keepdim=True)
    return total, centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def fused(*inputs):
    return kernels.add_norm(*inputs, residual_scale=0.3)


@interpreted
@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 70, 17), (7, 1), (4, 300), (0, 6), (300, 2)])
def test_value_and_gradients(monkeypatch, shape):
    launched = use_triton(monkeypatch)
    inputs = [leaf(odd(*shape)), leaf(odd(*shape)), *(leaf(torch.randn(shape[-1:], dtype=torch.float64)) for _ in range(2))]
    upstream = [odd(*shape), odd(*shape)]
    ours = values_and_gradients(fused, inputs, upstream)
    assert_close(ours, values_and_gradients(naive, inputs, upstream), 1e-9)
    assert launched == (["add_norm_forward", "add_norm_backward"] if shape[0] else [])
    again = values_and_gradients(fused, inputs, upstream)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@interpreted
@pytest.mark.parametrize(
    "types", [(torch.float32,) * 2, (torch.float16,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)]
)
def test_reduced_precision_errs_no_more_than_pytorch(monkeypatch, types):
    vector = torch.promote_types(*types)
    inputs = [leaf(torch.randn(40, 24) + 3, kind) for kind in types] + [leaf(torch.randn(24), vector) for _ in range(2)]
    upstream = [torch.randn(40, 24).to(vector) for _ in range(2)]
    exact = values_and_gradients(naive, [leaf(tensor, torch.float64) for tensor in inputs], [u.double() for u in upstream])
    pytorch = values_and_gradients(fused, inputs, upstream)
    use_triton(monkeypatch)
    assert_errs_no_more(values_and_gradients(fused, inputs, upstream), pytorch, exact)


@interpreted
def test_one_result_is_enough_and_shapes_broadcast(monkeypatch):
    use_triton(monkeypatch)
    x, residual = leaf(torch.randn(1, 6, dtype=torch.float64)), leaf(torch.randn(5, 6, dtype=torch.float64))
    weight, bias = (leaf(torch.randn(6, dtype=torch.float64)) for _ in range(2))
    for which in (0, 1):
        ours = torch.autograd.grad(fused(x, residual, weight, bias)[which].sum(), [x, residual])
        theirs = torch.autograd.grad(naive(x, residual, weight, bias)[which].sum(), [x, residual])
        assert_close(ours, theirs, 1e-9)


@interpreted
def test_gradcheck_operator_compilation_and_what_is_kept(monkeypatch):
    use_triton(monkeypatch)
    shapes = ((5, 6), (5, 6), (6,), (6,))
    inputs = [leaf(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    assert torch.autograd.gradcheck(fused, inputs)
    assert sum(size for size in kept_sizes(lambda: fused(*inputs))) == 5 * 6 + 6 + 2 * 5
    torch.library.opcheck(torch.ops.auxmae_kernels.add_norm.default, (*inputs, 0.3, 1e-6))
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    upstream = [torch.randn(5, 6, dtype=torch.float64) for _ in range(2)]
    assert_close(values_and_gradients(compiled, inputs, upstream), values_and_gradients(fused, inputs, upstream), 1e-12)


@interpreted
def test_a_width_beyond_a_tile_is_said(monkeypatch):
    use_triton(monkeypatch)
    wide = torch.randn(1, 16_385)
    with pytest.raises(KernelUnavailableError, match="16385"):
        kernels.add_norm(wide, wide, wide[0], wide[0])
