"""What every fused function has to pass, in Triton's interpreter: TRITON_INTERPRET=1 from the start."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or torch.cuda.is_available(),
    reason="runs the kernels in Triton's interpreter: set TRITON_INTERPRET=1 before the tests start",
)


def use_triton(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Asks for the kernels and fills every output with NaN beforehand; returns a list that grows by each launched kernel."""
    from auxmae_kernels import boundary

    if not boundary.interpreting():
        pytest.skip("Triton was imported without TRITON_INTERPRET=1")
    monkeypatch.setenv("AUXMAE_KERNELS", "triton")
    uninitialised = boundary.empty

    def poisoned(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        out = uninitialised(shape, like, dtype)
        return out.fill_(torch.nan) if out.is_floating_point() else out

    writers = (
        "attention",
        "attention_block_operator",
        "dropout",
        "feed_forward_operator",
        "norm",
        "embed",
        "assembly",
        "linear",
        "loss",
    )
    for name in writers:
        try:
            module = __import__(f"auxmae_kernels.{name}", fromlist=["empty"])
        except ImportError:
            continue
        monkeypatch.setattr(module, "empty", poisoned, raising=False)
    launched: list[str] = []
    monkeypatch.setattr(boundary, "observers", [lambda kernel, *_: launched.append(kernel.__name__)])
    return launched


def leaf(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A leaf of the same strides that asks for a gradient."""
    return tensor.detach().to(dtype or tensor.dtype).requires_grad_()


def odd(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A drawn tensor whose strides are neither contiguous nor sorted: a slice of a transposed one."""
    wide = torch.randn(*shape[:-1][::-1], 2 * shape[-1] + 1, dtype=dtype)
    order = [*reversed(range(len(shape) - 1)), len(shape) - 1]
    return wide.permute(order)[..., 1::2]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    """Elementwise, relative to the largest number of each reference."""
    assert len(ours) == len(theirs)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        assert torch.isfinite(a).all(), f"number {index} is not finite"
        if b.numel():
            error = (a.double() - b.double()).abs().max().item()
            assert error <= tolerance * max(1.0, b.abs().max().item()), f"number {index}: {error}"


def values_and_gradients(function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """What comes out, and the gradients of the inputs that ask for one."""
    out = function(*inputs)
    out = out if isinstance(out, tuple) else (out,)
    asking = [tensor for tensor in inputs if tensor.requires_grad]
    return [*out, *torch.autograd.grad(out, asking, upstream)]


def kept_sizes(function: Callable[[], Any]) -> list[int]:
    """Elements of every tensor that is saved for the backward pass."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return kept


def assert_errs_no_more(ours: Sequence[Tensor], pytorch: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """At most twice the error of PyTorch in the same types, and one rounding, against what is exact.

    Triton's interpreter cuts bf16 off instead of rounding it, which errs twice as far and always towards zero: eight times.
    """
    for index, (a, b, c) in enumerate(zip(ours, pytorch, exact, strict=True)):
        assert a.dtype == b.dtype
        factor = 8 if a.dtype == torch.bfloat16 else 2
        rounding = torch.finfo(a.dtype).eps * c.abs().max().item()
        error, theirs = ((x.double() - c).abs().max().item() for x in (a, b))
        assert error <= factor * theirs + factor / 2 * rounding, f"number {index}: {error} against {theirs}"
