"""Reconstructions that need no learning: what a masked autoencoder has to beat.

Shape letters: B batch, C channels; h, w pixels.  Every function takes the image (B, C, h, w), `hidden` (B, C, h, w)
bool, True where the encoder did not see the pixel, and `valid` (B, C, h, w) bool or None, and returns a prediction for
every pixel.  Pixels that are hidden or not valid are never read: they may hold NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# One more floor: image, hidden, valid, and what `interpolation_floor` makes of them → a prediction.
Floor = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]

# Those that need no fitting.
FLOORS = ("mean", "interpolation")

# Weight of the bending energy against the tension, px².
_STIFFNESS = 4.0
# Conjugate-gradient steps on the finest level, the next, and all coarser ones: each has a quarter of the pixels of the
# one before, and wide gaps are bridged on the coarse ones.
_STEPS = (12, 64, 96)


def mean_floor(image: Tensor, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
    """Predict the mean of the visible valid pixels of the same image and channel, everywhere.

    A channel of which nothing is visible gets the mean of the visible valid pixels of the image's other channels
    (scaled channels share a range); an image of which nothing is visible gets 0.

    Returns:
        (B, C, h, w), constant within each image and channel.
    """
    known = known_pixels(image, hidden, valid)
    # MPS has no float64.
    exact = torch.float32 if image.device.type == "mps" else torch.float64
    values = image.masked_fill(~known, 0.0).to(exact)
    sums, counts = values.sum(dim=(2, 3)), known.sum(dim=(2, 3))
    whole = sums.sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True).clamp(min=1)
    mean = torch.where(counts > 0, sums / counts.clamp(min=1), whole)
    return mean.to(image.dtype)[:, :, None, None].expand_as(image).clone()


def interpolation_floor(image: Tensor, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
    """Interpolate each channel's hidden pixels from its own visible valid pixels.

    The interpolant is a thin plate under tension (Smith and Wessel 1990): it minimises the sum of |∇u|² + 4 px² (Δu)²
    with the known pixels held fixed and no flow across the image's edge.  It is solved by cascadic multigrid (Bornemann
    and Deuflhard 1996): known pixels are averaged down a pyramid; each level starts from the one above and takes a
    few conjugate-gradient steps.  On Sentinel-2 crops its error lies below that of the nearest visible pixel, piecewise
    linear and inverse-distance interpolation, and the harmonic interpolant (tension alone).

    A channel of which nothing is visible gets, at each pixel, the mean over the image's other, interpolated, channels;
    an image of which nothing is visible gets 0.

    Returns:
        (B, C, h, w); visible valid pixels keep their values.
    """
    known = known_pixels(image, hidden, valid)
    values = image.masked_fill(~known, 0.0)
    filled = _fill(values, known.to(values.dtype))
    seen = known.flatten(2).any(dim=2)[:, :, None, None]
    others = (filled * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(seen, filled, others.expand_as(filled))


def predict_floors(
    image: Tensor, hidden: Tensor, valid: Tensor | None, more_floors: Mapping[str, Floor] | None = None
) -> dict[str, Tensor]:
    """Every floor's prediction (B, C, h, w) by name: `FLOORS`, then `more_floors`."""
    interpolated = interpolation_floor(image, hidden, valid)
    simple = (mean_floor(image, hidden, valid), interpolated)
    more = {name: floor(image, hidden, valid, interpolated) for name, floor in (more_floors or {}).items()}
    return {**dict(zip(FLOORS, simple, strict=True)), **more}


def known_pixels(image: Tensor, hidden: Tensor, valid: Tensor | None) -> Tensor:
    """(B, C, h, w) bool, True where a floor may read the image.

    Raises:
        ValueError: shapes differ.
    """
    if hidden.shape != image.shape or (valid is not None and valid.shape != image.shape):
        raise ValueError(f"hidden and valid must have the image's shape {tuple(image.shape)}, not {tuple(hidden.shape)}")
    return ~hidden if valid is None else valid & ~hidden


def _fill(values: Tensor, known: Tensor, level: int = 0) -> Tensor:
    """Interpolate `values` where `known` (1 or 0) is 0: one level of the pyramid, the coarser ones by recursion."""
    height, width = values.shape[2:]
    if height == 1 and width == 1:
        return values
    # ceil_mode keeps the last row and column of odd sizes; the ratio of averages is the mean of a cell's known pixels.
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(values, 2, ceil_mode=True) / torch.where(weight > 0, weight, torch.ones_like(weight))
    above = _fill(coarse, (weight > 0).to(known.dtype), level + 1)
    start = F.interpolate(above, scale_factor=2.0, mode="bilinear")[:, :, :height, :width]
    # Lengths count in pixels of the level: the stiffness shrinks with their area.
    steps = min(_STEPS[min(level, len(_STEPS) - 1)], height * width)
    return _relax(torch.where(known > 0, values, start), 1 - known, _STIFFNESS / 4**level, steps)


def _relax(estimate: Tensor, free: Tensor, stiffness: float, steps: int) -> Tensor:
    """Conjugate-gradient steps towards (L + stiffness · L²) u = 0 at the free pixels, each channel for itself."""

    def gradient(u: Tensor) -> Tensor:
        bent = _laplacian(u)
        return free * (bent + stiffness * _laplacian(bent))

    if not free.any():
        return estimate
    residual = -gradient(estimate)
    direction = residual
    square = _dot(residual, residual)
    for _ in range(steps):
        image = gradient(direction)
        length = square / _dot(direction, image).clamp(min=1e-30)
        estimate = estimate + length * direction
        residual = residual - length * image
        following = _dot(residual, residual)
        direction = residual + following / square.clamp(min=1e-30) * direction
        square = following
    return estimate


def _laplacian(u: Tensor) -> Tensor:
    """Sum of the differences from the (up to four) neighbours: positive semi-definite, no flow across the edge."""
    down, right = u[:, :, 1:] - u[:, :, :-1], u[:, :, :, 1:] - u[:, :, :, :-1]
    result = torch.zeros_like(u)
    result[:, :, 1:] += down
    result[:, :, :-1] -= down
    result[:, :, :, 1:] += right
    result[:, :, :, :-1] -= right
    return result


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(2, 3), keepdim=True)
