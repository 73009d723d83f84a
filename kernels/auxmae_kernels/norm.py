"""`add_norm`: the sum of a sublayer's output and the residual stream, and its LayerNorm, in one pass each way.

Mean and 1 / standard deviation of every row are kept, in fp32 or better; the sum is a result, so keeping it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from auxmae_kernels import autotuning, tuning
from auxmae_kernels.boundary import empty, launch, programs_for, register, register_autograd
from auxmae_kernels.tiles import load_rows, normalise, normalise_gradient

T = TypeVar("T")
# A tile holds whole rows; twice as wide, the way back would spill registers.
MAX_WIDTH = 8_192


@triton.jit(do_not_specialize=["rows"])
def add_norm_forward(
    x, residual, weight, bias, total, normed, means, rstds, rows,
    x_stride_row, x_stride_column, residual_stride_row, residual_stride_column,
    WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """total and normed (rows, WIDTH), contiguous, means and rstds (rows,), from x and residual of any strides."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, WIDTH_TILE)
    fits = column < WIDTH
    inside = (row < rows)[:, None] & fits[None, :]
    here = (row * WIDTH)[:, None] + column[None, :]
    added = load_rows(x, row * x_stride_row, column, x_stride_column, inside).to(ACC) * SCALE
    added += load_rows(residual, row * residual_stride_row, column, residual_stride_column, inside).to(ACC)
    rounded = added.to(total.dtype.element_ty)
    tl.store(total + here, rounded, mask=inside)
    # Of the sum as it is stored, so that value and gradient are those of the same numbers.
    added = rounded.to(ACC)
    normalised, rstd = normalise(added, fits[None, :], WIDTH, EPS)
    gamma = tl.load(weight + column, mask=fits, other=0.0).to(ACC)
    beta = tl.load(bias + column, mask=fits, other=0.0).to(ACC)
    result = normalised * gamma[None, :] + beta[None, :]
    tl.store(normed + here, result.to(normed.dtype.element_ty), mask=inside)
    tl.store(means + row, tl.sum(added, 1) / WIDTH, mask=row < rows)
    tl.store(rstds + row, rstd, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "tiles"])
