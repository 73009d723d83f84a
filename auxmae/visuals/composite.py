"""False-colour pictures of images with any number of channels.

Shapes: C channels, h × w px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RED_GREEN_BLUE = (("B04", "B03", "B02"), ("red", "green", "blue"))
NANOMETRES = (665.0, 560.0, 490.0)


@dataclass(frozen=True)
class Composite:
    """How channels become colours: (3, C) weights, and a description for the caption."""

    weights: NDArray[np.float64]
    description: str

    @property
    def used(self) -> NDArray[np.bool_]:
        """(C,) channels that have a part in the colours."""
        used: NDArray[np.bool_] = np.abs(self.weights).sum(0) > 0
        return used

    def apply(self, image_CHW: NDArray[np.floating]) -> NDArray[np.float64]:
        """(C, h, w) → (h, w, 3), not yet stretched."""
        picture: NDArray[np.float64] = np.einsum("rc,chw->hwr", self.weights, image_CHW.astype(np.float64))
        return picture

    def unseen(self, shown_CHW: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(C, h, w) → (h, w, 3): the colours that no shown channel has a part in."""
        parts = (np.abs(self.weights) > 0).astype(np.float64)
        unseen: NDArray[np.bool_] = np.einsum("rc,chw->hwr", parts, shown_CHW.astype(np.float64)) == 0
        return unseen


def choose_composite(
    names: Sequence[str],
    wavelengths: Sequence[float] | None,
    image_BCHW: NDArray[np.floating],
    valid: NDArray[np.bool_],
) -> Composite:
    """Named red, green and blue; else the channels nearest to 665, 560 and 490 nm; else three principal components.

    With one or two channels the picture is grey, of the first.
    """
    count = len(names)
    lower = [name.lower() for name in names]

    def pick(index: Sequence[int], description: str) -> Composite:
        return Composite(np.eye(count)[list(index)], description)

    for wanted in RED_GREEN_BLUE:
        if all(name.lower() in lower for name in wanted):
            return pick([lower.index(name.lower()) for name in wanted], f"{', '.join(wanted)} as red, green, blue")
    if count < 3:
        return pick([0, 0, 0], f"{names[0]} in grey")
    index = [] if wavelengths is None else [int(np.argmin(np.abs(np.asarray(wavelengths) - v))) for v in NANOMETRES]
    # One channel nearest to two of the colours means that the data does not cover visible light.
    if len(set(index)) == 3:
        return pick(index, f"{', '.join(names[i] for i in index)} (nearest to 665, 560, 490 nm)")
    pixels = image_BCHW.transpose(0, 2, 3, 1)[valid.all(1)].astype(np.float64)
    if len(pixels) < 3:
        return pick([0, 1, 2], f"{', '.join(names[:3])} as red, green, blue")
    covariance = np.cov(pixels[:: max(len(pixels) // 20000, 1)], rowvar=False)
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :3].T
    # The sign of a component is arbitrary: bright stays bright.
    vectors = vectors * np.where(vectors.sum(1, keepdims=True) < 0, -1, 1)
    return Composite(vectors, "three principal components of all channels")


def stretch_limits(picture: NDArray[np.float64], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2nd and 98th percentile of each colour; taken on the original and used for every panel."""
    pixels = picture[valid] if valid.any() else picture.reshape(-1, picture.shape[-1])
    low, high = np.percentile(pixels, [2, 98], axis=0)
    return low, np.where(high - low > 1e-9, high, low + 1)


def stretch(picture: NDArray[np.float64], limits: tuple[NDArray[np.float64], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Linear to [0, 1], clipped; for display only."""
    return np.clip((picture - limits[0]) / (limits[1] - limits[0]), 0, 1)
