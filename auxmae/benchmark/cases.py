"""The sizes that the model and scaling suites measure, the same for every provider."""

from __future__ import annotations

from dataclasses import dataclass

# Part of the patches that every provider hides.
MASK_RATIO = 0.75


@dataclass(frozen=True)
class ModelCase:
    """A size of the model suite: the same numbers for every provider; dropout is 0 for all."""

    name: str
    batch: int
    channels: int = 13
    image_size: int = 64
    patch_size: int = 16
    width: int = 256
    hidden: int = 512
    heads: int = 8
    depth: int = 6
    decoder_depth: int = 6
