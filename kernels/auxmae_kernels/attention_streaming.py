"""Attention over sequences that do not fit one tile: the keys stream past a tile of queries.

The forward pass keeps a running maximum and a running sum, as FlashAttention does (arXiv 2205.14135, algorithm 1), and leaves the
log-sum-exp of every row behind.  The backward pass is one kernel without atomics: a program owns one tile of tokens.  As keys,
all queries stream past them, for dK and dV; as queries, all keys do, for dQ.  So every element of the gradient is written once,
by one program, in a fixed order of additions (FlashAttention-2, arXiv 2307.08691, section 3.1, computes the same sums).

Logits are kept in powers of two: `lse` is log₂ of the sum of 2^logit, +∞ where a row takes part in nothing, so that all its
probabilities become 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from auxmae_kernels.tiles import LOG2E, dot, load_rows, locate, offsets


@triton.jit
def _place(blocks, HEADS: tl.constexpr):
    """Which head, tile and sequence this program has."""
    program = tl.program_id(0)
    head = program % HEADS
    rest = program // HEADS
    return head, rest % blocks, rest // blocks


@triton.jit(do_not_specialize=["length", "blocks", "inner", "channels", "tokens"])
def streaming_forward(
    qkv, out, lse, slots, lengths, length, blocks, inner, channels, tokens,
    stride_b, stride_c, stride_t, stride_d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out (B, C, T, D), contiguous, and lse (sequences, H, length), from qkv (B, C, T, 3·D) of any strides."""
    width: tl.constexpr = HEADS * HEAD_DIM
    head, block, sequence = _place(blocks, HEADS)
    row = tl.arange(0, TILE)
    column = tl.arange(0, HEAD_TILE)
    fits = (column < HEAD_DIM)[None, :]
    element = block * TILE + row
    b, c, t, written, real = locate(
        sequence, element, element < length, slots, lengths, inner, channels, tokens, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS
    )
    at = offsets(b, c, t, stride_b, stride_c, stride_t)
    q = load_rows(qkv, at, head * HEAD_DIM + column, stride_d, real[:, None] & fits)
    highest = tl.full((TILE,), float("-inf"), ACC)
    total = tl.zeros((TILE,), ACC)
    result = tl.zeros((TILE, HEAD_TILE), ACC)
    for start in range(0, length, TILE):
        other = start + row
        kb, kc, kt, _, seen = locate(
            sequence, other, other < length, slots, lengths, inner, channels, tokens, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS
        )
        key_at = offsets(kb, kc, kt, stride_b, stride_c, stride_t)
        k = load_rows(qkv, key_at, width + head * HEAD_DIM + column, stride_d, seen[:, None] & fits)
        v = load_rows(qkv, key_at, 2 * width + head * HEAD_DIM + column, stride_d, seen[:, None] & fits)
        scores = dot(q, tl.trans(k), ACC, PRECISION, UPCAST) * (SCALE * LOG2E)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # Before the first key that counts, −∞ − (−∞) would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(highest - base)
        total = total * shrink + tl.sum(weights, 1)
        result = result * shrink[:, None] + dot(weights.to(v.dtype), v, ACC, PRECISION, UPCAST)
        highest = higher
    nothing = (total == 0.0) | ~real
    result = tl.where(nothing[:, None], 0.0, result / tl.where(total == 0.0, 1.0, total)[:, None])
    target = (
        out + offsets(b, c, t, channels * tokens * width, tokens * width, width)[:, None] + (head * HEAD_DIM + column)[None, :]
    )
    tl.store(target, result.to(out.dtype.element_ty), mask=written[:, None] & fits)
    known = tl.where(nothing, float("inf"), highest + tl.log2(tl.where(total == 0.0, 1.0, total)))
    index = (sequence.to(tl.int64) * HEADS + head) * length + element
    tl.store(lse + index, known.to(lse.dtype.element_ty), mask=element < length)


