"""`feed_forward` as an operator: one Triton kernel each way up to a width of 256.

Beyond, the way forward is norm + map + GELU and map + residual, two kernels of `linear`, and wider still a library's pieces, as
the way back is.

Saved between the two is the input alone, and the seed of dropout: everything else is computed again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from auxmae_kernels import autotuning, tuning
from auxmae_kernels import dropout as masks
from auxmae_kernels.boundary import accumulation, empty, launch, programs_for, register, register_autograd, without_autocast
from auxmae_kernels.feed_forward_kernels import feed_forward_backward, feed_forward_forward
from auxmae_kernels.linear import in_pieces, linear

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _default_tile(x: Tensor, w1: Tensor, backward: bool) -> tuning.Tile:
    width_tile = max(16, triton.next_power_of_2(w1.shape[1]))
    tile, chunk = tuning.feed_forward_tile(width_tile, w1.dtype, tuning.architecture(x.device), backward)
    return replace(tile, chunk=chunk)


def _constants(x: Tensor, w1: Tensor, scale: float, eps: float, dropout: float, tile: tuning.Tile) -> dict[str, Any]:
    hidden, width = w1.shape
    return {
        "WIDTH": width,
        "HIDDEN": hidden,
        "WIDTH_TILE": max(16, triton.next_power_of_2(width)),
        "TILE": tile.rows,
        "CHUNK": tile.chunk,
        "SCALE": scale,
        "EPS": eps,
        **masks.constants(dropout),
        **accumulation(torch.float64 if x.dtype == torch.float64 else w1.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, scale: float, eps: float,
    seed: Tensor | None = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    with without_autocast(x):
        if x.shape[-1] > tuning.feed_forward_widest(w1.dtype):
            if in_pieces(w1.shape[1], w1.dtype):
                active = linear(
                    x, w1, b1, norm=(norm_weight, norm_bias, eps), gelu=True,
                    seed=seed, dropout=dropout, stream=masks.HIDDEN_MASK,
                )  # fmt: skip
                return linear(active, w2, b2, residual=(x, scale), seed=seed, dropout=dropout)
            n = F.layer_norm(x, x.shape[-1:], norm_weight.to(x.dtype), norm_bias.to(x.dtype), eps).to(w1.dtype)
            active = masks.drop(F.gelu(F.linear(n, w1, b1)), seed, dropout, masks.HIDDEN_MASK)
            return torch.add(x, masks.drop(F.linear(active, w2, b2), seed, dropout, masks.OUTPUT_MASK), alpha=scale).contiguous()
        rows = x.reshape(-1, x.shape[-1])
        out = empty(x.shape, x)

        def run(tile: tuning.Tile) -> Tensor:
            launch(
                feed_forward_forward, triton.cdiv(rows.shape[0], tile.rows), rows, norm_weight.contiguous(),
                norm_bias.contiguous(), w1.contiguous(), b1.contiguous(), w2.contiguous(), b2.contiguous(), out,
                x if seed is None else seed, rows.shape[0], *rows.stride(), **_constants(x, w1, scale, eps, dropout, tile),
            )  # fmt: skip
            return out

        default = _default_tile(x, w1, backward=False)
        constants = _constants(x, w1, scale, eps, dropout, default)
        return autotuning.run_tuned("feed_forward", w1, default, autotuning.feed_forward(), constants, run)


def _forward_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _backward(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    scale: float, eps: float, seed: Tensor | None = None, dropout: float = 0.0,
) -> Gradients:  # fmt: skip
    with without_autocast(x):
        width = x.shape[-1]
        rows = x.reshape(-1, width)
        compute = _composed_backward if width > tuning.feed_forward_widest(w1.dtype) else _fused_backward
        grad_x, n, active, grad_hidden, upstream, grad_gamma, grad_beta = compute(
            grad.reshape(-1, width), rows, norm_weight, norm_bias, w1, b1, w2, scale, eps, seed, dropout
        )
        wide = torch.promote_types(torch.float32, x.dtype)
        return (
            grad_x.view(x.shape),
            grad_gamma.to(norm_weight.dtype),
            grad_beta.to(norm_bias.dtype),
            grad_hidden.t() @ n,
            grad_hidden.sum(0, dtype=wide).to(b1.dtype),
            (upstream.to(w2.dtype).t() @ active).mul_(scale),
            upstream.sum(0, dtype=wide).mul_(scale).to(b2.dtype),
        )


def _fused_backward(
    grad: Tensor, rows: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor,
    scale: float, eps: float, seed: Tensor | None, dropout: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    count, (hidden, width) = rows.shape[0], w1.shape
    wide = torch.promote_types(torch.float32, rows.dtype)
    default = _default_tile(rows, w1, backward=True)
    constants = _constants(rows, w1, scale, eps, dropout, default)
    grad_x, n = empty((count, width), rows), empty((count, width), rows, w1.dtype)
    active, grad_hidden = empty((count, hidden), rows, w1.dtype), empty((count, hidden), rows, w1.dtype)
    upstream = empty((count, width), rows, w1.dtype) if constants["DROP_BELOW"] else grad

    def run(tile: tuning.Tile) -> tuple[Tensor, Tensor]:
        tiles = triton.cdiv(count, tile.rows)
        programs = min(tiles, programs_for(rows.device))
        shares = empty((programs, width), rows, wide), empty((programs, width), rows, wide)
        launch(
            feed_forward_backward, programs, grad, rows, norm_weight.contiguous(), norm_bias.contiguous(),
            w1.contiguous(), b1.contiguous(), w2.contiguous(), grad_x, n, active, grad_hidden, upstream, *shares,
            rows if seed is None else seed, count, tiles, *grad.stride(), *rows.stride(),
            **_constants(rows, w1, scale, eps, dropout, tile),
        )  # fmt: skip
        return shares

    gamma, beta = autotuning.run_tuned("feed_forward_backward", w1, default, autotuning.feed_forward(), constants, run)
    return grad_x, n, active, grad_hidden, upstream, gamma.sum(0), beta.sum(0)


def _composed_backward(
    grad: Tensor, rows: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor,
    scale: float, eps: float, seed: Tensor | None, dropout: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    width = rows.shape[1:]
    gamma, beta = norm_weight.to(rows.dtype), norm_bias.to(rows.dtype)
    normed, mean, rstd = torch.ops.aten.native_layer_norm(rows, width, gamma, beta, eps)
    n = normed.to(w1.dtype)
    hidden = F.linear(n, w1, b1)
    upstream = masks.drop(grad, seed, dropout, masks.OUTPUT_MASK)
    grad_active = masks.drop((upstream * scale).to(w2.dtype) @ w2, seed, dropout, masks.HIDDEN_MASK)
    grad_hidden = torch.ops.aten.gelu_backward(grad_active, hidden)
    grad_rows, grad_gamma, grad_beta = torch.ops.aten.native_layer_norm_backward(
        (grad_hidden @ w1).to(rows.dtype), rows, width, mean, rstd, gamma, beta, [True, True, True]
    )
    active = masks.drop(F.gelu(hidden), seed, dropout, masks.HIDDEN_MASK)
    return grad + grad_rows, n, active, grad_hidden, upstream, grad_gamma, grad_beta


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
    """See `auxmae_kernels.feed_forward`; the products run in the type of w1, the sum keeps that of x."""
    seed = masks.draw_seed(dropout, x.device)
    out: Tensor = _forward_op(x, norm_weight, norm_bias, w1, b1, w2, b2, scale, eps, seed, dropout)
    return out
