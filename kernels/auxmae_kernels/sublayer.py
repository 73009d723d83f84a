"""What a sublayer computes between its matrix products, a kernel each: the norm, and on the way back its gradient, the gradient
ahead of the last map, that of the GELU, and the sums over all rows that the biases and the norm's weights get.

The products themselves are a library's, or `linear`'s.  Every kernel reads its rows once and writes what it gives once; sums over
rows are shared out among a few programs, each with a row of its own in `sums`, and added in one order on every run.  A program
keeps them as a tile until its rows are through: warps that add up a tile at every turn took twice the time of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from auxmae_kernels import autotuning, tuning
from auxmae_kernels import dropout as masks
from auxmae_kernels.boundary import empty, index_table, launch, programs_for
from auxmae_kernels.dropout import HIDDEN_MASK, OUTPUT_MASK, keep_bits, kept
from auxmae_kernels.tiles import gelu_with_gradient, load_rows, normalise, normalise_gradient
from auxmae_kernels.tuning import Tile

# Rows that are worth a program of their own.
_ROWS = 8


@triton.jit
def _real(row, rows, lengths, tokens, HAS_LENGTHS: tl.constexpr):
    """Which rows there are, without those of padding tokens."""
    real = row < rows
    if HAS_LENGTHS:
        real = real & (row % tokens < tl.load(lengths + row // tokens, mask=real, other=0))
    return real


@triton.jit(do_not_specialize=["rows", "tokens"])
def norm_forward(
    x, weight, bias, lengths, out, rows, tokens, stride_row, stride_column,
    WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr, TILE: tl.constexpr, EPS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """out (rows, WIDTH), contiguous, from x of any strides; what padding tokens hold is not read, they count as zeros."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, WIDTH_TILE)
    fits = column < WIDTH
    real = _real(row, rows, lengths, tokens, HAS_LENGTHS)
    values = load_rows(x, row * stride_row, column, stride_column, real[:, None] & fits[None, :]).to(ACC)
    normalised, _ = normalise(values, fits[None, :], WIDTH, EPS)
    gamma = tl.load(weight + column, mask=fits, other=0.0).to(ACC)
    beta = tl.load(bias + column, mask=fits, other=0.0).to(ACC)
    result = normalised * gamma[None, :] + beta[None, :]
    inside = (row < rows)[:, None] & fits[None, :]
    tl.store(out + (row * WIDTH)[:, None] + column[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "tiles", "tokens"])
