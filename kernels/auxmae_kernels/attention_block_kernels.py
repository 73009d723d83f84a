"""The attention sublayer in one kernel each way: norm, projection, attention, projection, residual, for widths up to 256.

A program holds a tile of whole sequences, packed as `attention_packed` packs them, and takes the heads one after another: a
head's queries, keys and values are made from the normalised rows, used, and forgotten, and what the head adds to the output
projection is summed on chip.  Only slices of the weights are read anew for each head, and these stay in the cache.

The way back makes everything again from x and leaves the normalised rows, the attention's output, and the gradient of queries,
keys and values.  What is left are products over all tokens, for the weights' gradients and that of the normalised rows, and the
norm's gradient: best left to a library.  Summed in the kernel, the gradient of the normalised rows spilled 600 bytes a thread.
With dropout it is given the output's gradient under its mask, which the weights' gradients need too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from auxmae_kernels.attention_packed import packed_rows, probabilities, store_head_gradients
from auxmae_kernels.dropout import OUTPUT_MASK, keep_bits, kept
from auxmae_kernels.tiles import dot, load_rows, normalise, offsets


@triton.jit
def _normalised_rows(
    x, norm_weight, norm_bias, weight, slots, lengths, sequences, length, inner, channels, tokens,
    stride_b, stride_c, stride_t, stride_d, WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr, TILE: tl.constexpr,
    EPS: tl.constexpr, ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The tokens of this program's sequences, and their rows after the norm, in the weight's type; 0 where they take no part."""
    b, c, t, member, written, real = packed_rows(
        tl.program_id(0), slots, lengths, sequences, length, inner, channels, tokens,
        TILE, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS,
    )  # fmt: skip
    column = tl.arange(0, WIDTH_TILE)
    fits = column < WIDTH
    at = offsets(b, c, t, stride_b, stride_c, stride_t)
    gamma = tl.load(norm_weight + column, mask=fits, other=0.0).to(ACC)
    beta = tl.load(norm_bias + column, mask=fits, other=0.0).to(ACC)
    seen = load_rows(x, at, column, stride_d, real[:, None] & fits[None, :]).to(ACC)
    normalised, _ = normalise(seen, fits[None, :], WIDTH, EPS)
    n = (normalised * gamma[None, :] + beta[None, :]).to(weight.dtype.element_ty)
    return n, b, c, t, member, written, real, column, fits


