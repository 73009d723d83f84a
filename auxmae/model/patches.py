"""Pixels of patches: predicted ones → an image, statistics of hidden ones, and what stands where pixels are not valid.

Shapes: B batch, G channel groups of g channels, N positions, M hidden ones, P = g·p·p pixels per token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auxmae.model.masking import Mask, hidden_positions


def from_patches(
    prediction: Tensor, masked_index: Tensor, grid: tuple[int, int], group_size: int, patch_size: int
) -> tuple[Tensor, Tensor]:
    """Lays hidden patches (B, G, M, P) out as an image.

    Returns:
        (B, G·g, h, w) pixels, 0 where nothing was hidden, and the same shape in bool: True where hidden.
    """
    batch, groups, _, pixels = prediction.shape
    rows, columns = grid
    positions = rows * columns
    place = torch.where(masked_index < 0, positions, masked_index)[..., None]
    table = prediction.new_zeros(batch, groups, positions + 1, pixels)
    table.scatter_(2, place.expand(-1, -1, -1, pixels), prediction)
    hidden = torch.zeros(batch, groups, positions + 1, 1, dtype=torch.bool, device=prediction.device)
    hidden.scatter_(2, place, True)

    def image(x: Tensor) -> Tensor:
        x = x[:, :, :positions].reshape(batch, groups, rows, columns, group_size, patch_size, patch_size)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, groups * group_size, rows * patch_size, columns * patch_size)

    return image(table), image(hidden.expand(-1, -1, -1, pixels))


def fill_patches(image: Tensor, valid: Tensor, patch_size: int) -> Tensor:
    """(B, C, h, w) with the mean of a patch's valid pixels, channel by channel, in place of the others; 0 where it has none.

    Zeros would be a dark border such as no whole patch has: features of images that the patches do not divide would then say
    more of their size than of their content.  Nothing comes from another patch, so that what is hidden stays hidden.

    Args:
        image: 0 where not valid; h and w are multiples of the patch size.
        valid: (B, C, h, w) bool.
    """
    batch, channels, height, width = image.shape
    p = patch_size
    shape = (batch, channels, height // p, p, width // p, p)
    patches, known = image.reshape(shape), valid.reshape(shape)
    mean = patches.sum((3, 5), keepdim=True) / known.sum((3, 5), keepdim=True).clamp(min=1)
    return torch.where(known, patches, mean.to(image.dtype)).reshape(image.shape)


def count_hidden(masked_index: Tensor, valid: Tensor | None, pixels: int) -> Tensor:
    """How many hidden pixels are valid: an int64 scalar, which nothing is read from a device for.

    Args:
        masked_index: (B, G, M) positions of the hidden patches, −1 as padding.
        valid: (B, G·g, h, w) bool, whole patches; None: all are.
        pixels: P.
    """
    hidden = masked_index >= 0
    if valid is None:
        return hidden.sum() * pixels
    groups = masked_index.shape[1]
    known = _to_patches(valid, groups, math.isqrt(pixels * groups // valid.shape[1])).sum(3)
    return (known.gather(2, masked_index.clamp(min=0)) * hidden).sum()


def _to_patches(image: Tensor, groups: int, patch_size: int) -> Tensor:
    """(B, G·g, h, w) → (B, G, N, P)."""
    batch, channels, height, width = image.shape
    p = patch_size
    x = image.reshape(batch, groups, channels // groups, height // p, p, width // p, p)
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


def unnormalise(prediction: Tensor, image: Tensor, valid: Tensor | None, mask: Mask, patch_size: int) -> Tensor:
    """Brings per-patch normalised predictions (B, G, M, P) back to pixel units without reading a hidden pixel.

    The mean and the standard deviation of a hidden patch are interpolated from the visible patches of its channel by
    inverse squared distance; a channel that shows nothing takes the average of the other channels'.
    """
    groups = prediction.shape[1]
    columns = image.shape[3] // patch_size
    pixels = _to_patches(image, groups, patch_size)
    weight = torch.ones_like(pixels) if valid is None else _to_patches(valid, groups, patch_size).to(image.dtype)
    pixels = pixels * weight
    count = weight.sum(-1)
    mean = pixels.sum(-1) / count.clamp(min=1)
    deviation = ((pixels - mean[..., None]).square() * weight).sum(-1).div(count.clamp(min=1)).sqrt()
    seen = (~hidden_positions(mask.keep, mean.shape[2]) & (count > 0)).to(image.dtype)

    place = torch.arange(mean.shape[2], device=image.device)
    point = torch.stack([place // columns, place % columns], 1).to(image.dtype)
    near = 1.0 / (torch.cdist(point, point).square() + 1e-6)
    total = seen @ near
    statistics = []
    for value in (mean, deviation):
        known = (value * seen) @ near / total.clamp(min=1e-12)
        fallback = (value * seen).sum((1, 2), keepdim=True) / seen.sum((1, 2), keepdim=True).clamp(min=1)
        filled = torch.where(seen.any(2, keepdim=True), known, fallback)
        statistics.append(filled.gather(2, mask.masked_index.clamp(min=0))[..., None])
    return prediction * (statistics[1].square() + 1e-6).sqrt() + statistics[0]
