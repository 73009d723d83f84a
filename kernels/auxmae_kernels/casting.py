"""What autocast makes of the operands of a matrix product, and the weights of many products brought over by one launch.

A model has hundreds of weights, each of which would cost a launch for itself on the way forward and one for its gradient.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from auxmae_kernels import boundary


def product_type(x: Tensor) -> torch.dtype:
    """The type that x has as an operand of a matrix product: autocast's, or its own."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def cast(x: Tensor) -> Tensor:
    """x in its `product_type`."""
    return x.to(product_type(x))


def cast_weight(weight: Tensor) -> Tensor:
    """`cast`, of a weight that `cast_together` may have brought over already."""
    # A compiler joins the casts by itself, and cannot look into a thread's own variables.
    if not torch.compiler.is_compiling() and torch.is_autocast_enabled("cuda") and not boundary.differentiated_otherwise():
        group: _Group | None = getattr(_active, "group", None)
        if group is not None and weight in group:
            return group.get(weight)
    return cast(weight)


@contextmanager
def cast_together(weights: Iterable[Tensor]) -> Iterator[None]:
    """Within it, the first of these weights that a product needs in autocast's type on a GPU brings all of them over.

    Computing again for a backward pass, which happens outside, casts them one by one.
    """
    before = getattr(_active, "group", None)
    _active.group = _Group(weights)
    try:
        yield
    finally:
        _active.group = before


_active = threading.local()


class _Group:
    """Weights, and what they become when the first of them is asked for."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = [weight for weight in weights if weight.is_cuda and weight.dtype == torch.float32]
        self.places = {id(weight): place for place, weight in enumerate(self.weights)}
        self.cast: tuple[Tensor, ...] | None = None

    def __contains__(self, weight: Tensor) -> bool:
        return id(weight) in self.places

    def get(self, weight: Tensor) -> Tensor:
        if self.cast is None:
            self.cast = CastTogether.apply(torch.get_autocast_dtype("cuda"), *self.weights)  # type: ignore[no-untyped-call]
        return self.cast[self.places[id(weight)]]


class CastTogether(torch.autograd.Function):
    """(type, tensors of one type) → the tensors in that type; the same for their gradients."""

    @staticmethod
    def forward(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(found, tensors)
        return tuple(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.dtype = inputs[1].dtype
        # A weight that was not used has no gradient, and not one of zeros.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        found = iter(CastTogether.apply(ctx.dtype, *there)) if there else iter(())  # type: ignore[no-untyped-call]
        return None, *(None if gradient is None else next(found) for gradient in gradients)
