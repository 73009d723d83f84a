"""Transforms of `torch.func` and forward-mode differentiation: PyTorch's operators follow them, and the kernels do not."""

from __future__ import annotations

import pytest
import torch
from auxmae_kernels import KernelUnavailableError, dispatch
from torch.autograd import forward_ad

from tests.kernels import checks
from tests.kernels import gpu_checks as gpu


@pytest.mark.parametrize("name", gpu.CASES)
def test_gradients_by_torch_func(launched, monkeypatch, name):
    """By PyTorch, wherever Triton was measured to win; where Triton was asked for, an error that says why it cannot run."""
    case = gpu.CASES[name](gpu.SMALL, torch.float32, "cpu")

    def loss(*inputs):
        out = case.function(*inputs)
        return sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,)))

    gradients = torch.func.grad(loss, tuple(range(len(case.inputs))))
    inputs = [each.detach() for each in case.inputs]
    with pytest.raises(KernelUnavailableError, match=r"torch\.func"):
        gradients(*inputs)
    monkeypatch.setenv("AUXMAE_KERNELS", "auto")
    monkeypatch.setattr(dispatch, "_measured", lambda *_: dispatch.Decision("triton", "it won"))
    found = gradients(*inputs)
    assert not launched
    expected = torch.autograd.grad(loss(*case.inputs), case.inputs)
    assert launched
    checks.assert_close(found, expected, 1e-4)


def test_forward_mode_does_not_take_a_derivative_for_zero(launched):
    case = gpu.add_norm(gpu.SMALL, torch.float32, "cpu")
    x, *others = case.inputs
    with forward_ad.dual_level():
        moving = forward_ad.make_dual(x, x)
        with pytest.raises(KernelUnavailableError, match="forward-mode"):
            case.function(moving, *others)
