"""What the functions ask of their arguments, whichever implementation runs; nothing here waits for a device.

Shapes: B batch, G channel groups of g channels, N positions of the patch grid, K visible and M hidden ones, C channels, T tokens
of a channel, S places that its tokens can have, D width, P = g·p·p pixels per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from auxmae_kernels import boundary


def _fit(name: str, tensor: Tensor, expected: Sequence[int], other: str, of: Tensor) -> None:
    if tensor.shape != torch.Size(expected):
        raise ValueError(f"{name} {tuple(tensor.shape)} does not fit {other} {tuple(of.shape)}: it must be {tuple(expected)}")


def _axes(name: str, tensor: Tensor, letters: str) -> None:
    if tensor.ndim != len(letters.split(", ")):
        raise ValueError(f"{name} must be ({letters}), not {tuple(tensor.shape)}")


def _integers(name: str, index: Tensor) -> None:
    # PyTorch takes bytes for a mask, and indexes with no others.
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be integers, int32 or int64, not {index.dtype}")


def _positions(name: str, index: Tensor, count: int, what: str = "positions (−1 is padding)") -> None:
    """Integers below `count`, as far as one may look."""
    _integers(name, index)
    if index.numel() and boundary.reading_is_free(index) and (largest := int(index.numpy().max())) >= count:
        raise ValueError(f"{name} holds {largest}, and there are {count} {what}")


def group_size(image: Tensor, groups: int) -> int:
    """g; ValueError where an image (B, G·g, h, w) does not divide into the groups."""
    if groups == 0 or image.shape[1] % groups:
        raise ValueError(f"{image.shape[1]} image channels do not divide into {groups} groups")
    return image.shape[1] // groups


def patch_side(pixels: int, group: int) -> int:
    """p of P = g·p·p pixels; ValueError where they are no square patches."""
    side: int = round((pixels / group) ** 0.5)
    if side < 1 or group * side * side != pixels:
        raise ValueError(f"{pixels} pixels per token are no {group} square patches")
    return side


def _patch_count(image: Tensor, patch_size: int) -> int:
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1, not {patch_size}")
    height, width = image.shape[2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"an image of {height} × {width} px is no multiple of the patch size {patch_size}")
    return (height // patch_size) * (width // patch_size)


def check_probability(dropout: float) -> None:
    """Raises ValueError where dropout is no probability."""
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout must be a probability between 0 and 1, not {dropout}")


def _check_norm(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    _fit("norm_weight", weight, x.shape[-1:], "x", x)
    _fit("norm_bias", bias, x.shape[-1:], "x", x)


def check_add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raises ValueError as `auxmae_kernels.add_norm` says."""
    try:
        width = torch.broadcast_shapes(x.shape, residual.shape)[-1:]
    except RuntimeError as error:
        raise ValueError(f"residual {tuple(residual.shape)} does not broadcast to x {tuple(x.shape)}") from error
    _fit("weight", weight, width, "x", x)
    _fit("bias", bias, width, "x", x)


def check_sequences(name: str, x: Tensor, slots: Tensor | None, lengths: Tensor | None) -> None:
    """Raises ValueError as `auxmae_kernels.axial_attention` says of slots and lengths; x is (B, C, T, …)."""
    batch, channels, tokens = x.shape[:3]
    if slots is not None:
        _axes("slots", slots, "B, S, C")
        _fit("slots", slots, (batch, slots.shape[1], channels), name, x)
        _positions("slots", slots, tokens, "tokens of a channel (−1 is a hidden one)")
    if lengths is not None:
        _fit("lengths", lengths, (batch, channels), name, x)
        _integers("lengths", lengths)


def check_attention_block(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, w_out: Tensor, b_out: Tensor | None,
    slots: Tensor | None, lengths: Tensor | None, dropout: float,
) -> None:  # fmt: skip
    """Raises ValueError as `auxmae_kernels.attention_block` says; x is (B, C, T, D)."""
    check_probability(dropout)
    _check_norm(x, norm_weight, norm_bias)
    width = x.shape[3]
    _fit("w_qkv", w_qkv, (3 * width, width), "x", x)
    _fit("w_out", w_out, (width, width), "x", x)
    if b_qkv is not None:
        _fit("b_qkv", b_qkv, (3 * width,), "x", x)
    if b_out is not None:
        _fit("b_out", b_out, (width,), "x", x)
    check_sequences("x", x, slots, lengths)


