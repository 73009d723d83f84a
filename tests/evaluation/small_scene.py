"""What the tests of pixels in scenes share: a model of two channels, and how pixels are probed."""

from __future__ import annotations

import torch

from auxmae.evaluation.pixel_probes import PixelProbes
from auxmae.model.mae import AuxMAE

PROBES = PixelProbes(pool="mean", max_samples=400, labels_per_class=(0,), neighbours=5, bootstrap=50, seed=0, device="cpu")


def two_channels(window: int = 9, patch_size: int = 3) -> AuxMAE:
    """A small model, always of the same weights."""
    torch.manual_seed(0)
    return AuxMAE(["red", "green"], image_size=window, patch_size=patch_size, width=16, depth=1, heads=2, decoder_depth=1)