@triton.jit
def _project(
    n, w_qkv, b_qkv, first, column, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The rows `first`, first + 1, … of the projection of n, which are one head's."""
    number = tl.arange(0, HEAD_TILE)
    of_head = number < HEAD_DIM
    weight = tl.load(
        w_qkv + (first + number)[:, None] * WIDTH + column[None, :],
        mask=of_head[:, None] & (column < WIDTH)[None, :],
        other=0.0,
    )
    result = dot(n, tl.trans(weight), ACC, PRECISION, UPCAST)
    if HAS_BIAS:
        result += tl.load(b_qkv + first + number, mask=of_head, other=0.0).to(ACC)[None, :]
    return result.to(n.dtype)


@triton.jit
def _output_weight(w_out, head, column, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr):
    """The columns (WIDTH, HEAD_DIM) of the output projection that a head meets."""
    number = tl.arange(0, HEAD_TILE)
    inside = (column < WIDTH)[:, None] & (number < HEAD_DIM)[None, :]
    return tl.load(w_out + column[:, None] * WIDTH + (head * HEAD_DIM + number)[None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["sequences", "length", "inner", "channels", "tokens"])
def attention_block_forward(
    x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, b_out, out, seed, slots, lengths,
    sequences, length, inner, channels, tokens, stride_b, stride_c, stride_t, stride_d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, WIDTH_TILE: tl.constexpr, TILE: tl.constexpr,
    SCALE: tl.constexpr, EPS: tl.constexpr, ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    QKV_BIAS: tl.constexpr, OUT_BIAS: tl.constexpr, DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out (B, C, T, D), contiguous, at the tokens of this program's sequences, from x of any strides."""
    width: tl.constexpr = HEADS * HEAD_DIM
    logits: tl.constexpr = HEAD_DIM**-0.5
    n, b, c, t, member, written, real, column, fits = _normalised_rows(
        x, norm_weight, norm_bias, w_qkv, slots, lengths, sequences, length, inner, channels, tokens,
        stride_b, stride_c, stride_t, stride_d,
        width, WIDTH_TILE, TILE, EPS, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS, ACC,
    )  # fmt: skip
    token = (b * channels + c) * tokens + t
    total = tl.zeros((TILE, WIDTH_TILE), ACC)
    for head in range(HEADS):
        first = head * HEAD_DIM
        q = _project(n, w_qkv, b_qkv, first, column, width, HEAD_DIM, HEAD_TILE, QKV_BIAS, ACC, PRECISION, UPCAST)
        k = _project(n, w_qkv, b_qkv, width + first, column, width, HEAD_DIM, HEAD_TILE, QKV_BIAS, ACC, PRECISION, UPCAST)
        p = probabilities(q, k, member, real, logits, ACC, PRECISION, UPCAST).to(n.dtype)
        v = _project(n, w_qkv, b_qkv, 2 * width + first, column, width, HEAD_DIM, HEAD_TILE, QKV_BIAS, ACC, PRECISION, UPCAST)
        mixed = dot(p, v, ACC, PRECISION, UPCAST).to(n.dtype)
        weight = _output_weight(w_out, head, column, width, HEAD_DIM, HEAD_TILE)
        total += dot(mixed, tl.trans(weight), ACC, PRECISION, UPCAST)
    if OUT_BIAS:
        total += tl.load(b_out + column, mask=fits, other=0.0).to(ACC)[None, :]
    if DROP_BELOW:
        total = tl.where(kept(keep_bits(seed, token, column, OUTPUT_MASK, DROP_BELOW), column), total * KEEP_SCALE, 0.0)
    inside = written[:, None] & fits[None, :]
    # Padding takes no part in attention but keeps its place in the residual stream.  Where a row lies is computed again from its
    # token's number: kept in registers over the heads, it would push others out.
    row = token // tokens
    at = offsets(row // channels, row % channels, token % tokens, stride_b, stride_c, stride_t)
    residual = load_rows(x, at, column, stride_d, inside).to(ACC)
    target = out + (token * width)[:, None] + column[None, :]
    tl.store(target, (residual + SCALE * total).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["sequences", "length", "inner", "channels", "tokens"])
def attention_block_backward(
    grad, x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, n_out, mixed_out, grad_qkv, slots, lengths,
    sequences, length, inner, channels, tokens,
    grad_stride_b, grad_stride_c, grad_stride_t, grad_stride_d, stride_b, stride_c, stride_t, stride_d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, WIDTH_TILE: tl.constexpr, TILE: tl.constexpr,
    SCALE: tl.constexpr, EPS: tl.constexpr, ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    QKV_BIAS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """n and the attention's output (B, C, T, D) and grad_qkv (B, C, T, 3·D), contiguous, at this program's tokens.

    A head's output has the gradient SCALE · grad · w_out.
    """
    width: tl.constexpr = HEADS * HEAD_DIM
    logits: tl.constexpr = HEAD_DIM**-0.5
    n, b, c, t, member, written, real, column, fits = _normalised_rows(
        x, norm_weight, norm_bias, w_qkv, slots, lengths, sequences, length, inner, channels, tokens,
        stride_b, stride_c, stride_t, stride_d,
        width, WIDTH_TILE, TILE, EPS, ALONG_CHANNELS, HAS_SLOTS, HAS_LENGTHS, ACC,
    )  # fmt: skip
    number = tl.arange(0, HEAD_TILE)
    upstream_at = offsets(b, c, t, grad_stride_b, grad_stride_c, grad_stride_t)
    token = (b * channels + c) * tokens + t
    tl.store(n_out + (token * width)[:, None] + column[None, :], n, mask=written[:, None] & fits[None, :])
    upstream = load_rows(grad, upstream_at, column, grad_stride_d, real[:, None] & fits[None, :])
    upstream = (upstream.to(ACC) * SCALE).to(n.dtype)
    of_head = (number < HEAD_DIM)[None, :] & written[:, None]
    for head in range(HEADS):
        first = head * HEAD_DIM
        q = _project(n, w_qkv, b_qkv, first, column, width, HEAD_DIM, HEAD_TILE, QKV_BIAS, ACC, PRECISION, UPCAST)
        k = _project(n, w_qkv, b_qkv, width + first, column, width, HEAD_DIM, HEAD_TILE, QKV_BIAS, ACC, PRECISION, UPCAST)
        v = _project(n, w_qkv, b_qkv, 2 * width + first, column, width, HEAD_DIM, HEAD_TILE, QKV_BIAS, ACC, PRECISION, UPCAST)
        p = probabilities(q, k, member, real, logits, ACC, PRECISION, UPCAST)
        mixed = dot(p.to(n.dtype), v, ACC, PRECISION, UPCAST).to(n.dtype)
        tl.store(mixed_out + (token * width)[:, None] + (first + number)[None, :], mixed, mask=of_head)
        weight = _output_weight(w_out, head, column, width, HEAD_DIM, HEAD_TILE)
        grad_mixed = dot(upstream, weight, ACC, PRECISION, UPCAST).to(n.dtype)
        there = grad_qkv + (token * (3 * width))[:, None] + (first + number)[None, :]
        store_head_gradients(there, of_head, q, k, v, p, grad_mixed, width, logits, ACC, PRECISION, UPCAST)
