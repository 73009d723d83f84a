"""`feed_forward` as an operator: norm, map + GELU, map + residual on the way forward; on the way back the pieces of `sublayer`
between a library's products.

Saved between the two is the input alone, and the seed of dropout: everything else is computed again.  One kernel for all of it,
which kept the hidden numbers on chip, was slower each way (benchmarks/NOTES.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from auxmae_kernels import dropout as masks
from auxmae_kernels import sublayer
from auxmae_kernels.boundary import register, register_autograd, without_autocast
from auxmae_kernels.linear import linear, pays

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, scale: float, eps: float,
    seed: Tensor | None = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    with without_autocast(x):
        rows = x.reshape(-1, x.shape[-1])
        n = sublayer.norm(rows, norm_weight, norm_bias, eps, w1.dtype)
        if pays(w1.shape[1], w1.dtype):
            active = linear(n, w1, b1, gelu=True, seed=seed, dropout=dropout, stream=masks.HIDDEN_MASK)
            return linear(active, w2, b2, residual=(x, scale), seed=seed, dropout=dropout).view(x.shape)
        active = masks.drop(F.gelu(F.linear(n, w1, b1.to(w1.dtype))), seed, dropout, masks.HIDDEN_MASK)
        y = masks.drop(F.linear(active, w2, b2.to(w2.dtype)), seed, dropout, masks.OUTPUT_MASK)
        return torch.add(x, y.view(x.shape), alpha=scale).contiguous()


def _forward_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _backward(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    scale: float, eps: float, seed: Tensor | None = None, dropout: float = 0.0,
) -> Gradients:  # fmt: skip
    """With dO the output's gradient times `scale`, under its mask: dA = dO·w2; dH = dA ∘ GELU'(h); dN = dH·w1."""
    with without_autocast(x):
        hidden_width, width = w1.shape
        rows, upstream = x.reshape(-1, width), grad.reshape(-1, width)
        sums = sublayer.RowSums(rows.shape[0], (width, hidden_width, width, width), x)
        of_b2, of_b1, of_gamma, of_beta = sums.parts
        n = sublayer.norm(rows, norm_weight, norm_bias, eps, w1.dtype)
        active = n @ w1.t()
        scaled = sublayer.scaled(upstream, scale, w2.dtype, sums, of_b2, seed, dropout)
        grad_hidden = scaled @ w2
        sublayer.gelu_gradient_(active, b1, grad_hidden, sums, of_b1, seed, dropout)
        grad_x = sublayer.norm_gradient(grad_hidden @ w1, upstream, rows, norm_weight, eps, sums, of_gamma, of_beta)
        grad_b2, grad_b1, gamma, beta = sums.totals()
        return (
            grad_x.view(x.shape),
            gamma.to(norm_weight.dtype),
            beta.to(norm_bias.dtype),
            grad_hidden.t() @ n,
            grad_b1.to(b1.dtype),
            scaled.t() @ active,
            grad_b2.to(b2.dtype),
        )


def _backward_fake(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    *_: Any,
) -> Gradients:  # fmt: skip
    of = (x, norm_weight, norm_bias, w1, b1, w2, b2)
    return tuple(tensor.new_empty(tensor.shape) for tensor in of)  # type: ignore[return-value]


_ARGUMENTS = (
    "Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor w1, Tensor b1, Tensor w2, Tensor b2, float scale, float eps, "
    "Tensor? seed=None, float dropout=0.0"
)
_forward_op = register(f"feed_forward({_ARGUMENTS}) -> Tensor", _forward, _forward_fake)
_backward_op = register(
    f"feed_forward_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, scale, eps, seed, dropout = inputs
    ctx.save_for_backward(*tensors, seed)
    ctx.rest = (scale, eps, dropout)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    scale, eps, dropout = ctx.rest
    return (*_backward_op(grad, *tensors, scale, eps, seed, dropout), None, None, None, None)


register_autograd(_forward_op, _setup_context, _gradient)


def feed_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, scale: float, eps: float,
    dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """See `auxmae_kernels.feed_forward`; the products run in the type of w1 and w2, the sum keeps that of x."""
    seed = masks.draw_seed(dropout, x.device)
    out: Tensor = _forward_op(x, norm_weight, norm_bias, w1, b1, w2, b2, scale, eps, seed, dropout)
    return out
