"""A small model, and masks for it."""

from __future__ import annotations

import torch

from auxmae.model.mae import AuxMAE

TINY = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2, "decoder_depth": 1, "image_size": 16}


def tiny(channels=5, **options):
    torch.manual_seed(0)
    return AuxMAE(channels, **{**TINY, **options}).eval()


def ragged_keep(batch, channels, positions, visible, seed=0):
    noise = torch.rand(batch, channels, positions, generator=torch.Generator().manual_seed(seed))
    return noise.argsort(2)[..., :visible].sort(2).values