def add_norm_backward(
    grad_total, grad_normed, total, weight, means, rstds, grad_residual, grad_x, grad_gamma, grad_beta, rows, tiles,
    total_stride_row, total_stride_column, normed_stride_row, normed_stride_column,
    WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients of residual and x (rows, WIDTH), and this program's share of the norm's gradients (programs, WIDTH).

    The strides are those of the two upstream gradients; total is contiguous.
    """
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH_TILE)
    fits = column < WIDTH
    gamma = tl.load(weight + column, mask=fits, other=0.0).to(ACC)
    share_gamma = tl.zeros((TILE, WIDTH_TILE), ACC)
    share_beta = tl.zeros((TILE, WIDTH_TILE), ACC)
    for tile in range(program, tiles, tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & fits[None, :]
        here = (row * WIDTH)[:, None] + column[None, :]
        mean = tl.load(means + row, mask=row < rows, other=0.0)
        rstd = tl.load(rstds + row, mask=row < rows, other=0.0)
        added = tl.load(total + here, mask=inside, other=0.0).to(ACC)
        normalised = tl.where(inside, (added - mean[:, None]) * rstd[:, None], 0.0)
        grad = load_rows(grad_normed, row * normed_stride_row, column, normed_stride_column, inside).to(ACC)
        share_gamma += grad * normalised
        share_beta += grad
        result = normalise_gradient(grad * gamma[None, :], normalised, rstd, WIDTH)
        result += load_rows(grad_total, row * total_stride_row, column, total_stride_column, inside).to(ACC)
        tl.store(grad_residual + here, result.to(grad_residual.dtype.element_ty), mask=inside)
        tl.store(grad_x + here, (result * SCALE).to(grad_x.dtype.element_ty), mask=inside)
    share = tl.cast(program, tl.int64) * WIDTH + column
    tl.store(grad_gamma + share, tl.sum(share_gamma, 0), mask=fits)
    tl.store(grad_beta + share, tl.sum(share_beta, 0), mask=fits)


def _statistics(x: Tensor, residual: Tensor) -> torch.dtype:
    return torch.promote_types(torch.float32, torch.promote_types(x.dtype, residual.dtype))


def _constants(width: int, scale: float, dtype: torch.dtype, tile: tuning.Tile) -> dict[str, Any]:
    return {
        "WIDTH": width,
        "WIDTH_TILE": tuning.power_of_two(width),
        "TILE": tile.rows,
        "SCALE": scale,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "num_warps": tile.warps,
    }


def _run_tuned(name: str, total: Tensor, run: Callable[[tuning.Tile], T]) -> T:
    width_tile = tuning.power_of_two(total.shape[-1])
    shape = {"WIDTH_TILE": width_tile}
    candidates = lambda: autotuning.whole_rows(width_tile)  # noqa: E731
    return autotuning.run_tuned(name, total, tuning.norm_tile(width_tile), candidates, shape, run)


def _forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = x.shape[-1]
    x_rows, residual_rows = x.reshape(-1, width), residual.reshape(-1, width)
    count, wide = x_rows.shape[0], _statistics(x, residual)
    kind = torch.promote_types(x.dtype, residual.dtype)
    total, normed = empty(x.shape, x, kind), empty(x.shape, x, kind)
    mean, rstd = empty((count,), x, wide), empty((count,), x, wide)

    def run(tile: tuning.Tile) -> None:
        launch(
            add_norm_forward, tuning.cdiv(count, tile.rows), x_rows, residual_rows, weight.contiguous(), bias.contiguous(),
            total, normed, mean, rstd, count, *x_rows.stride(), *residual_rows.stride(), EPS=eps,
            **_constants(width, scale, wide, tile),
        )  # fmt: skip

    _run_tuned("add_norm", total, run)
    return total, normed, mean, rstd


def _forward_fake(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind, wide = torch.promote_types(x.dtype, residual.dtype), _statistics(x, residual)
    count = x.shape[:-1].numel()
    total, normed = (x.new_empty(x.shape, dtype=kind) for _ in range(2))
    mean, rstd = (x.new_empty((count,), dtype=wide) for _ in range(2))
    return total, normed, mean, rstd


_BackwardResult = tuple[Tensor, Tensor, Tensor, Tensor]


def _backward(
    grad_total: Tensor, grad_normed: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
    scale: float, x_type: torch.dtype, residual_type: torch.dtype,
) -> _BackwardResult:  # fmt: skip
    width = total.shape[-1]
    upstream = grad_total.reshape(-1, width), grad_normed.reshape(-1, width)
    count = upstream[0].shape[0]
    grad_residual, grad_x = empty(total.shape, total, residual_type), empty(total.shape, total, x_type)

    def run(tile: tuning.Tile) -> tuple[Tensor, Tensor]:
        tiles = tuning.cdiv(count, tile.rows)
        programs = min(tiles, programs_for(total.device))
        shares = empty((programs, width), total, mean.dtype), empty((programs, width), total, mean.dtype)
        launch(
            add_norm_backward, programs, *upstream, total, weight.contiguous(), mean, rstd, grad_residual, grad_x, *shares,
            count, tiles, *upstream[0].stride(), *upstream[1].stride(), **_constants(width, scale, mean.dtype, tile),
        )  # fmt: skip
        return shares

    gamma, beta = _run_tuned("add_norm_backward", total, run)
    return grad_x, grad_residual, gamma.sum(0).to(weight.dtype), beta.sum(0).to(weight.dtype)


def _backward_fake(
    grad_total: Tensor, grad_normed: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
    scale: float, x_type: torch.dtype, residual_type: torch.dtype,
) -> _BackwardResult:  # fmt: skip
    grad_x, grad_residual = total.new_empty(total.shape, dtype=x_type), total.new_empty(total.shape, dtype=residual_type)
    return grad_x, grad_residual, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


_forward_op = register(
    "add_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float scale, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    "add_norm_backward(Tensor grad_total, Tensor grad_normed, Tensor total, Tensor weight, Tensor mean, Tensor rstd, "
    "float scale, ScalarType x_type, ScalarType residual_type) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, _, scale, _ = inputs
    total, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(total, weight, mean, rstd)
    ctx.rest = (scale, x.dtype, residual.dtype)


def _gradient(ctx: Any, grad_total: Tensor, grad_normed: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return (*_backward_op(grad_total, grad_normed, *ctx.saved_tensors, *ctx.rest), None, None)


register_autograd(_forward_op, _setup_context, _gradient)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """See `auxmae_kernels.add_norm`."""
    x, residual = torch.broadcast_tensors(x, residual)
    total, normed, _, _ = _forward_op(x, residual, weight, bias, scale, eps)
    return total, normed
