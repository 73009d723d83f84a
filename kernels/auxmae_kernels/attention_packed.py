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
def _packed_rows(
    slots, lengths, sequences, length, inner, channels, tokens,
    HEADS: tl.constexpr, TILE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """The head of this program, the token of each row of its tile, and the number of the row's sequence within the tile."""
    program = tl.program_id(0)
    head = program % HEADS
    packed = TILE // length
    row = tl.arange(0, TILE)
    member = row // length
    sequence = (program // HEADS) * packed + member
    exists = (member < packed) & (sequence < sequences)
    b, c, t, written, real = locate(
        sequence,
        row - member * length,
        exists,
        slots,
        lengths,
        inner,
        channels,
        tokens,
        ALONG_CHANNELS,
        HAS_SLOTS,
        HAS_LENGTHS,
    )
    return head, b, c, t, member, written, real


@triton.jit
def _probabilities(q, k, member, real, SCALE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
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


@triton.jit(do_not_specialize=["sequences", "length", "inner", "channels", "tokens"])
def packed_forward(
    qkv, out, slots, lengths, sequences, length, inner, channels, tokens,
    stride_b, stride_c, stride_t, stride_d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out (B, C, T, D), contiguous, from qkv (B, C, T, 3·D) of any strides, by the sequences of this program."""
    head, b, c, t, member, written, real = _packed_rows(
        slots, lengths, sequences, length, inner, channels, tokens, HEADS, TILE, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS
    )
    column = tl.arange(0, HEAD_TILE)
    width: tl.constexpr = HEADS * HEAD_DIM
    inside = real[:, None] & (column < HEAD_DIM)[None, :]
    of_head = head * HEAD_DIM + column
    at = offsets(b, c, t, stride_b, stride_c, stride_t)
    q = load_rows(qkv, at, of_head, stride_d, inside)
    k = load_rows(qkv, at, width + of_head, stride_d, inside)
    v = load_rows(qkv, at, 2 * width + of_head, stride_d, inside)
    p = _probabilities(q, k, member, real, SCALE, ACC, PRECISION, UPCAST)
    result = dot(p.to(v.dtype), v, ACC, PRECISION, UPCAST)
    target = out + (((b * channels + c) * tokens + t) * width)[:, None] + of_head[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=written[:, None] & (column < HEAD_DIM)[None, :])


@triton.jit(do_not_specialize=["sequences", "length", "inner", "channels", "tokens"])
def packed_backward(
    grad, qkv, grad_qkv, slots, lengths, sequences, length, inner, channels, tokens,
    grad_stride_b, grad_stride_c, grad_stride_t, grad_stride_d, stride_b, stride_c, stride_t, stride_d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """grad_qkv (B, C, T, 3·D), contiguous, from the gradient of the output (any strides) and qkv.

    With P the probabilities and dO the output's gradient: dV = Pᵀ·dO; dP = dO·Vᵀ; dS = P ∘ (dP − rowsum(P ∘ dP)) · scale;
    dQ = dS·K; dK = dSᵀ·Q.
    """
    head, b, c, t, member, written, real = _packed_rows(
        slots, lengths, sequences, length, inner, channels, tokens, HEADS, TILE, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS
    )
    column = tl.arange(0, HEAD_TILE)
    width: tl.constexpr = HEADS * HEAD_DIM
    inside = real[:, None] & (column < HEAD_DIM)[None, :]
    of_head = head * HEAD_DIM + column
    at = offsets(b, c, t, stride_b, stride_c, stride_t)
    q = load_rows(qkv, at, of_head, stride_d, inside)
    k = load_rows(qkv, at, width + of_head, stride_d, inside)
    v = load_rows(qkv, at, 2 * width + of_head, stride_d, inside)
    grad_out = load_rows(grad, offsets(b, c, t, grad_stride_b, grad_stride_c, grad_stride_t), of_head, grad_stride_d, inside)

    p = _probabilities(q, k, member, real, SCALE, ACC, PRECISION, UPCAST)
    target = grad_qkv + (((b * channels + c) * tokens + t) * (3 * width))[:, None] + of_head[None, :]
    stored = written[:, None] & (column < HEAD_DIM)[None, :]
    grad_v = dot(tl.trans(p.to(v.dtype)), grad_out, ACC, PRECISION, UPCAST)
    tl.store(target + 2 * width, grad_v.to(grad_qkv.dtype.element_ty), mask=stored)
    grad_p = dot(grad_out, tl.trans(v), ACC, PRECISION, UPCAST)
    grad_s = (p * (grad_p - tl.sum(p * grad_p, 1)[:, None]) * SCALE).to(q.dtype)
    tl.store(target, dot(grad_s, k, ACC, PRECISION, UPCAST).to(grad_qkv.dtype.element_ty), mask=stored)
    grad_k = dot(tl.trans(grad_s), q, ACC, PRECISION, UPCAST)
    tl.store(target + width, grad_k.to(grad_qkv.dtype.element_ty), mask=stored)