@triton.jit(do_not_specialize=["length", "blocks", "inner", "channels", "tokens"])
def streaming_backward(
    grad, qkv, out, lse, grad_qkv, slots, lengths, length, blocks, inner, channels, tokens,
    grad_stride_b, grad_stride_c, grad_stride_t, grad_stride_d, stride_b, stride_c, stride_t, stride_d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """grad_qkv (B, C, T, 3·D), contiguous, from the output's gradient (any strides), qkv, out and lse.

    The formulas are those of `store_head_gradients`, with rowsum(P ∘ dP) as rowsum(dO ∘ O).
    """
    width: tl.constexpr = HEADS * HEAD_DIM
    head, block, sequence = _place(blocks, HEADS)
    row = tl.arange(0, TILE)
    column = tl.arange(0, HEAD_TILE)
    of_head = head * HEAD_DIM + column
    fits = (column < HEAD_DIM)[None, :]
    element = block * TILE + row
    b, c, t, written, real = locate(
        sequence, element, element < length, slots, lengths, inner, channels, tokens, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS
    )
    inside = real[:, None] & fits
    at = offsets(b, c, t, stride_b, stride_c, stride_t)
    q = load_rows(qkv, at, of_head, stride_d, inside)
    k = load_rows(qkv, at, width + of_head, stride_d, inside)
    v = load_rows(qkv, at, 2 * width + of_head, stride_d, inside)
    own_grad = load_rows(grad, offsets(b, c, t, grad_stride_b, grad_stride_c, grad_stride_t), of_head, grad_stride_d, inside)
    own_out = load_rows(out, offsets(b, c, t, channels * tokens * width, tokens * width, width), of_head, 1, inside)
    own_delta = tl.sum(own_grad.to(ACC) * own_out.to(ACC), 1)
    statistics = lse + (sequence.to(tl.int64) * HEADS + head) * length
    own_lse = tl.load(statistics + element, mask=element < length, other=float("inf"))

    grad_q = tl.zeros((TILE, HEAD_TILE), ACC)
    grad_k = tl.zeros((TILE, HEAD_TILE), ACC)
    grad_v = tl.zeros((TILE, HEAD_TILE), ACC)
    for start in range(0, length, TILE):
        other = start + row
        ob, oc, ot, _, seen = locate(
            sequence, other, other < length, slots, lengths, inner, channels, tokens, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS
        )
        visible = seen[:, None] & fits
        other_at = offsets(ob, oc, ot, stride_b, stride_c, stride_t)
        # The other tile's queries against this tile's keys.
        other_q = load_rows(qkv, other_at, of_head, stride_d, visible)
        other_grad = load_rows(
            grad, offsets(ob, oc, ot, grad_stride_b, grad_stride_c, grad_stride_t), of_head, grad_stride_d, visible
        )
        other_out = load_rows(out, offsets(ob, oc, ot, channels * tokens * width, tokens * width, width), of_head, 1, visible)
        delta = tl.sum(other_grad.to(ACC) * other_out.to(ACC), 1)
        other_lse = tl.load(statistics + other, mask=other < length, other=float("inf"))
        scores = dot(other_q, tl.trans(k), ACC, PRECISION, UPCAST) * (SCALE * LOG2E)
        p = tl.where(real[None, :], tl.exp2(scores - other_lse[:, None]), 0.0)
        grad_v += dot(tl.trans(p.to(v.dtype)), other_grad, ACC, PRECISION, UPCAST)
        grad_p = dot(other_grad, tl.trans(v), ACC, PRECISION, UPCAST)
        grad_s = (p * (grad_p - delta[:, None]) * SCALE).to(q.dtype)
        grad_k += dot(tl.trans(grad_s), other_q, ACC, PRECISION, UPCAST)
        # This tile's queries against the other tile's keys.
        other_k = load_rows(qkv, other_at, width + of_head, stride_d, visible)
        other_v = load_rows(qkv, other_at, 2 * width + of_head, stride_d, visible)
        scores = dot(q, tl.trans(other_k), ACC, PRECISION, UPCAST) * (SCALE * LOG2E)
        p = tl.where(seen[None, :], tl.exp2(scores - own_lse[:, None]), 0.0)
        grad_p = dot(own_grad, tl.trans(other_v), ACC, PRECISION, UPCAST)
        grad_s = (p * (grad_p - own_delta[:, None]) * SCALE).to(q.dtype)
        grad_q += dot(grad_s, other_k, ACC, PRECISION, UPCAST)

    target = grad_qkv + offsets(b, c, t, channels * tokens * 3 * width, tokens * 3 * width, 3 * width)[:, None] + of_head[None, :]
    stored = written[:, None] & fits
    tl.store(target, grad_q.to(grad_qkv.dtype.element_ty), mask=stored)
    tl.store(target + width, grad_k.to(grad_qkv.dtype.element_ty), mask=stored)
    tl.store(target + 2 * width, grad_v.to(grad_qkv.dtype.element_ty), mask=stored)