def norm_backward(
    grad_n, grad, x, weight, lengths, grad_x, of_weight, of_bias, rows, tiles, tokens,
    grad_stride_row, grad_stride_column, stride_row, stride_column, sums_stride,
    WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr, TILE: tl.constexpr, EPS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """grad_x (rows, WIDTH), contiguous, is grad plus what grad_n, contiguous, gives through the norm; and this program's sums."""
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH_TILE)
    fits = column < WIDTH
    gamma = tl.load(weight + column, mask=fits, other=0.0).to(ACC)
    share_gamma = tl.zeros((TILE, WIDTH_TILE), ACC)
    share_beta = tl.zeros((TILE, WIDTH_TILE), ACC)
    for tile in range(program, tiles, tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & fits[None, :]
        real = _real(row, rows, lengths, tokens, HAS_LENGTHS)[:, None] & fits[None, :]
        here = (row * WIDTH)[:, None] + column[None, :]
        values = load_rows(x, row * stride_row, column, stride_column, real).to(ACC)
        upstream = tl.load(grad_n + here, mask=real, other=0.0).to(ACC)
        result = load_rows(grad, row * grad_stride_row, column, grad_stride_column, inside).to(ACC)
        normalised, rstd = normalise(values, fits[None, :], WIDTH, EPS)
        share_gamma += upstream * normalised
        share_beta += upstream
        result += normalise_gradient(upstream * gamma[None, :], normalised, rstd, WIDTH)
        tl.store(grad_x + here, result.to(grad_x.dtype.element_ty), mask=inside)
    share = tl.cast(program, tl.int64) * sums_stride + column
    tl.store(of_weight + share, tl.sum(share_gamma, 0), mask=fits)
    tl.store(of_bias + share, tl.sum(share_beta, 0), mask=fits)


@triton.jit(do_not_specialize=["rows", "tiles"])
def scaled_rows(
    grad, out, seed, sums, rows, tiles, stride_row, stride_column, sums_stride,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr, STORE: tl.constexpr,
    DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out (rows, WIDTH), contiguous, is SCALE times grad under the mask of the output; and this program's sums of it."""
    blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    fits = column < WIDTH
    share = tl.zeros((TILE, COLUMNS), ACC)
    for tile in range(program, tiles, tl.num_programs(0) // blocks):
        row = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & fits[None, :]
        value = load_rows(grad, row * stride_row, column, stride_column, inside).to(ACC) * SCALE
        if DROP_BELOW:
            value = tl.where(kept(keep_bits(seed, row, column, OUTPUT_MASK, DROP_BELOW), column), value * KEEP_SCALE, 0.0)
        share += value
        if STORE:
            tl.store(out + (row * WIDTH)[:, None] + column[None, :], value.to(out.dtype.element_ty), mask=inside)
    tl.store(sums + tl.cast(program, tl.int64) * sums_stride + column, tl.sum(share, 0), mask=fits)


@triton.jit(do_not_specialize=["rows", "tiles"])
def gelu_backward(
    hidden, bias, grad, seed, sums, rows, tiles, sums_stride,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
    DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """In place, both (rows, WIDTH), contiguous: hidden → the GELU of hidden + bias under the mask; grad, of that → of hidden."""
    blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    fits = column < WIDTH
    shift = tl.load(bias + column, mask=fits, other=0.0).to(ACC)
    share = tl.zeros((TILE, COLUMNS), ACC)
    for tile in range(program, tiles, tl.num_programs(0) // blocks):
        row = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & fits[None, :]
        here = (row * WIDTH)[:, None] + column[None, :]
        active, slope = gelu_with_gradient(tl.load(hidden + here, mask=inside, other=0.0).to(ACC) + shift[None, :])
        value = tl.load(grad + here, mask=inside, other=0.0).to(ACC) * slope
        if DROP_BELOW:
            stays = kept(keep_bits(seed, row, column, HIDDEN_MASK, DROP_BELOW), column)
            active = tl.where(stays, active * KEEP_SCALE, 0.0)
            value = tl.where(stays, value * KEEP_SCALE, 0.0)
        share += value
        tl.store(hidden + here, active.to(hidden.dtype.element_ty), mask=inside)
        tl.store(grad + here, value.to(grad.dtype.element_ty), mask=inside)
    tl.store(sums + tl.cast(program, tl.int64) * sums_stride + column, tl.sum(share, 0), mask=fits)


@triton.jit(do_not_specialize=["rows", "width"])
def add_rows(sums, totals, rows, width, TILE: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr):
    """totals (width,) of sums (rows, width), contiguous."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((TILE, COLUMNS), ACC)
    for start in range(0, rows, TILE):
        row = start + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        total += tl.load(sums + row[:, None] * width + column[None, :], mask=inside, other=0.0)
    tl.store(totals + column, tl.sum(total, 0), mask=column < width)


class RowSums:
    """Room for sums over rows: a row for each program that adds some up, a column for each number that is summed.

    Args:
        rows: how many are summed over.
        widths: of the parts, each of which one kernel fills.
        like: a tensor of their device and type.
    """

    def __init__(self, rows: int, widths: Sequence[int], like: Tensor) -> None:
        self.programs = min(2 * programs_for(like.device), tuning.cdiv(rows, _ROWS))
        self._room = empty((self.programs, sum(widths)), like, torch.promote_types(torch.float32, like.dtype))
        self._widths = list(widths)
        self.parts: tuple[Tensor, ...] = self._room.split(self._widths, 1)

    def totals(self) -> tuple[Tensor, ...]:
        """The sums of every part."""
        room = self._room
        totals = empty((room.shape[1],), room)
        launch(
            add_rows, tuning.cdiv(room.shape[1], 32), room, totals, *room.shape,
            TILE=64, COLUMNS=32, ACC=_acc(room), num_warps=4,
        )  # fmt: skip
        parts: tuple[Tensor, ...] = totals.split(self._widths)
        return parts


def _acc(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _whole_rows(width: int, eps: float, x: Tensor, lengths: Tensor | None) -> dict[str, Any]:
    width_tile = tuning.power_of_two(width)
    return {"WIDTH": width, "WIDTH_TILE": width_tile, "EPS": eps, "HAS_LENGTHS": lengths is not None, "ACC": _acc(x)}


def _blocks(width: int, x: Tensor, dropout: float) -> dict[str, Any]:
    return {"WIDTH": width, **masks.constants(dropout), "ACC": _acc(x)}


def _block_tile(width: int) -> Tile:
    columns = min(256, max(16, tuning.power_of_two(width)))
    return Tile(2048 // columns, 4, columns=columns)


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, lengths: Tensor | None = None) -> Tensor:
    """LayerNorm of x (…, T, width) in `dtype`, contiguous; padding tokens t ≥ lengths (…) count as zeros, whatever they hold."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    out = empty(x.shape, x, dtype)
    constants = _whole_rows(width, eps, x, lengths)

    def run(tile: Tile) -> None:
        launch(
            norm_forward, tuning.cdiv(rows.shape[0], tile.rows), rows, weight.contiguous(), bias.contiguous(),
            index_table(lengths, rows), out, rows.shape[0], x.shape[-2], *rows.stride(),
            TILE=tile.rows, num_warps=tile.warps, **constants,
        )  # fmt: skip

    _run_whole_rows("norm", x, constants, run)
    return out


def norm_gradient(
    grad_n: Tensor, grad: Tensor, x: Tensor, weight: Tensor, eps: float, sums: RowSums, of_weight: Tensor, of_bias: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """grad + what grad_n gives through `norm`, of x's shape and type; of_weight and of_bias are the parts of `sums` to fill."""
    width = x.shape[-1]
    rows, upstream = x.reshape(-1, width), grad.reshape(-1, width)
    out = empty(x.shape, x)
    constants = _whole_rows(width, eps, x, lengths)

    def run(tile: Tile) -> None:
        launch(
            norm_backward, sums.programs, grad_n.contiguous(), upstream, rows, weight.contiguous(), index_table(lengths, rows),
            out, of_weight, of_bias, rows.shape[0], tuning.cdiv(rows.shape[0], tile.rows), x.shape[-2],
            *upstream.stride(), *rows.stride(), of_weight.stride(0), TILE=tile.rows, num_warps=tile.warps, **constants,
        )  # fmt: skip

    _run_whole_rows("norm_backward", x, constants, run)
    return out


def _run_whole_rows(name: str, x: Tensor, constants: dict[str, Any], run: Callable[[Tile], None]) -> None:
    width_tile = constants["WIDTH_TILE"]
    autotuning.run_tuned(name, x, tuning.norm_tile(width_tile), lambda: autotuning.whole_rows(width_tile), constants, run)


def scaled(
    grad: Tensor, scale: float, dtype: torch.dtype | None, sums: RowSums, part: Tensor,
    seed: Tensor | None = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """scale · drop(grad) (rows, width) in `dtype`, contiguous, and its sums into `part`; the sums alone where `dtype` is None."""
    count, width = grad.shape
    out = grad if dtype is None else empty(grad.shape, grad, dtype)
    constants = {**_blocks(width, grad, dropout), "SCALE": scale, "STORE": dtype is not None}

    def run(tile: Tile) -> None:
        launch(
            scaled_rows, sums.programs * tuning.cdiv(width, tile.columns), grad, out, grad if seed is None else seed, part,
            count, tuning.cdiv(count, tile.rows), *grad.stride(), part.stride(0),
            COLUMNS=tile.columns, TILE=tile.rows, num_warps=tile.warps, **constants,
        )  # fmt: skip

    autotuning.run_tuned("scaled_rows", grad, _block_tile(width), autotuning.copies, constants, run)
    return out


def gelu_gradient_(
    hidden: Tensor, bias: Tensor, grad: Tensor, sums: RowSums, part: Tensor, seed: Tensor | None = None, dropout: float = 0.0
) -> None:
    """In place: hidden (rows, width) → drop(GELU(hidden + bias)); its gradient → that of hidden, whose sums go into `part`."""
    count, width = hidden.shape
    tile = _block_tile(width)
    # Done in place, so it cannot be done again to measure tiles.
    launch(
        gelu_backward, sums.programs * tuning.cdiv(width, tile.columns), hidden, bias.contiguous(), grad,
        hidden if seed is None else seed, part, count, tuning.cdiv(count, tile.rows), part.stride(0),
        COLUMNS=tile.columns, TILE=tile.rows, num_warps=tile.warps, **_blocks(width, hidden, dropout),
    )  # fmt: skip
