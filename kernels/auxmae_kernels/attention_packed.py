"""Attention over short sequences: several to a program, the whole score matrix on chip.

A tile of TILE rows holds TILE // length sequences, one below the other.  Their scores are one TILE × TILE product in which
only the blocks on the diagonal count:

                 keys of   seq 0   seq 1   seq 2
      queries of seq 0   [ scores    −∞      −∞   ]
                 seq 1   [   −∞    scores    −∞   ]
                 seq 2   [   −∞      −∞    scores ]

Nothing is kept between forward and backward but the input: with all scores of a sequence in one tile, computing them again costs
less than reading them.  Every token is written by the one program that holds its sequence, so no atomics, and the same bits on
every run.

Both kernels take one head at a time; q, k and v are read where they lie, by strides, from the last axis (3, H, E) of the input.
"""

from __future__ import annotations

import triton
import triton.language as tl

from auxmae_kernels.tiles import LOG2E, dot, load_rows, locate, offsets


@triton.jit
def packed_rows(
    group, slots, lengths, sequences, length, inner, channels, tokens,
    TILE: tl.constexpr, ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """The token of each row of a tile, and the number of the row's sequence within the tile."""
    packed = TILE // length
    row = tl.arange(0, TILE)
    member = row // length
    sequence = group * packed + member
    exists = (member < packed) & (sequence < sequences)
    element = row - member * length
    b, c, t, written, real = locate(
        sequence, element, exists, slots, lengths, inner, channels, tokens, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS
    )
    return b, c, t, member, written, real


@triton.jit
def probabilities(q, k, member, real, SCALE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Softmax of the scores within each sequence; 0 elsewhere, and in rows that take no part."""
    scores = dot(q, tl.trans(k), ACC, PRECISION, UPCAST) * (SCALE * LOG2E)
    # Rows and columns that take no part get numbers that match nothing.
    together = tl.where(real, member, -1)[:, None] == tl.where(real, member, -2)[None, :]
    scores = tl.where(together, scores, float("-inf"))
    highest = tl.max(scores, 1)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - highest[:, None])
    total = tl.sum(weights, 1)
    return weights / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def store_head_gradients(
    target, stored, q, k, v, p, grad_out, WIDTH: tl.constexpr, SCALE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Writes dQ, dK and dV of one head at `target`, WIDTH apart: each as soon as it is known, for registers are scarce.

    With P the probabilities and dO the output's gradient: dV = Pᵀ·dO; dP = dO·Vᵀ; dS = P ∘ (dP − rowsum(P ∘ dP)) · SCALE;
    dQ = dS·K; dK = dSᵀ·Q.
    """
    kind = target.dtype.element_ty
    grad_v = dot(tl.trans(p.to(v.dtype)), grad_out, ACC, PRECISION, UPCAST)
    tl.store(target + 2 * WIDTH, grad_v.to(kind), mask=stored)
    grad_p = dot(grad_out, tl.trans(v), ACC, PRECISION, UPCAST)
    grad_s = (p * (grad_p - tl.sum(p * grad_p, 1)[:, None]) * SCALE).to(q.dtype)
    tl.store(target, dot(grad_s, k, ACC, PRECISION, UPCAST).to(kind), mask=stored)
    tl.store(target + WIDTH, dot(tl.trans(grad_s), q, ACC, PRECISION, UPCAST).to(kind), mask=stored)


@triton.jit
def _head(
    qkv, slots, lengths, sequences, length, inner, channels, tokens, stride_b, stride_c, stride_t, stride_d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, TILE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """The head and tokens of this program: q, k and v, the tokens' places, and which of a row's elements are the head's."""
    program = tl.program_id(0)
    b, c, t, member, written, real = packed_rows(
        program // HEADS, slots, lengths, sequences, length, inner, channels, tokens,
        TILE, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS,
    )  # fmt: skip
    column = tl.arange(0, HEAD_TILE)
    width: tl.constexpr = HEADS * HEAD_DIM
    fits = (column < HEAD_DIM)[None, :]
    of_head = (program % HEADS) * HEAD_DIM + column
    at = offsets(b, c, t, stride_b, stride_c, stride_t)
    q = load_rows(qkv, at, of_head, stride_d, real[:, None] & fits)
    k = load_rows(qkv, at, width + of_head, stride_d, real[:, None] & fits)
    v = load_rows(qkv, at, 2 * width + of_head, stride_d, real[:, None] & fits)
    return q, k, v, b, c, t, member, written, real, of_head, fits


@triton.jit(do_not_specialize=["sequences", "length", "inner", "channels", "tokens"])
def packed_forward(
    qkv, out, slots, lengths, sequences, length, inner, channels, tokens,
    stride_b, stride_c, stride_t, stride_d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out (B, C, T, D), contiguous, from qkv (B, C, T, 3·D) of any strides, by the sequences of this program."""
    width: tl.constexpr = HEADS * HEAD_DIM
    q, k, v, b, c, t, member, written, real, of_head, fits = _head(
        qkv, slots, lengths, sequences, length, inner, channels, tokens, stride_b, stride_c, stride_t, stride_d,
        HEADS, HEAD_DIM, HEAD_TILE, TILE, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS,
    )  # fmt: skip
    p = probabilities(q, k, member, real, SCALE, ACC, PRECISION, UPCAST)
    result = dot(p.to(v.dtype), v, ACC, PRECISION, UPCAST)
    target = out + (((b * channels + c) * tokens + t) * width)[:, None] + of_head[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=written[:, None] & fits)


@triton.jit(do_not_specialize=["sequences", "length", "inner", "channels", "tokens"])
def packed_backward(
    grad, qkv, grad_qkv, out, slots, lengths, sequences, length, inner, channels, tokens,
    grad_stride_b, grad_stride_c, grad_stride_t, grad_stride_d, stride_b, stride_c, stride_t, stride_d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr, STORE_OUT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """grad_qkv (B, C, T, 3·D), contiguous, from the gradient of the output (any strides) and qkv; on request the output too."""
    width: tl.constexpr = HEADS * HEAD_DIM
    q, k, v, b, c, t, member, written, real, of_head, fits = _head(
        qkv, slots, lengths, sequences, length, inner, channels, tokens, stride_b, stride_c, stride_t, stride_d,
        HEADS, HEAD_DIM, HEAD_TILE, TILE, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS,
    )  # fmt: skip
    grad_at = offsets(b, c, t, grad_stride_b, grad_stride_c, grad_stride_t)
    grad_out = load_rows(grad, grad_at, of_head, grad_stride_d, real[:, None] & fits)
    p = probabilities(q, k, member, real, SCALE, ACC, PRECISION, UPCAST)
    if STORE_OUT:
        result = dot(p.to(v.dtype), v, ACC, PRECISION, UPCAST)
        place = out + (((b * channels + c) * tokens + t) * width)[:, None] + of_head[None, :]
        tl.store(place, result.to(out.dtype.element_ty), mask=written[:, None] & fits)
    target = grad_qkv + (((b * channels + c) * tokens + t) * (3 * width))[:, None] + of_head[None, :]
    store_head_gradients(target, written[:, None] & fits, q, k, v, p, grad_out, width, SCALE, ACC, PRECISION, UPCAST)
