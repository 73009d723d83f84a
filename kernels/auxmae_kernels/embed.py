"""`embed_visible`: a matrix product whose left operand is gathered from the image, patch by patch.

Only visible patches are read, in the value and in the gradient.  The weight's gradient is a product over all tokens and left to a
library; its operand, the gathered patches, lives only for that long, as does what the GELU was given, which is computed again.
The sum over the tokens of a position is that of an embedding table's gradient, which adds in a fixed order.  The image's own
gradient, which training never asks for, is put together from PyTorch's pieces.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from auxmae_kernels import autotuning, tuning
from auxmae_kernels.boundary import accumulation, empty, launch, register, register_autograd, without_autocast
from auxmae_kernels.tiles import dot, gelu
from auxmae_kernels.tuning import Tile

# Tokens, and numbers of a token or pixels of a patch; the chunk is of pixels.
_TILE = Tile(64, 4, 2, columns=64, chunk=32)
_GATHER_TILE = Tile(64, 4, columns=64)


@triton.jit
def _token(keep, group, tile, tokens, groups, kept, TILE: tl.constexpr):
    """Of each row of a tile of a group's tokens, one image after another: image, index in `keep`, place; it exists, is real."""
    row = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    b = row // kept
    index = (b * groups + group) * kept + (row - b * kept)
    place = tl.load(keep + index, mask=row < tokens, other=-1)
    return b, index, place, row < tokens, (row < tokens) & (place >= 0)


