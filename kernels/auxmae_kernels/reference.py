"""The public functions in plain PyTorch: the specification, the CPU path, the fallback; `shapes` checks their arguments.

Shapes: B batch, G channel groups of g channels, N positions of the patch grid, K visible and M hidden ones, T tokens of a
channel, S places that a channel's tokens can have, D width, P = g·p·p pixels per token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from auxmae_kernels import boundary, shapes
from auxmae_kernels.attention_reference import attend, axial_attention, real_tokens
from auxmae_kernels.products import linear, weight_gradient

__all__ = [
    "add_norm",
    "assemble",
    "attention_block",
    "axial_attention",
    "embed_visible",
    "feed_forward",
    "masked_loss",
]

PATCH_EPS = 1e-6
_ERRORS = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


def _gelu_linear(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear(F.gelu(hidden), weight, bias)


class _GeluLinear(torch.autograd.Function):
    """`_gelu_linear` that keeps `hidden`, and not the GELU's output, which is as large and cheap to compute again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _gelu_linear(hidden, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        return (
            torch.ops.aten.gelu_backward(linear(rows, weight.t()).view_as(hidden), hidden) if of_hidden else None,
            weight_gradient(rows, F.gelu(hidden).reshape(-1, hidden.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def feed_forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    residual_scale: float = 1.0,
    eps: float = 1e-6,
    dropout: float = 0.0,
) -> Tensor:
    """See `auxmae_kernels.feed_forward`."""
    y = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    y = linear(y, w1, b1)
    if dropout:
        y = F.dropout(linear(F.dropout(F.gelu(y), dropout), w2, b2), dropout)
    elif y.device.type == "cpu" and torch.compiler.is_compiling():
        # The compiler would see one GELU in both passes, and keep it.
        y = checkpoint(_gelu_linear, y, w2, b2, use_reentrant=False, preserve_rng_state=False)
    elif y.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        y = _GeluLinear.apply(y, w2, b2)  # type: ignore[no-untyped-call]
    else:
        y = _gelu_linear(y, w2, b2)
    return torch.add(x, y, alpha=residual_scale)


def attention_block(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    heads: int,
    axis: str,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    residual_scale: float = 1.0,
    eps: float = 1e-6,
    dropout: float = 0.0,
) -> Tensor:
    """See `auxmae_kernels.attention_block`."""
    # The way back multiplies what padding holds by zeros, and NaN times zero would be in every weight's gradient.
    known = x if lengths is None else torch.where(real_tokens(lengths, x.shape[2])[..., None], x, 0.0)
    y = F.layer_norm(known, x.shape[-1:], norm_weight, norm_bias, eps)
    # Three products instead of one: queries, keys and values then lie apart, and no attention has to copy them.
    biases = (None, None, None) if b_qkv is None else b_qkv.chunk(3)
    q, k, v = (linear(y, weight, bias) for weight, bias in zip(w_qkv.chunk(3), biases, strict=True))
    y = linear(attend(q, k, v, heads, axis, slots, lengths), w_out, b_out)
    if dropout:
        y = F.dropout(y, dropout)
    return torch.add(x, y, alpha=residual_scale)


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, residual_scale: float = 1.0, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """See `auxmae_kernels.add_norm`."""
    total = torch.add(residual, x, alpha=residual_scale)
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def _known_full(index: Tensor) -> bool:
    """Whether positions have no padding (−1); False as well where to look would mean to wait for a device."""
    return boundary.reading_is_free(index) and bool((index.numpy() >= 0).all())


def _patches_at(image: Tensor, index: Tensor, patch_size: int) -> Tensor:
    """Patches (B, G, L, g, p, p) of image (B, G·g, h, w) at positions (B, G, L); no other pixel is read."""
    batch, groups = index.shape[:2]
    _, _channels, height, width = image.shape
    p, g = patch_size, shapes.group_size(image, groups)
    view = (
        image.view(batch, groups, g, height // p, p, width // p, p)
        if image.is_contiguous()
        else image.reshape(batch, groups, g, height // p, p, width // p, p)
    )
    item = torch.arange(batch, device=index.device)[:, None, None]
    group = torch.arange(groups, device=index.device)[None, :, None]
    columns = width // p
    # (B, G, rows, columns, g, p, p) is a view; indexing it copies the chosen patches alone.
    return view.permute(0, 1, 3, 5, 2, 4, 6)[item, group, index // columns, index % columns]


def embed_visible(
    image: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, position: Tensor, channel: Tensor, patch_size: int,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    """See `auxmae_kernels.embed_visible`."""
    index = keep.clamp(min=0)
    x_BGKP = _patches_at(image, index, patch_size).flatten(3)
    full = _known_full(keep)
    if not full:
        # Padding was read at place 0, which may be hidden: NaN there times a gradient of zero would be in every weight's.
        x_BGKP = torch.where(keep[..., None] < 0, 0.0, x_BGKP)
    if weight.ndim == 2:  # noqa: SIM108
        x = linear(x_BGKP, weight, bias)
    else:
        x = torch.einsum("bgkp,gdp->bgkd", x_BGKP, weight) + bias[:, None]
    if activation == "gelu":
        x = F.gelu(x)
    x = x + position[index] + channel[:, None]
    return x if full else torch.where(keep[..., None] < 0, 0.0, x)


def assemble(latent: Tensor, keep: Tensor, mask_token: Tensor, position: Tensor, channel: Tensor) -> Tensor:
    """See `auxmae_kernels.assemble`."""
    batch, channels, _, width = latent.shape
    places = position.shape[0]
    # Padding is written to a place that is cut off; written places hold the token, all others the mask token.
    index = torch.where(keep < 0, places, keep)[..., None].expand(-1, -1, -1, width)
    token = mask_token if mask_token.ndim == 2 else mask_token[None]
    base = token[None, :, None].to(latent.dtype).expand(batch, channels, places + 1, width)
    x = base.scatter(2, index, latent)[:, :, :places]
    return x + (position + channel[:, None]).to(latent.dtype)


def masked_loss(
    prediction: Tensor,
    image: Tensor,
    masked_index: Tensor,
    valid: Tensor | None = None,
    kind: str = "l1",
    normalize: bool = False,
) -> Tensor:
    """See `auxmae_kernels.masked_loss`."""
    p = shapes.patch_side(prediction.shape[3], shapes.group_size(image, prediction.shape[1]))
    index = masked_index.clamp(min=0)
    target = _patches_at(image, index, p).flatten(3)
    prediction = prediction.float() if prediction.dtype in (torch.float16, torch.bfloat16) else prediction
    weight = None
    if valid is not None or not _known_full(masked_index):
        counts = (masked_index >= 0)[..., None].expand_as(target)
        if valid is not None:
            counts = counts & _patches_at(valid.expand_as(image), index, p).flatten(3)
        # Whatever does not count becomes 0 on both sides before any arithmetic: NaN times zero would still be NaN.
        target = torch.where(counts, target, 0.0)
        prediction = torch.where(counts, prediction, 0.0)
        weight = counts.to(prediction.dtype)
    target = target.to(prediction.dtype)
    if normalize:
        n = target.shape[-1] if weight is None else weight.sum(-1, keepdim=True).clamp(min=1)
        centred = target - target.sum(-1, keepdim=True) / n
        centred = centred if weight is None else centred * weight
        target = centred / (centred.square().sum(-1, keepdim=True) / n + PATCH_EPS).sqrt()
    error = _ERRORS[kind](prediction, target, reduction="sum")
    return error / max(target.numel(), 1) if weight is None else error / weight.sum().clamp(min=1)
