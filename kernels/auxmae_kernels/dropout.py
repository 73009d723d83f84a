"""Dropout whose mask is computed where it is needed, from a seed and an element's place, and never kept.

The random words are those of Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), with the 7
rounds that its authors found enough.  The key is the seed; the counter is (lane, row, row's upper half, stream), so that a mask
depends on nothing else: not on the tile, nor on the kernel, nor on whether it is the value or the gradient that asks.  One call
gives eight numbers of 16 bits, for eight columns that lie 32 apart: in the layouts of matrix products these are one thread's,
which computes the call once.

A number drops its element where it is below probability · 65 536, so a probability counts to 2⁻¹⁷; what stays is multiplied by
1 / (1 − probability), as PyTorch does.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from auxmae_kernels import tuning
from auxmae_kernels.boundary import empty, launch

# Which of a function's masks: after the activation, after the last map.
HIDDEN_MASK, OUTPUT_MASK = tl.constexpr(0), tl.constexpr(1)
_ROUNDS = tl.constexpr(7)
# Columns that share a call lie LANES apart; a call is about SPAN neighbouring columns.
LANES = tl.constexpr(32)
SPAN = tl.constexpr(256)


@triton.jit
def keep_bits(seed, row, column, STREAM: tl.constexpr, DROP_BELOW: tl.constexpr):
    """(rows, columns) of eight decisions each: bit i is about the column i · LANES after the first of its lane and span."""
    lane = ((column // SPAN) * LANES + column % LANES)[None, :].to(tl.uint32)
    low = row[:, None].to(tl.uint32) + lane * 0
    high = (row >> 32)[:, None].to(tl.uint32) + lane * 0
    words = tl.philox(tl.load(seed), lane + low * 0, low, high, low * 0 + STREAM, _ROUNDS)
    bits = tl.zeros_like(low)
    for index in tl.static_range(4):
        bits |= ((words[index] & 0xFFFF) >= DROP_BELOW).to(tl.uint32) << (2 * index)
        bits |= ((words[index] >> 16) >= DROP_BELOW).to(tl.uint32) << (2 * index + 1)
    return bits


@triton.jit
def kept(bits, column):
    """Which elements of a tile stay, by the `keep_bits` of their columns."""
    return ((bits >> (column // LANES % 8)[None, :].to(tl.uint32)) & 1) != 0


@triton.jit(do_not_specialize=["rows"])
def dropout_rows(
    x, seed, out, rows, stride_row, stride_column,
    WIDTH: tl.constexpr, TILE: tl.constexpr, STREAM: tl.constexpr, DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr,
):  # fmt: skip
    """out (rows, WIDTH), contiguous, from x of any strides."""
    spans: tl.constexpr = (WIDTH + SPAN - 1) // SPAN
    program = tl.program_id(0)
    row = (program // spans).to(tl.int64) * TILE + tl.arange(0, TILE)
    first = (program % spans) * SPAN + tl.arange(0, LANES)
    bits = keep_bits(seed, row, first, STREAM, DROP_BELOW)
    for index in tl.static_range(8):
        column = first + index * LANES
        inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
        there = (row * stride_row)[:, None] + (column.to(tl.int64) * stride_column)[None, :]
        value = tl.load(x + there, mask=inside & kept(bits, column), other=0.0) * KEEP_SCALE
        tl.store(out + (row * WIDTH)[:, None] + column[None, :], value.to(out.dtype.element_ty), mask=inside)


def drop_below(dropout: float) -> int:
    """The number of 65 536 below which an element is dropped; 0: none is."""
    return round(dropout * 65536)


def constants(dropout: float) -> dict[str, Any]:
    """What the kernels are told of dropout."""
    return {"DROP_BELOW": drop_below(dropout), "KEEP_SCALE": 1 / (1 - dropout) if dropout < 1 else 0.0}


def draw_seed(dropout: float, device: torch.device) -> Tensor | None:
    """A seed from the generator of the device, on the device; None where nothing is dropped.

    Nothing waits for it, the replay of a CUDA graph draws anew, and what restores the generator, as activation checkpointing
    does, restores the mask.
    """
    return torch.randint(2**62, (1,), device=device) if drop_below(dropout) else None


def drop(x: Tensor, seed: Tensor | None, dropout: float, stream: tl.constexpr) -> Tensor:
    """x (…, width) with its mask applied: contiguous, or x itself where nothing is dropped."""
    if seed is None or not drop_below(dropout):
        return x
    rows = x.reshape(-1, x.shape[-1])
    count, width = rows.shape
    out = empty(x.shape, x)
    launch(
        dropout_rows, tuning.cdiv(count, 32) * tuning.cdiv(width, SPAN.value), rows, seed, out, count, *rows.stride(),
        WIDTH=width, TILE=32, STREAM=stream.value, **constants(dropout), num_warps=4,
    )  # fmt: skip
    return out
