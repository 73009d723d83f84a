"""Structural similarity of images with holes.

Shape letters: B batch, C channels; h, w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The window and the constants of the source, for values between 0 and 1.
_SIGMA = 1.5
_RADIUS = 5
_C1, _C2 = 0.01**2, 0.03**2


def structural_similarity(image: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    """SSIM of every pixel (Wang, Bovik, Sheikh and Simoncelli 2004, section III-B), for a range of 1 (scaled units).

    Means, variances and covariance are those of the valid pixels under an 11 × 11 Gaussian window of 1.5 px, whose weights
    are normalised over those pixels: pixels that are not valid, and what lies beyond the edge, do not count.

    Args:
        image, other: (B, C, h, w); what is not valid is never read and may hold NaN.
        valid: (B, C, h, w) bool.

    Returns:
        (B, C, h, w), 0 where not valid.
    """
    steps = torch.arange(-_RADIUS, _RADIUS + 1, device=image.device, dtype=torch.float32)
    window = torch.exp(-steps.square() / (2 * _SIGMA**2))
    window = window / window.sum()

    def blur(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)[:, None]
        flat = F.conv2d(flat, window.view(1, 1, -1, 1), padding=(_RADIUS, 0))
        return F.conv2d(flat, window.view(1, 1, 1, -1), padding=(0, _RADIUS))[:, 0].view_as(x)

    weight = valid.float()
    total = blur(weight).clamp(min=1e-12)
    # Less a constant for each channel, so that variances do not drown in the rounding of large squares.
    centre = (image.float().masked_fill(~valid, 0.0).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1))[:, :, None, None]
    x, y = ((values.float() - centre).masked_fill(~valid, 0.0) for values in (image, other))
    mean_x, mean_y = blur(x) / total, blur(y) / total
    variance_x = (blur(x * x) / total - mean_x.square()).clamp(min=0)
    variance_y = (blur(y * y) / total - mean_y.square()).clamp(min=0)
    covariance = blur(x * y) / total - mean_x * mean_y
    light_x, light_y = mean_x + centre, mean_y + centre
    luminance = (2 * light_x * light_y + _C1) / (light_x.square() + light_y.square() + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).masked_fill(~valid, 0.0)