@triton.jit
def _load_pixels(
    image, b, group, place, real, pixel, columns, stride_b, stride_c, stride_h, stride_w,
    SIDE: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """A tile (tokens, pixels) of patches, whose pixels are ordered (channel of the group, row, column); 0 where not real."""
    area: tl.constexpr = SIDE * SIDE
    down = (place // columns).to(tl.int64) * SIDE
    across = (place % columns).to(tl.int64) * SIDE
    corner = b * stride_b + (group.to(tl.int64) * (PIXELS // area)) * stride_c + down * stride_h + across * stride_w
    within = pixel % area
    offset = (pixel // area).to(tl.int64) * stride_c + (within // SIDE).to(tl.int64) * stride_h
    offset += (within % SIDE).to(tl.int64) * stride_w
    mask = real[:, None] & (pixel < PIXELS)[None, :]
    return tl.load(image + corner[:, None] + offset[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["tokens", "groups", "kept", "columns"])
def embed_forward(
    image, keep, weight, bias, position, channel, out, tokens, groups, kept, columns, weight_group, bias_group,
    stride_b, stride_c, stride_h, stride_w,
    SIDE: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, GELU: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out (B, G, K, WIDTH), contiguous; weight_group and bias_group are the elements from one group's map to the next's."""
    blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    column = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    group = (program // blocks) % groups
    b, index, place, exists, real = _token(keep, group, program // blocks // groups, tokens, groups, kept, TILE)
    fits = column < WIDTH
    total = tl.zeros((TILE, COLUMNS), ACC)
    for start in range(0, PIXELS, CHUNK):
        pixel = start + tl.arange(0, CHUNK)
        patch = _load_pixels(
            image, b, group, place, real, pixel, columns, stride_b, stride_c, stride_h, stride_w, SIDE, PIXELS
        ).to(weight.dtype.element_ty)  # fmt: skip
        at = group.to(tl.int64) * weight_group + column[:, None] * PIXELS + pixel[None, :]
        part = tl.load(weight + at, mask=fits[:, None] & (pixel < PIXELS)[None, :], other=0.0)
        total += dot(patch, tl.trans(part), ACC, PRECISION, UPCAST)
    total += tl.load(bias + group * bias_group + column, mask=fits, other=0.0).to(ACC)[None, :]
    if GELU:
        total = gelu(total)
    own = tl.load(channel + group * WIDTH + column, mask=fits, other=0.0).to(ACC)
    there = place.to(tl.int64)[:, None] * WIDTH + column[None, :]
    total += own[None, :] + tl.load(position + there, mask=real[:, None] & fits[None, :], other=0.0).to(ACC)
    total = tl.where(real[:, None], total, 0.0)
    target = out + (index * WIDTH)[:, None] + column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=exists[:, None] & fits[None, :])


@triton.jit(do_not_specialize=["tokens", "groups", "kept", "columns"])
def embed_gather(
    image, keep, out, tokens, groups, kept, columns, stride_b, stride_c, stride_h, stride_w,
    SIDE: tl.constexpr, PIXELS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """out (B, G, K, PIXELS), contiguous: the visible patches, and 0 at padding."""
    blocks: tl.constexpr = (PIXELS + CHUNK - 1) // CHUNK
    program = tl.program_id(0)
    pixel = (program % blocks) * CHUNK + tl.arange(0, CHUNK)
    group = (program // blocks) % groups
    b, index, place, exists, real = _token(keep, group, program // blocks // groups, tokens, groups, kept, TILE)
    patch = _load_pixels(image, b, group, place, real, pixel, columns, stride_b, stride_c, stride_h, stride_w, SIDE, PIXELS)
    target = out + (index * PIXELS)[:, None] + pixel[None, :]
    tl.store(target, patch.to(out.dtype.element_ty), mask=exists[:, None] & (pixel < PIXELS)[None, :])


def _out_type(weight: Tensor, position: Tensor, channel: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.promote_types(position.dtype, channel.dtype))


def _forward(
    image: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, position: Tensor, channel: Tensor, side: int,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    batch, groups, kept = keep.shape
    width, pixels = weight.shape[-2:]
    out = empty((batch, groups, kept, width), image, _out_type(weight, position, channel))
    index = keep.to(torch.int32).contiguous()
    constants = {
        "SIDE": side, "PIXELS": pixels, "WIDTH": width, "GELU": activation == "gelu",
        **accumulation(torch.promote_types(weight.dtype, position.dtype) if weight.dtype == torch.float64 else weight.dtype),
    }  # fmt: skip

    def run(tile: Tile) -> None:
        launch(
            embed_forward, tuning.cdiv(batch * kept, tile.rows) * groups * tuning.cdiv(width, tile.columns), image, index,
            weight.contiguous(), bias.contiguous(), position.contiguous(), channel.contiguous(), out,
            batch * kept, groups, kept, image.shape[3] // side,
            width * pixels if weight.ndim == 3 else 0, width if bias.ndim == 2 else 0, *image.stride(),
            TILE=tile.rows, COLUMNS=tile.columns, CHUNK=tile.chunk, num_warps=tile.warps, num_stages=tile.stages, **constants,
        )  # fmt: skip

    # With four warps, products in fp32 would spill registers.
    tile = replace(_TILE, warps=8) if weight.dtype == torch.float32 else _TILE
    autotuning.run_tuned("embed_visible", weight, tile, autotuning.patches, constants, run)
    return out


def _forward_fake(
    image: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, position: Tensor, channel: Tensor, *_: Any
) -> Tensor:
    return image.new_empty((*keep.shape, weight.shape[-2]), dtype=_out_type(weight, position, channel))


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _backward(
    grad: Tensor, image: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, position: Tensor, channel: Tensor,
    side: int, of_image: bool, activation: str = "none",
) -> Gradients:  # fmt: skip
    with without_autocast(image):
        batch, groups, kept = keep.shape
        width, pixels = weight.shape[-2:]
        patches = empty((batch, groups, kept, pixels), image, weight.dtype)
        places = keep.to(torch.int32).contiguous()

        def run(tile: Tile) -> None:
            launch(
                embed_gather, tuning.cdiv(batch * kept, tile.rows) * groups * tuning.cdiv(pixels, tile.columns),
                image, places, patches, batch * kept, groups, kept, image.shape[3] // side, *image.stride(),
                SIDE=side, PIXELS=pixels, TILE=tile.rows, CHUNK=tile.columns, num_warps=tile.warps,
            )  # fmt: skip

        shape = {"SIDE": side, "PIXELS": pixels}
        autotuning.run_tuned("embed_visible_backward", weight, _GATHER_TILE, autotuning.copies, shape, run)
        grad = torch.where(keep[..., None] < 0, 0.0, grad)
        wide = torch.promote_types(torch.float32, grad.dtype)
        by_group = grad.transpose(0, 1).reshape(groups, batch * kept, width)
        operand = by_group.to(weight.dtype)
        gathered = patches.transpose(0, 1).reshape(groups, batch * kept, pixels)
        if activation == "gelu":
            hidden = gathered @ weight.transpose(-2, -1) + (bias[:, None] if bias.ndim == 2 else bias)
            operand = torch.ops.aten.gelu_backward(operand, hidden)
        if weight.ndim == 3:
            grad_weight = operand.transpose(1, 2) @ gathered
        else:
            grad_weight = operand.reshape(-1, width).t() @ gathered.reshape(-1, pixels)
        grad_channel = by_group.sum(1, dtype=wide)
        grad_bias = grad_channel if activation == "none" else operand.sum(1, dtype=wide)
        grad_bias = grad_bias if bias.ndim == 2 else grad_bias.sum(0)
        # Padding goes to a row that is cut off.
        count = position.shape[0]
        index = torch.where(keep < 0, count, keep).long()
        grad_position = torch.ops.aten.embedding_dense_backward(grad.to(wide), index, count + 1, -1, False)[:count]
        return (
            _image_gradient(image, keep, operand @ weight, side) if of_image else image.new_empty(0),
            grad_weight,
            # The operator's results must not share memory.
            grad_bias.to(bias.dtype, copy=True),
            grad_position.to(position.dtype, copy=True),
            grad_channel.to(channel.dtype, copy=True),
        )


def _image_gradient(image: Tensor, keep: Tensor, grad_patches: Tensor, side: int) -> Tensor:
    """(B, G·g, h, w) from the gradient of the patches (G, B·K, P)."""
    batch, groups, kept = keep.shape
    _, channels, height, width = image.shape
    g, down, across = channels // groups, height // side, width // side
    table = grad_patches.new_zeros(batch, groups, down * across + 1, g * side * side)
    # Where one place is named twice, both gradients count.
    index = torch.where(keep < 0, down * across, keep).long()[..., None].expand(-1, -1, -1, table.shape[3])
    table.scatter_add_(2, index, grad_patches.view(groups, batch, kept, table.shape[3]).transpose(0, 1))
    patches = table[:, :, :-1].view(batch, groups, down, across, g, side, side).permute(0, 1, 4, 2, 5, 3, 6)
    return patches.reshape(image.shape).to(image.dtype, copy=True)


def _backward_fake(
    grad: Tensor, image: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, position: Tensor, channel: Tensor,
    side: int, of_image: bool, activation: str = "none",
) -> Gradients:  # fmt: skip
    of_pixels = image.new_empty(image.shape if of_image else (0,))
    rest = [tensor.new_empty(tensor.shape) for tensor in (weight, bias, position, channel)]
    return of_pixels, rest[0], rest[1], rest[2], rest[3]


_ARGUMENTS = "Tensor image, Tensor keep, Tensor weight, Tensor bias, Tensor position, Tensor channel, int side"
_forward_op = register(f"embed_visible({_ARGUMENTS}, str activation='none') -> Tensor", _forward, _forward_fake)
_backward_op = register(
    f"embed_visible_backward(Tensor grad, {_ARGUMENTS}, bool of_image, str activation='none') -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.side, ctx.activation = inputs[6:]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_image = ctx.needs_input_grad[0]
    grad_image, *rest = _backward_op(grad, *ctx.saved_tensors, ctx.side, of_image, ctx.activation)
    return (grad_image if of_image else None, None, *rest, None, None)


register_autograd(_forward_op, _setup_context, _gradient)


def embed_visible(
    image: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, position: Tensor, channel: Tensor, side: int, activation: str
) -> Tensor:
    """See `auxmae_kernels.embed_visible`; the products run in the weight's type."""
    out: Tensor = _forward_op(image, keep, weight, bias, position, channel, side, activation)
    return out