def check_feed_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dropout: float
) -> None:
    """Raises ValueError as `auxmae_kernels.feed_forward` says."""
    check_probability(dropout)
    _check_norm(x, norm_weight, norm_bias)
    _axes("w1", w1, "hidden, D")
    hidden, width = w1.shape[0], x.shape[-1]
    _fit("w1", w1, (hidden, width), "x", x)
    _fit("b1", b1, (hidden,), "w1", w1)
    _fit("w2", w2, (width, hidden), "w1", w1)
    _fit("b2", b2, (width,), "x", x)


def check_embedding(
    image: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, position: Tensor, channel: Tensor, patch_size: int,
    activation: str,
) -> None:  # fmt: skip
    """Raises ValueError as `auxmae_kernels.embed_visible` says."""
    if activation not in ("none", "gelu"):
        raise ValueError(f"activation must be 'none' or 'gelu', not {activation!r}")
    _axes("image", image, "B, G·g, h, w")
    _axes("keep", keep, "B, G, K")
    _, groups, kept = keep.shape
    count, pixels = _patch_count(image, patch_size), group_size(image, groups) * patch_size**2
    _fit("keep", keep, (image.shape[0], groups, kept), "image", image)
    if weight.ndim not in (2, 3):
        raise ValueError(f"weight must be (D, P) or (G, D, P), not {tuple(weight.shape)}")
    width = weight.shape[-2]
    _fit("weight", weight, (width, pixels) if weight.ndim == 2 else (groups, width, pixels), "image", image)
    _fit("bias", bias, weight.shape[:-1], "weight", weight)
    _fit("position", position, (count, width), "image", image)
    _fit("channel", channel, (groups, width), "keep", keep)
    _positions("keep", keep, count)


def check_assembly(latent: Tensor, keep: Tensor, mask_token: Tensor, position: Tensor, channel: Tensor) -> None:
    """Raises ValueError as `auxmae_kernels.assemble` says."""
    _axes("latent", latent, "B, C, T, D")
    _, channels, _, width = latent.shape
    _fit("keep", keep, latent.shape[:3], "latent", latent)
    _fit("mask_token", mask_token, (width,) if mask_token.ndim == 1 else (channels, width), "latent", latent)
    _axes("position", position, "S, D")
    _fit("position", position, (position.shape[0], width), "latent", latent)
    _fit("channel", channel, (channels, width), "latent", latent)
    _positions("keep", keep, position.shape[0])


def check_loss(prediction: Tensor, image: Tensor, masked_index: Tensor, valid: Tensor | None, kind: str) -> None:
    """Raises ValueError as `auxmae_kernels.masked_loss` says."""
    if kind not in ("l1", "mse", "smooth_l1"):
        raise ValueError(f"kind must be 'l1', 'mse' or 'smooth_l1', not {kind!r}")
    _axes("prediction", prediction, "B, G, M, P")
    _axes("image", image, "B, G·g, h, w")
    _fit("masked_index", masked_index, prediction.shape[:3], "prediction", prediction)
    _fit("image", image, (prediction.shape[0], *image.shape[1:]), "prediction", prediction)
    side = patch_side(prediction.shape[3], group_size(image, prediction.shape[1]))
    _positions("masked_index", masked_index, _patch_count(image, side))
    if valid is not None:
        check_valid(valid, image)


def check_valid(valid: Tensor, image: Tensor) -> None:
    """Raises ValueError where `valid` is not bool, or does not broadcast to the image's shape."""
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, not {valid.dtype}")
    sizes = zip(reversed(valid.shape), reversed(image.shape), strict=False)
    if valid.ndim > image.ndim or any(size not in (1, full) for size, full in sizes):
        raise ValueError(f"valid {tuple(valid.shape)} does not broadcast to the image {tuple(image.shape)}")
