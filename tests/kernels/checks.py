"""What the proofs of the fused functions share: drawn inputs, comparisons, and the checks that every function has to pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

Function = Callable[..., Any]


@contextmanager
def pytorch() -> Iterator[None]:
    """Within it, the functions run their PyTorch path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUXMAE_KERNELS", "torch")
        yield


def leaf(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A leaf of the same strides that asks for a gradient."""
    return tensor.detach().to(dtype or tensor.dtype).requires_grad_()


def odd(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A drawn tensor whose strides are neither contiguous nor sorted: a slice of a transposed one."""
    wide = torch.randn(*shape[:-1][::-1], 2 * shape[-1] + 1, dtype=dtype)
    order = [*reversed(range(len(shape) - 1)), len(shape) - 1]
    return wide.permute(order)[..., 1::2]


def values_and_gradients(function: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
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


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    """Elementwise, relative to the largest number of each reference."""
    assert len(ours) == len(theirs)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        assert torch.isfinite(a).all(), f"number {index} is not finite"
        if b.numel():
            error = (a.double() - b.double()).abs().max().item()
            assert error <= tolerance * max(1.0, b.abs().max().item()), f"number {index}: {error}"


def assert_same_bits(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Every number the same."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"number {index} differs"


def assert_errs_no_more(ours: Sequence[Tensor], pytorch: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """At most twice the error of PyTorch in the same types, and one rounding, against what is exact.

    Triton's interpreter cuts bf16 off instead of rounding it, which errs twice as far and always towards zero: eight times
    there, twice on a GPU.
    """
    for index, (a, b, c) in enumerate(zip(ours, pytorch, exact, strict=True)):
        assert a.dtype == b.dtype
        factor = 8 if a.dtype == torch.bfloat16 and a.device.type == "cpu" else 2
        rounding = torch.finfo(a.dtype).eps * c.abs().max().item()
        error, theirs = ((x.double() - c).abs().max().item() for x in (a, b))
        assert error <= factor * theirs + factor / 2 * rounding, f"number {index}: {error} against {theirs}"


def check_value_and_gradients(
    fused: Function, exact: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor], tolerance: float = 1e-10
) -> list[Tensor]:
    """Against loops in the same precision, and the same bits once more; returns what came out."""
    ours = values_and_gradients(fused, inputs, upstream)
    assert_close(ours, values_and_gradients(exact, inputs, upstream), tolerance)
    assert_same_bits(values_and_gradients(fused, inputs, upstream), ours)
    return ours


def check_precision(fused: Function, exact: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> None:
    """Kernel and PyTorch's path in the types given, against `exact` in fp64."""
    doubles = [leaf(x, torch.float64) if x.requires_grad else x.double() for x in inputs]
    expected = values_and_gradients(exact, doubles, [u.double() for u in upstream])
    with pytorch():
        theirs = values_and_gradients(fused, inputs, upstream)
    assert_errs_no_more(values_and_gradients(fused, inputs, upstream), theirs, expected)


def check_like_pytorch(fused: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor], tolerance: float) -> None:
    """The same types as PyTorch's path gives, and nearly the same numbers."""
    with pytorch():
        theirs = values_and_gradients(fused, inputs, upstream)
    ours = values_and_gradients(fused, inputs, upstream)
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]
    assert_close(ours, theirs, tolerance)


def check_operator(
    name: str, arguments: Sequence[Any], fused: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor], tolerance=1e-12
) -> None:
    """Schema, fake tensors and autograd of the operator, and the function compiled without a break."""
    torch.library.opcheck(getattr(torch.ops.auxmae_kernels, name).default, tuple(arguments))
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_close(values_and_gradients(compiled, inputs, upstream), values_and_gradients(fused, inputs, upstream), tolerance)
