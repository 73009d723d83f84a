"""`attention_block` as an operator: norm, projection, attention, projection + residual; on the way back the pieces of `sublayer`
between a library's products and `axial_attention`'s own kernels.

Saved between the two is the input alone, with the seed of dropout: everything else is computed again.  Keeping the log-sum-exp
of sequences that stream would spare no pass over them, as the attention's output is needed too.  One kernel for all of it was
slower each way (benchmarks/NOTES.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from auxmae_kernels import attention, sublayer
from auxmae_kernels import dropout as masks
from auxmae_kernels.boundary import register, register_autograd, without_autocast
from auxmae_kernels.linear import linear, pays

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, w_out: Tensor, b_out: Tensor | None,
    heads: int, along_channels: bool, slots: Tensor | None, lengths: Tensor | None, scale: float, eps: float,
    seed: Tensor | None = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    with without_autocast(x):
        # NaN in padding would do no harm to the others here, but the way back multiplies what it has by zeros.
        qkv = F.linear(sublayer.norm(x, norm_weight, norm_bias, eps, w_qkv.dtype, lengths), w_qkv, b_qkv)
        mixed, _ = attention.forward(qkv, heads, along_channels, slots, lengths, None)
        if pays(x.shape[3], w_out.dtype):
            return linear(mixed, w_out, b_out, residual=(x, scale), seed=seed, dropout=dropout)
        y = masks.drop(F.linear(mixed, w_out, None if b_out is None else b_out.to(w_out.dtype)), seed, dropout, masks.OUTPUT_MASK)
        return torch.add(x, y, alpha=scale).contiguous()


def _forward_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _backward(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None,
    w_out: Tensor, b_out: Tensor | None,
    heads: int, along_channels: bool, slots: Tensor | None, lengths: Tensor | None, scale: float, eps: float,
    seed: Tensor | None = None, dropout: float = 0.0,
) -> Gradients:  # fmt: skip
    with without_autocast(x):
        width = x.shape[3]
        upstream = grad.reshape(-1, width)
        sums = sublayer.RowSums(upstream.shape[0], (width, 3 * width, width, width), x)
        of_out, of_qkv, of_gamma, of_beta = sums.parts
        n = sublayer.norm(x, norm_weight, norm_bias, eps, w_qkv.dtype, lengths)
        qkv = F.linear(n, w_qkv, b_qkv)
        scaled = sublayer.scaled(upstream, scale, w_out.dtype, sums, of_out, seed, dropout)
        grad_mixed = (scaled @ w_out).view(x.shape)
        mixed, grad_qkv = attention.output_and_backward(grad_mixed, qkv, heads, along_channels, slots, lengths, None)
        rows = grad_qkv.view(-1, 3 * width)
        sublayer.scaled(rows, 1.0, None, sums, of_qkv)
        grad_x = sublayer.norm_gradient(rows @ w_qkv, grad, x, norm_weight, eps, sums, of_gamma, of_beta, lengths)
        grad_b_out, grad_b_qkv, gamma, beta = sums.totals()
        nothing = x.new_empty(0)
        return (
            grad_x,
            gamma.to(norm_weight.dtype),
            beta.to(norm_bias.dtype),
            rows.t() @ n.view(-1, width),
            nothing if b_qkv is None else grad_b_qkv.to(b_qkv.dtype),
            scaled.t() @ mixed.view(-1, width),
            nothing.clone() if b_out is None else grad_b_out.to(b_out.dtype),
        )


def _backward_fake(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None,
    w_out: Tensor, b_out: Tensor | None, *_: Any,
) -> Gradients:  # fmt: skip
    def like(tensor: Tensor | None) -> Tensor:
        return x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    return like(x), like(norm_weight), like(norm_bias), like(w_qkv), like(b_qkv), like(w_out), like(b_out)


_ARGUMENTS = (
    "Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor w_qkv, Tensor? b_qkv, Tensor w_out, Tensor? b_out, "
    "int heads, bool along_channels, Tensor? slots, Tensor? lengths, float scale, float eps, Tensor? seed=None, float dropout=0.0"
)
_forward_op = register(f"attention_block({_ARGUMENTS}) -> Tensor", _forward, _forward_fake)
_backward_op = register(
    f"attention_block_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    heads, along_channels, slots, lengths, scale, eps, seed, dropout = inputs[7:]
    ctx.save_for_backward(*inputs[:7], slots, lengths, seed)
    ctx.rest = (heads, along_channels, scale, eps, dropout)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, slots, lengths, seed = ctx.saved_tensors
    heads, along_channels, scale, eps, dropout = ctx.rest
    results = _backward_op(grad, *inputs, heads, along_channels, slots, lengths, scale, eps, seed, dropout)
    return *(None if tensor is None else result for tensor, result in zip(inputs, results, strict=True)), *(None,) * 8


register_autograd(_forward_op, _setup_context, _gradient)


def attention_block(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, w_out: Tensor, b_out: Tensor | None,
    heads: int, axis: str, slots: Tensor | None, lengths: Tensor | None, scale: float, eps: float, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """See `auxmae_kernels.attention_block`; the products run in the type of w_qkv, b_qkv and w_out, the sum keeps that of x."""
    along_channels = axis == "channel"
    # A table of places says nothing about the patches within a channel.
    named = slots if along_channels else None
    seed = masks.draw_seed(dropout, x.device)
    out: Tensor = _forward_op(
        x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, b_out, heads, along_channels, named, lengths, scale, eps, seed, dropout
    )
    return out
