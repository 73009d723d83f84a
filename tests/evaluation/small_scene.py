"""What the tests of pixels in scenes share: a model of two channels, how pixels are probed, and files of scenes with labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
import torch

from auxmae.evaluation.pixel_probes import PixelProbes
from auxmae.model.mae import AuxMAE

PROBES = PixelProbes(pool="mean", max_samples=400, labels_per_class=(0,), neighbours=5, bootstrap=50, seed=0, device="cpu")


def two_channels(window: int = 9, patch_size: int = 3) -> AuxMAE:
    """A small model, always of the same weights."""
    torch.manual_seed(0)
    return AuxMAE(["red", "green"], image_size=window, patch_size=patch_size, width=16, depth=1, heads=2, decoder_depth=1)


def write_scenes(folder: Path, names: tuple[str, ...], side: int = 48) -> tuple[str, ...]:
    """Scenes of 13 channels with rasters of two classes in stripes, and the arguments that name them."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4) % 2 + 1, side // 4)[:, None].repeat(side, axis=1).astype(np.uint8)
    for name in names:
        pixels = generator.integers(0, 200, (13, side, side)) + 1000 * labels.astype(np.int64)
        for path in (folder / "scenes" / name, folder / "labels" / name):
            path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / "scenes" / name, pixels.astype(np.uint16), metadata={"axes": "CYX"}, photometric="minisblack")
        tifffile.imwrite(folder / "labels" / name, labels)
    return ("--data", str(folder / "scenes"), "--labels", str(folder / "labels"))
