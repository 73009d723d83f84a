"""Device functions that the Triton kernels share: where a token lies, how a tile is read, how two tiles are multiplied."""

from __future__ import annotations

import triton
import triton.language as tl

# e^x is computed as 2^(x · log2 e): the hardware has the power of two.
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """a · b, accumulated in ACC.

    PRECISION is what the tensor cores do with fp32 operands ("ieee" or "tf32"); UPCAST multiplies in ACC throughout, for
    Triton's interpreter, whose product of bf16 tiles is wrong (triton#11584).
    """
    if UPCAST:
        return tl.dot(a.to(ACC), b.to(ACC), input_precision="ieee", out_dtype=ACC)
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def offsets(b, c, t, stride_b, stride_c, stride_t):
    """Where the tokens (b, c, t), 64-bit integers, begin in a tensor of these strides."""
    return b * stride_b + c * stride_c + t * stride_t


@triton.jit
def load_rows(pointer, at, column, stride, mask):
    """A tile (rows, columns): of each row, which begins at `at`, the elements at `column`; 0 where the mask is False."""
    # 64-bit, for transposed tensors whose last stride is the large one; where it is 1 nothing is left of it.
    return tl.load(pointer + at[:, None] + (column.to(tl.int64) * stride)[None, :], mask=mask, other=0.0)


@triton.jit
def load_matrix(pointer, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of a contiguous (ROWS, COLUMNS) matrix, 0 outside."""
    inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    return tl.load(pointer + row[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0)


@triton.jit
def locate(
    sequence, element, exists, slots, lengths, inner, channels, tokens,
    ALONG_CHANNELS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """Which token of the (B, C, T) grid is the given element of the given sequence.

    A sequence along the patches is (b, c) and its elements are the tokens t; one along the channels is (b, place) and its
    elements are the channels c.  `inner` is how many sequences an image has: C, or the number of places.

    Returns:
        b, c, t as 64-bit integers; `written`: the token exists, and this sequence writes its output; `real`: it takes part.
    """
    # Scalars or tiles: adding the element's zero gives all three the element's shape.
    sequence = sequence + element * 0
    b = sequence // inner
    place = sequence - b * inner
    if ALONG_CHANNELS:
        c = element
        t = place
    else:
        c = place
        t = element
    b = b.to(tl.int64)
    c = c.to(tl.int64)
    t = t.to(tl.int64)
    written = exists
    if HAS_SLOTS:
        # Here t is still the place; the table says which token of channel c lies there, −1 for none.
        t = tl.load(slots + (b * inner + t) * channels + c, mask=exists, other=-1).to(tl.int64)
        written = exists & (t >= 0) & (t < tokens)
    real = written
    if HAS_LENGTHS:
        real = written & (t < tl.load(lengths + b * channels + c, mask=written, other=0))
    return b, c, t, written, real


@triton.jit
def normalise(x, fits, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """LayerNorm of each row of x (rows, columns) without its affine map; columns that do not fit are 0 in x and in the result.

    Returns:
        The normalised rows, and 1 / standard deviation (rows,).
    """
    # Two passes over what is on chip: the difference of large squares would lose digits.
    mean = tl.sum(x, 1) / WIDTH
    centred = tl.where(fits, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + EPS)
    return centred * rstd[:, None], rstd


@triton.jit
def normalise_gradient(grad, normalised, rstd, WIDTH: tl.constexpr):
    """The gradient of `normalise` by its input, rstd · (g − mean(g) − n · mean(g · n)); g is 0 in columns that do not fit."""
    mean = tl.sum(grad, 1) / WIDTH
    projection = tl.sum(grad * normalised, 1) / WIDTH
    return rstd[:, None] * (grad - mean[:, None] - normalised * projection[:, None])


@triton.jit
def gelu(x):
    """x · Φ(x), with Φ by the error function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_with_gradient(x):
    """`gelu`, and its derivative Φ(x) + x · φ(x)."""
    below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    return x * below, below + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
