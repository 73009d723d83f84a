"""The feed-forward sublayer in one kernel each way: norm, map, GELU, map, residual, for rows of up to 256 numbers.

A program holds a tile of rows and lets the hidden dimension stream past in chunks, so that no hidden number leaves the chip on
the way forward: x is read once and the sum written once.

The way back computes the hidden numbers again from x, chunk by chunk.  It leaves three operands of the weights' gradients, which
are products over all rows and best left to a library: the normalised rows n, the activations GELU(h), and the gradient of h.
What it gives up of the norm's own gradients is one row of sums a program; programs walk over tiles, so there are few of them,
and they are added in one order on every run.  With dropout it leaves a fourth operand, the output's gradient under its mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

from auxmae_kernels.dropout import HIDDEN_MASK, OUTPUT_MASK, keep_bits, kept, next_bits
from auxmae_kernels.tiles import dot, gelu, gelu_with_gradient, load_matrix, load_rows, normalise, normalise_gradient


@triton.jit(do_not_specialize=["rows"])
def feed_forward_forward(
    x, norm_weight, norm_bias, w1, b1, w2, b2, out, seed, rows, stride_row, stride_column,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, WIDTH_TILE: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    SCALE: tl.constexpr, EPS: tl.constexpr, DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out (rows, WIDTH), contiguous, from x of any strides; w1 (HIDDEN, WIDTH) and w2 (WIDTH, HIDDEN) are contiguous."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, WIDTH_TILE)
    fits = column < WIDTH
    inside = (row < rows)[:, None] & fits[None, :]
    gamma = tl.load(norm_weight + column, mask=fits, other=0.0).to(ACC)
    beta = tl.load(norm_bias + column, mask=fits, other=0.0).to(ACC)
    residual = load_rows(x, row * stride_row, column, stride_column, inside).to(ACC)
    normalised, _ = normalise(residual, fits[None, :], WIDTH, EPS)
    n = (normalised * gamma[None, :] + beta[None, :]).to(w1.dtype.element_ty)
    total = tl.zeros((TILE, WIDTH_TILE), ACC)
    bits = tl.zeros((TILE, CHUNK), tl.uint32)
    for start in range(0, HIDDEN, CHUNK):
        unit = start + tl.arange(0, CHUNK)
        first = load_matrix(w1, unit, column, HIDDEN, WIDTH)
        bias = tl.load(b1 + unit, mask=unit < HIDDEN, other=0.0).to(ACC)
        hidden = dot(n, tl.trans(first), ACC, PRECISION, UPCAST) + bias[None, :]
        second = load_matrix(w2, column, unit, WIDTH, HIDDEN)
        active = gelu(hidden)
        if DROP_BELOW:
            bits = next_bits(bits, seed, row, unit, start, CHUNK, HIDDEN_MASK, DROP_BELOW)
            active = tl.where(kept(bits, unit), active * KEEP_SCALE, 0.0)
        total += dot(active.to(n.dtype), tl.trans(second), ACC, PRECISION, UPCAST)
    total += tl.load(b2 + column, mask=fits, other=0.0).to(ACC)[None, :]
    if DROP_BELOW:
        total = tl.where(kept(keep_bits(seed, row, column, OUTPUT_MASK, DROP_BELOW), column), total * KEEP_SCALE, 0.0)
    # Read again, which the cache answers: kept in registers, it would push others out.
    residual = load_rows(x, row * stride_row, column, stride_column, inside).to(ACC)
    target = out + (row * WIDTH)[:, None] + column[None, :]
    tl.store(target, (residual + SCALE * total).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "tiles"])
def feed_forward_backward(
    grad, x, norm_weight, norm_bias, w1, b1, w2, grad_x, n_out, active_out, grad_hidden_out, upstream_out,
    grad_gamma, grad_beta, seed, rows, tiles, grad_stride_row, grad_stride_column, stride_row, stride_column,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, WIDTH_TILE: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    SCALE: tl.constexpr, EPS: tl.constexpr, DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The gradient of x, the operands (rows, ·), and this program's share of the norm's gradients (programs, WIDTH).

    With dO the output's gradient times SCALE, under its mask: dA = dO·w2; dH = dA ∘ GELU'(h); dN = dH·w1;
    dx = grad + LayerNorm'(dN).
    """
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH_TILE)
    fits = column < WIDTH
    share_gamma = tl.zeros((WIDTH_TILE,), ACC)
    share_beta = tl.zeros((WIDTH_TILE,), ACC)
    for tile in range(program, tiles, tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & fits[None, :]
        here = (row * WIDTH)[:, None] + column[None, :]
        gamma = tl.load(norm_weight + column, mask=fits, other=0.0).to(ACC)
        beta = tl.load(norm_bias + column, mask=fits, other=0.0).to(ACC)
        residual = load_rows(x, row * stride_row, column, stride_column, inside).to(ACC)
        normalised, _ = normalise(residual, fits[None, :], WIDTH, EPS)
        n = (normalised * gamma[None, :] + beta[None, :]).to(w1.dtype.element_ty)
        tl.store(n_out + here, n, mask=inside)
        upstream = load_rows(grad, row * grad_stride_row, column, grad_stride_column, inside)
        upstream = upstream.to(ACC)
        if DROP_BELOW:
            upstream = tl.where(kept(keep_bits(seed, row, column, OUTPUT_MASK, DROP_BELOW), column), upstream * KEEP_SCALE, 0.0)
            tl.store(upstream_out + here, upstream.to(n.dtype), mask=inside)
        upstream = (upstream * SCALE).to(n.dtype)
        grad_n = tl.zeros((TILE, WIDTH_TILE), ACC)
        bits = tl.zeros((TILE, CHUNK), tl.uint32)
        for start in range(0, HIDDEN, CHUNK):
            unit = start + tl.arange(0, CHUNK)
            first = load_matrix(w1, unit, column, HIDDEN, WIDTH)
            bias = tl.load(b1 + unit, mask=unit < HIDDEN, other=0.0).to(ACC)
            active, slope = gelu_with_gradient(dot(n, tl.trans(first), ACC, PRECISION, UPCAST) + bias[None, :])
            if DROP_BELOW:
                bits = next_bits(bits, seed, row, unit, start, CHUNK, HIDDEN_MASK, DROP_BELOW)
                stays = kept(bits, unit)
                active = tl.where(stays, active * KEEP_SCALE, 0.0)
                slope = tl.where(stays, slope * KEEP_SCALE, 0.0)
            second = load_matrix(w2, column, unit, WIDTH, HIDDEN)
            grad_hidden = (dot(upstream, second, ACC, PRECISION, UPCAST) * slope).to(n.dtype)
            there = (row * HIDDEN)[:, None] + unit[None, :]
            exists = (row < rows)[:, None] & (unit < HIDDEN)[None, :]
            tl.store(active_out + there, active.to(n.dtype), mask=exists)
            tl.store(grad_hidden_out + there, grad_hidden, mask=exists)
            grad_n += dot(grad_hidden, first, ACC, PRECISION, UPCAST)
        # Read again, which the cache answers: kept in registers, they would push others out.
        residual = load_rows(x, row * stride_row, column, stride_column, inside).to(ACC)
        normalised, rstd = normalise(residual, fits[None, :], WIDTH, EPS)
        share_gamma += tl.sum(grad_n * normalised, 0)
        share_beta += tl.sum(grad_n, 0)
        own = load_rows(grad, row * grad_stride_row, column, grad_stride_column, inside).to(ACC)
        own += normalise_gradient(grad_n * gamma[None, :], normalised, rstd, WIDTH)
        tl.store(grad_x + here, own.to(grad_x.dtype.element_ty), mask=inside)
    share = tl.cast(program, tl.int64) * WIDTH + column
    tl.store(grad_gamma + share, share_gamma, mask=fits)
    tl.store(grad_beta + share, share_beta, mask=fits)
