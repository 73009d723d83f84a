"""A linear map with what stands behind it in a sublayer: GELU, dropout and the residual sum, each on request.

Rows are read once from memory and the result is written once, where a library's product would leave one of its own in between.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from auxmae_kernels import autotuning, tuning
from auxmae_kernels import dropout as masks
from auxmae_kernels.boundary import accumulation, empty, launch
from auxmae_kernels.dropout import keep_bits, kept
from auxmae_kernels.tiles import dot, gelu, load_matrix, load_rows
from auxmae_kernels.tuning import Tile

# Wider than this, a library's products keep a GPU busy, and what is saved around them hardly counts.
MAX_WIDTH = 512


@triton.jit(do_not_specialize=["rows"])
def fused_linear(
    x, weight, bias, residual, out, seed, rows,
    stride_row, stride_column, residual_stride_row, residual_stride_column,
    WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
    BIAS: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, SCALE: tl.constexpr,
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
    total = tl.zeros((TILE, COLUMNS), ACC)
    for start in range(0, WIDTH, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        operand = load_rows(x, at, inner, stride_column, exists[:, None] & (inner < WIDTH)[None, :])
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


def pays(width: int, dtype: torch.dtype) -> bool:
    """Whether maps of rows so wide are better computed by `linear`: fp32 takes no tensor core, and a library is better at it."""
    return width <= MAX_WIDTH and dtype != torch.float32


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    gelu: bool = False,
    residual: tuple[Tensor, float] | None = None,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    stream: tl.constexpr = masks.OUTPUT_MASK,
) -> Tensor:
    """residual + scale · drop(GELU(x·weightᵀ + bias)), all but the map on request; by one kernel, without a gradient.

    Args:
        x: (…, width); weight: (outputs, width); bias: (outputs,).
        residual: a tensor (…, outputs) of the result's shape, and the scale.
        seed, dropout, stream: see `dropout.drop`.

    Returns:
        (…, outputs), contiguous, of the residual's type, or the weight's.
    """
    outputs, width = weight.shape
    rows = x.reshape(-1, width)
    out = empty((*x.shape[:-1], outputs), x, weight.dtype if residual is None else residual[0].dtype)
    added, scale = residual or (out, 1.0)
    added = added.reshape(-1, outputs)
    constants: dict[str, Any] = {
        "WIDTH": width,
        "OUTPUTS": outputs,
        "BIAS": bias is not None,
        "GELU": gelu,
        "RESIDUAL": residual is not None,
        "SCALE": scale,
        "STREAM": stream.value,
        **masks.constants(dropout),
        **accumulation(torch.float64 if x.dtype == torch.float64 else weight.dtype),
    }

    def run(tile: Tile) -> None:
        launch(
            fused_linear, tuning.cdiv(rows.shape[0], tile.rows) * tuning.cdiv(outputs, tile.columns), rows,
            weight.contiguous(), x if bias is None else bias.contiguous(),
            added, out, x if seed is None else seed, rows.shape[0], *rows.stride(), *added.stride(),
            TILE=tile.rows, COLUMNS=tile.columns, CHUNK=tile.chunk, num_warps=tile.warps, num_stages=tile.stages, **constants,
        )  # fmt: skip

    default = tuning.linear_tile(tuning.architecture(x.device))
    autotuning.run_tuned("linear", weight, default, autotuning.patches, constants, run)
    return out
