"""A linear map with what stands around it in a sublayer: the norm ahead of it, GELU, dropout and the residual sum behind it.

The pieces that a sublayer is composed of where it has no kernel of its own: norm + projection, projection + residual.  Each reads
its rows once from memory and writes its result once.  The norm's statistics are taken by every program that meets a row, from
the cache: that costs less than a pass of its own that would write the normalised rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from auxmae_kernels import autotuning
from auxmae_kernels import dropout as masks
from auxmae_kernels.boundary import accumulation, empty, launch
from auxmae_kernels.dropout import keep_bits, kept
from auxmae_kernels.tiles import dot, gelu, load_matrix, load_rows
from auxmae_kernels.tuning import Tile

# Wider than this, a library's products keep a GPU busy, and what is saved around them hardly counts.
MAX_WIDTH = 512
_TILE = Tile(128, 8, 3, columns=128, chunk=32)


@triton.jit
def _statistics(
    x, at, stride_column, exists,
    WIDTH: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / standard deviation (TILE,) of the rows that begin at `at`."""
    total = tl.zeros((TILE,), ACC)
    for start in range(0, WIDTH, CHUNK):
        column = start + tl.arange(0, CHUNK)
        total += tl.sum(load_rows(x, at, column, stride_column, exists[:, None] & (column < WIDTH)[None, :]).to(ACC), 1)
    mean = total / WIDTH
    total = tl.zeros((TILE,), ACC)
    # A second pass: the difference of large squares would lose digits.
    for start in range(0, WIDTH, CHUNK):
        column = start + tl.arange(0, CHUNK)
        inside = exists[:, None] & (column < WIDTH)[None, :]
        centred = tl.where(inside, load_rows(x, at, column, stride_column, inside).to(ACC) - mean[:, None], 0.0)
        total += tl.sum(centred * centred, 1)
    return mean, 1.0 / tl.sqrt(total / WIDTH + EPS)


@triton.jit(do_not_specialize=["rows"])
def fused_linear(
    x, norm_weight, norm_bias, weight, bias, residual, out, seed, rows,
    stride_row, stride_column, residual_stride_row, residual_stride_column,
    WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr,
    STREAM: tl.constexpr, DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out (rows, OUTPUTS), contiguous, from x (rows, WIDTH) of any strides and weight (OUTPUTS, WIDTH), contiguous."""
    blocks: tl.constexpr = (OUTPUTS + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    exists = row < rows
    at = row * stride_row
    if NORM:
        mean, rstd = _statistics(x, at, stride_column, exists, WIDTH, TILE, CHUNK, EPS, ACC)
    total = tl.zeros((TILE, COLUMNS), ACC)
    for start in range(0, WIDTH, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        operand = load_rows(x, at, inner, stride_column, exists[:, None] & (inner < WIDTH)[None, :])
        if NORM:
            gamma = tl.load(norm_weight + inner, mask=inner < WIDTH, other=0.0).to(ACC)
            beta = tl.load(norm_bias + inner, mask=inner < WIDTH, other=0.0).to(ACC)
            operand = (operand.to(ACC) - mean[:, None]) * rstd[:, None] * gamma[None, :] + beta[None, :]
        part = load_matrix(weight, column, inner, OUTPUTS, WIDTH)
        total += dot(operand.to(part.dtype), tl.trans(part), ACC, PRECISION, UPCAST)
    fits = column < OUTPUTS
    if BIAS:
        total += tl.load(bias + column, mask=fits, other=0.0).to(ACC)[None, :]
    if GELU:
        total = gelu(total)
    if DROP_BELOW:
        total = tl.where(kept(keep_bits(seed, row, column, STREAM, DROP_BELOW), column), total * KEEP_SCALE, 0.0)
    inside = exists[:, None] & fits[None, :]
    if RESIDUAL:
        stream = load_rows(residual, row * residual_stride_row, column, residual_stride_column, inside).to(ACC)
        total = stream + SCALE * total
    tl.store(out + (row * OUTPUTS)[:, None] + column[None, :], total.to(out.dtype.element_ty), mask=inside)


def in_pieces(width: int, dtype: torch.dtype) -> bool:
    """Whether `linear` computes maps of rows so wide: fp32 takes no tensor core, and a library's products are better at it."""
    return width <= MAX_WIDTH and dtype != torch.float32


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: tuple[Tensor, Tensor, float] | None = None,
    gelu: bool = False,
    residual: tuple[Tensor, float] | None = None,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    stream: tl.constexpr = masks.OUTPUT_MASK,
) -> Tensor:
    """residual + scale · drop(GELU(norm(x)·weightᵀ + bias)), all but the map on request; by one kernel, without a gradient.

    Args:
        x: (…, width); weight: (outputs, width); bias: (outputs,).
        norm: LayerNorm's weight, bias and eps.
        residual: a tensor (…, outputs) of the result's shape, and the scale.
        seed, dropout, stream: see `dropout.drop`.

    Returns:
        (…, outputs), contiguous, of the residual's type, or the weight's.
    """
    outputs, width = weight.shape
    rows = x.reshape(-1, width)
    out = empty((*x.shape[:-1], outputs), x, weight.dtype if residual is None else residual[0].dtype)
    gamma, beta, eps = norm or (x, x, 0.0)
    added, scale = residual or (out, 1.0)
    added = added.reshape(-1, outputs)
    constants: dict[str, Any] = {
        "WIDTH": width,
        "OUTPUTS": outputs,
        "NORM": norm is not None,
        "BIAS": bias is not None,
        "GELU": gelu,
        "RESIDUAL": residual is not None,
        "SCALE": scale,
        "EPS": eps,
        "STREAM": stream.value,
        **masks.constants(dropout),
        **accumulation(torch.float64 if x.dtype == torch.float64 else weight.dtype),
    }

    def run(tile: Tile) -> None:
        launch(
            fused_linear, triton.cdiv(rows.shape[0], tile.rows) * triton.cdiv(outputs, tile.columns), rows,
            gamma.contiguous(), beta.contiguous(), weight.contiguous(), x if bias is None else bias.contiguous(),
            added, out, x if seed is None else seed, rows.shape[0], *rows.stride(), *added.stride(),
            TILE=tile.rows, COLUMNS=tile.columns, CHUNK=tile.chunk, num_warps=tile.warps, num_stages=tile.stages, **constants,
        )  # fmt: skip

    autotuning.run_tuned("linear", weight, _TILE, autotuning.patches(), constants, run)
    return out
