"""`assemble`: tokens, mask tokens, positions and channels put together in one pass, and taken apart in one pass.

A table that says which token lies at each place is inverted first, so that every number of the result is written once, by one
program.  On the way back a program owns some places of one channel and walks over a share of the images; it hands every latent
its gradient and keeps two sums, of all tokens and of the mask tokens, from which those of positions, channels and mask token
follow without atomics, in the same order on every run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from auxmae_kernels import autotuning, tuning
from auxmae_kernels.boundary import empty, launch, programs_for, register, register_autograd
from auxmae_kernels.tuning import Tile

# Places and numbers of a token.
_TILE = Tile(16, 4, columns=128)


@triton.jit(do_not_specialize=["rows", "channels", "tokens", "places"])
def assemble_forward(
    latent, token_at, mask_token, position, channel, out, rows, channels, tokens, places, mask_channel,
    stride_b, stride_c, stride_t, stride_d,
    WIDTH: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out (B, C, S, WIDTH), contiguous, from latent of any strides and token_at (B, C, S), −1 where the mask token lies."""
    blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    column = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    fits = (column < WIDTH)[None, :]
    row = (program // blocks).to(tl.int64) * TILE + tl.arange(0, TILE)
    exists = row < rows
    place = row % places
    c = row // places % channels
    b = row // places // channels
    token = tl.load(token_at + row, mask=exists, other=-1).to(tl.int64)
    known = exists & (token >= 0)
    at = b * stride_b + c * stride_c + token * stride_t
    mine = tl.load(latent + at[:, None] + (column.to(tl.int64) * stride_d)[None, :], mask=known[:, None] & fits, other=0.0)
    hidden = tl.load(
        mask_token + (c * mask_channel)[:, None] + column[None, :], mask=(exists & ~known)[:, None] & fits, other=0.0
    )
    inside = exists[:, None] & fits
    added = tl.load(position + (place * WIDTH)[:, None] + column[None, :], mask=inside, other=0.0).to(ACC)
    added += tl.load(channel + (c * WIDTH)[:, None] + column[None, :], mask=inside, other=0.0).to(ACC)
    result = tl.where(known[:, None], mine.to(ACC), hidden.to(ACC)) + added
    tl.store(out + (row * WIDTH)[:, None] + column[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "channels", "tokens", "places", "shares"])
def assemble_backward(
    grad, token_at, grad_latent, all_sums, mask_sums, batch, channels, tokens, places, shares,
    stride_b, stride_c, stride_t, stride_d,
    WIDTH: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """grad_latent (B, C, T, WIDTH), contiguous, where a place names the token; the sums (shares, C, S, WIDTH) of this program."""
    blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    column = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    fits = (column < WIDTH)[None, :]
    share = program // blocks % shares
    c = (program // blocks // shares % channels).to(tl.int64)
    place = (program // blocks // shares // channels).to(tl.int64) * TILE + tl.arange(0, TILE)
    exists = place < places
    total = tl.zeros((TILE, COLUMNS), ACC)
    masked = tl.zeros((TILE, COLUMNS), ACC)
    for image in range(share, batch, shares):
        b = tl.cast(image, tl.int64)
        token = tl.load(token_at + (b * channels + c) * places + place, mask=exists, other=-1).to(tl.int64)
        at = b * stride_b + c * stride_c + place * stride_t
        upstream = tl.load(grad + at[:, None] + (column.to(tl.int64) * stride_d)[None, :], mask=exists[:, None] & fits, other=0.0)
        known = token >= 0
        target = grad_latent + (((b * channels + c) * tokens + token) * WIDTH)[:, None] + column[None, :]
        tl.store(target, upstream.to(grad_latent.dtype.element_ty), mask=(exists & known)[:, None] & fits)
        total += upstream.to(ACC)
        masked += tl.where(known[:, None], 0.0, upstream.to(ACC))
    at = ((tl.cast(share, tl.int64) * channels + c) * places + place) * WIDTH
    tl.store(all_sums + at[:, None] + column[None, :], total, mask=exists[:, None] & fits)
    tl.store(mask_sums + at[:, None] + column[None, :], masked, mask=exists[:, None] & fits)


def _token_at(keep: Tensor, places: int) -> Tensor:
    """(B, C, T) places of the tokens → (B, C, S) tokens at the places, −1 for none, as 32-bit integers."""
    batch, channels, tokens = keep.shape
    # Padding is written to a place that is cut off.
    table = torch.full((batch, channels, places + 1), -1, dtype=torch.int32, device=keep.device)
    number = torch.arange(tokens, dtype=torch.int32, device=keep.device).expand(batch, channels, tokens)
    return table.scatter_(2, torch.where(keep < 0, places, keep).long(), number)[..., :places].contiguous()


def _accumulator(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _forward(latent: Tensor, keep: Tensor, mask_token: Tensor, position: Tensor, channel: Tensor) -> Tensor:
    batch, channels, tokens, width = latent.shape
    places = position.shape[0]
    out = empty((batch, channels, places, width), latent)
    rows = batch * channels * places
    token_at = _token_at(keep, places)

    def run(tile: Tile) -> None:
        launch(
            assemble_forward, tuning.cdiv(rows, tile.rows) * tuning.cdiv(width, tile.columns), latent, token_at,
            mask_token.contiguous(), position.contiguous(), channel.contiguous(), out, rows, channels, tokens, places,
            width if mask_token.ndim == 2 else 0, *latent.stride(),
            WIDTH=width, TILE=tile.rows, COLUMNS=tile.columns, ACC=_accumulator(latent.dtype), num_warps=tile.warps,
        )  # fmt: skip

    autotuning.run_tuned("assemble", latent, _TILE, autotuning.copies, {"WIDTH": width}, run)
    return out


def _forward_fake(latent: Tensor, keep: Tensor, mask_token: Tensor, position: Tensor, channel: Tensor) -> Tensor:
    return latent.new_empty((*latent.shape[:2], position.shape[0], latent.shape[3]))


Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _backward(grad: Tensor, keep: Tensor, mask_token: Tensor, position: Tensor, channel: Tensor) -> Gradients:
    batch, channels, places, width = grad.shape
    tokens = keep.shape[2]
    # Tokens that are padding lie at no place, and no program writes them.
    grad_latent = empty((batch, channels, tokens, width), grad).zero_()
    wide = torch.promote_types(torch.float32, grad.dtype)
    token_at = _token_at(keep, places)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        programs = channels * tuning.cdiv(places, tile.rows) * tuning.cdiv(width, tile.columns)
        shares = max(1, min(batch, programs_for(grad.device) // max(programs, 1)))
        sums = empty((shares, channels, places, width), grad, wide), empty((shares, channels, places, width), grad, wide)
        launch(
            assemble_backward, programs * shares, grad, token_at, grad_latent, *sums,
            batch, channels, tokens, places, shares, *grad.stride(),
            WIDTH=width, TILE=tile.rows, COLUMNS=tile.columns, ACC=_accumulator(grad.dtype), num_warps=tile.warps,
        )  # fmt: skip
        return sums

    total, masked = autotuning.run_tuned("assemble_backward", grad, _TILE, autotuning.copies, {"WIDTH": width}, run)
    return (
        grad_latent,
        masked.sum((0, 2) if mask_token.ndim == 2 else (0, 1, 2)).to(mask_token.dtype),
        total.sum((0, 1)).to(position.dtype),
        total.sum((0, 2)).to(channel.dtype),
    )


def _backward_fake(grad: Tensor, keep: Tensor, mask_token: Tensor, position: Tensor, channel: Tensor) -> Gradients:
    of_latent = grad.new_empty((*keep.shape, grad.shape[3]))
    return of_latent, *(tensor.new_empty(tensor.shape) for tensor in (mask_token, position, channel))  # type: ignore[return-value]


_TAIL = "Tensor keep, Tensor mask_token, Tensor position, Tensor channel"
_forward_op = register(f"assemble(Tensor latent, {_TAIL}) -> Tensor", _forward, _forward_fake)
_backward_op = register(f"assemble_backward(Tensor grad, {_TAIL}) -> (Tensor, Tensor, Tensor, Tensor)", _backward, _backward_fake)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_latent, *rest = _backward_op(grad, *ctx.saved_tensors)
    return (grad_latent, None, *rest)


register_autograd(_forward_op, _setup_context, _gradient)


def assemble(latent: Tensor, keep: Tensor, mask_token: Tensor, position: Tensor, channel: Tensor) -> Tensor:
    """See `auxmae_kernels.assemble`."""
    out: Tensor = _forward_op(latent, keep, mask_token, position, channel)
    return out
