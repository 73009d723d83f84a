"""`masked_loss`: value and gradient in one pass, with the target read from the image, hidden patches only.

The error of every pixel is at hand where its derivative is, so the forward pass writes the derivative by the prediction, not yet
divided by the number of pixels, and keeps that instead of prediction and target; the backward pass is one multiplication.
Programs walk over tiles of tokens and keep one sum each, which are added in the same order on every run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from auxmae_kernels import autotuning, tuning
from auxmae_kernels.boundary import empty, launch, programs_for, register, register_autograd
from auxmae_kernels.reference import PATCH_EPS

# A tile holds whole patches.
MAX_PIXELS = 16_384


@triton.jit(do_not_specialize=["rows", "tiles", "groups", "tokens", "columns"])
def masked_loss_forward(
    prediction, image, masked_index, valid, gradient, sums, counts, rows, tiles, groups, tokens, columns,
    prediction_stride_b, prediction_stride_c, prediction_stride_t, prediction_stride_d,
    stride_b, stride_c, stride_h, stride_w, valid_stride_b, valid_stride_c, valid_stride_h, valid_stride_w,
    GROUP: tl.constexpr, SIDE: tl.constexpr, PIXELS: tl.constexpr, PIXEL_TILE: tl.constexpr, TILE: tl.constexpr,
    KIND: tl.constexpr, NORMALIZE: tl.constexpr, HAS_VALID: tl.constexpr, GRADIENT: tl.constexpr, EPS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """This program's sum of errors and number of pixels, and the derivative (B, G, M, PIXELS) of the sum by its predictions."""
    program = tl.program_id(0)
    pixel = tl.arange(0, PIXEL_TILE)
    area: tl.constexpr = SIDE * SIDE
    member = (pixel // area).to(tl.int64)
    y = (pixel % area // SIDE).to(tl.int64)
    x = (pixel % SIDE).to(tl.int64)
    total = tl.zeros((TILE,), ACC)
    count = tl.zeros((TILE,), tl.int32)
    for tile in range(program, tiles, tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        exists = row < rows
        place = tl.load(masked_index + row, mask=exists, other=-1)
        t = row % tokens
        group = row // tokens % groups
        b = row // tokens // groups
        counts_here = (exists & (place >= 0))[:, None] & (pixel < PIXELS)[None, :]
        down = (place // columns).to(tl.int64) * SIDE
        across = (place % columns).to(tl.int64) * SIDE
        if HAS_VALID:
            corner = b * valid_stride_b + group * GROUP * valid_stride_c + down * valid_stride_h + across * valid_stride_w
            offset = member * valid_stride_c + y * valid_stride_h + x * valid_stride_w
            counts_here = counts_here & (tl.load(valid + corner[:, None] + offset[None, :], mask=counts_here, other=0) != 0)
        corner = b * stride_b + group * GROUP * stride_c + down * stride_h + across * stride_w
        offset = member * stride_c + y * stride_h + x * stride_w
        target = tl.load(image + corner[:, None] + offset[None, :], mask=counts_here, other=0.0).to(ACC)
        if NORMALIZE:
            n = tl.maximum(tl.sum(counts_here.to(tl.int32), 1), 1).to(ACC)
            mean = tl.sum(target, 1) / n
            target = tl.where(counts_here, target - mean[:, None], 0.0)
            target = target / tl.sqrt(tl.sum(target * target, 1) / n + EPS)[:, None]
        at = b * prediction_stride_b + group * prediction_stride_c + t * prediction_stride_t
        offset = pixel.to(tl.int64) * prediction_stride_d
        predicted = tl.load(prediction + at[:, None] + offset[None, :], mask=counts_here, other=0.0).to(ACC)
        difference = tl.where(counts_here, predicted - target, 0.0)
        size = tl.abs(difference)
        sign = tl.where(difference > 0.0, 1.0, tl.where(difference < 0.0, -1.0, difference))
        if KIND == "l1":
            error = size
            slope = sign
        elif KIND == "mse":
            error = difference * difference
            slope = 2.0 * difference
        else:
            error = tl.where(size < 1.0, 0.5 * difference * difference, size - 0.5)
            slope = tl.where(size < 1.0, difference, sign)
        total += tl.sum(error, 1)
        count += tl.sum(counts_here.to(tl.int32), 1)
        if GRADIENT:
            where = gradient + (row * PIXELS)[:, None] + pixel[None, :]
            tl.store(where, slope.to(gradient.dtype.element_ty), mask=exists[:, None] & (pixel < PIXELS)[None, :])
    tl.store(sums + program, tl.sum(total, 0))
    tl.store(counts + program, tl.sum(count, 0))


def _value_type(prediction: Tensor) -> torch.dtype:
    return torch.promote_types(torch.float32, prediction.dtype)


def _forward(
    prediction: Tensor, image: Tensor, masked_index: Tensor, valid: Tensor | None, kind: str, normalize: bool, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, groups, tokens, pixels = prediction.shape
    group = image.shape[1] // max(groups, 1)
    side = round((pixels / max(group, 1)) ** 0.5)
    rows = batch * groups * tokens
    pixel_tile = max(2, tuning.power_of_two(pixels))
    kind_of_value = _value_type(prediction)
    slope = empty(prediction.shape if gradient else (0,), prediction)
    shown = image if valid is None else valid.expand_as(image).view(torch.uint8)
    index = masked_index.to(torch.int32).contiguous()
    constants = {
        "GROUP": group, "SIDE": side, "PIXELS": pixels, "PIXEL_TILE": pixel_tile, "KIND": kind, "NORMALIZE": normalize,
        "HAS_VALID": valid is not None, "GRADIENT": gradient, "EPS": PATCH_EPS,
        "ACC": tl.float64 if kind_of_value == torch.float64 else tl.float32,
    }  # fmt: skip

    def run(tile: tuning.Tile) -> tuple[Tensor, Tensor]:
        tiles = tuning.cdiv(rows, tile.rows)
        programs = min(tiles, 4 * programs_for(prediction.device))
        shares = empty((programs,), prediction, kind_of_value), empty((programs,), prediction, torch.int32)
        launch(
            masked_loss_forward, programs, prediction, image, index, shown, slope, *shares,
            rows, tiles, groups, tokens, image.shape[3] // side, *prediction.stride(), *image.stride(), *shown.stride(),
            TILE=tile.rows, num_warps=tile.warps, **constants,
        )  # fmt: skip
        return shares

    candidates = lambda: autotuning.whole_rows(pixel_tile)  # noqa: E731
    sums, counts = autotuning.run_tuned("masked_loss", prediction, tuning.norm_tile(pixel_tile), candidates, constants, run)
    count = counts.sum().clamp(min=1).to(kind_of_value)
    return sums.sum() / count, slope, count


def _forward_fake(
    prediction: Tensor, image: Tensor, masked_index: Tensor, valid: Tensor | None, kind: str, normalize: bool, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    scalar = _value_type(prediction)
    slope = prediction.new_empty(prediction.shape if gradient else (0,))
    return prediction.new_empty((), dtype=scalar), slope, prediction.new_empty((), dtype=scalar)


_forward_op = register(
    "masked_loss(Tensor prediction, Tensor image, Tensor masked_index, Tensor? valid, str kind, bool normalize, bool gradient)"
    " -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, slope, count = output
    ctx.mark_non_differentiable(slope, count)
    ctx.save_for_backward(slope, count)


def _gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    slope, count = ctx.saved_tensors
    if torch.is_grad_enabled():
        raise RuntimeError("the Triton kernel of masked_loss has no second derivative: AUXMAE_KERNELS=torch computes it")
    # With the slope's axes: as a scalar the factor, a few millionths, would be rounded to the slope's type ahead of the product.
    factor = (grad / count).view((1,) * slope.ndim)
    return (slope * factor).to(slope.dtype), None, None, None, None, None, None


register_autograd(_forward_op, _setup_context, _gradient)


def masked_loss(
    prediction: Tensor, image: Tensor, masked_index: Tensor, valid: Tensor | None, kind: str, normalize: bool
) -> Tensor:
    """See `auxmae_kernels.masked_loss`."""
    asked = torch.is_grad_enabled() and prediction.requires_grad
    value: Tensor = _forward_op(prediction, image.detach(), masked_index, valid, kind, normalize, asked)[0]
    return value
