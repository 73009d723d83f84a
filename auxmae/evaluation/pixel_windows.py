"""Windows around the pixels of scenes: which pixels are looked at, and what the encoder and the floors see of each.

Shape letters: B batch, C channels, D features, n positions; H, W of a scene, px.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from auxmae.data.loading import Batch
from auxmae.evaluation.feature_floors import (
    CONVOLUTIONS,
    PCA,
    RAW_PATCH,
    RAW_SPECTRUM,
    STATISTICS,
    convolution_extractor,
    pca_extractor,
    raw_extractor,
    sample_patches,
    spectrum_extractor,
)
from auxmae.evaluation.features import Extractor, statistics_extractor

if TYPE_CHECKING:
    from auxmae.model.mae import AuxMAE

# Patches that the floors are fitted on come from this many windows.
FIT_WINDOWS = 600
_MOST_POSITIONS = 20_000
# Where labels cover less than this part of a scene, and its grid meets fewer of them than the probes could use, all are used.
_SPARSE = 0.1
_FEW_PER_CLASS = 20
# So many windows go through the networks at a time, or fewer, since memory grows with the tokens they have together.
_BATCH = 128
_TOKENS = 100_000


class LabelledScene(NamedTuple):
    """A scene as probes read it: image and valid (C, H, W), scaled; labels (H, W), −1: none."""

    image: Tensor
    valid: Tensor
    labels: NDArray[np.int64]


class PixelWindows:
    """Windows of a scene, each with its pixel in the centre patch; what lies beyond the scene is not valid.

    Args:
        image, valid: (C, H, W), scaled.
        model: says the size of a window: its crops', less where needed for a patch to be in the centre.
        channels: of the model, those that the image has; None: all.

    Attributes:
        window: its side, px.
    """

    def __init__(self, image: Tensor, valid: Tensor, model: AuxMAE, channels: Tensor | None = None) -> None:
        self.window, self.patch_size, self.channels = window_side(model), model.patch_size, channels
        before = self.window // self.patch_size // 2 * self.patch_size + self.patch_size // 2
        margin = (before, self.window - before, before, self.window - before)
        self.image = F.pad(image.masked_fill(~valid, 0.0), margin)
        self.valid = F.pad(valid, margin)
        tokens = len(model.groups) * (self.window // self.patch_size) ** 2
        self._together = max(1, min(_BATCH, _TOKENS // tokens))
        self._across = image.shape[2] // self.window + 1

    def batch(self, positions: NDArray[np.int64]) -> Batch:
        """A batch of the windows around (n, 2) positions."""
        side = self.window
        cuts = [(slice(None), slice(row, row + side), slice(column, column + side)) for row, column in positions.tolist()]
        image, valid = (torch.stack([whole[cut] for cut in cuts]) for whole in (self.image, self.valid))
        return Batch(image, valid, torch.zeros(len(positions), dtype=torch.int64), None, self.channels)

    def tiles(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the number of the square of a window's size that each of (n, 2) positions lies in: what is alike lies in one."""
        squares = positions // self.window
        return squares[:, 0] * self._across + squares[:, 1]

    @torch.inference_mode()
    def extract(self, positions: NDArray[np.int64], extractors: Mapping[str, Extractor]) -> dict[str, NDArray[np.float32]]:
        """name → (n, D) features of the windows around (n, 2) positions."""
        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in extractors}
        for start in range(0, len(positions), self._together):
            batch = self.batch(positions[start : start + self._together])
            for name, extract in extractors.items():
                parts[name].append(extract(batch).to("cpu", torch.float32).numpy())
        return {name: np.concatenate(found) if found else np.zeros((0, 1), np.float32) for name, found in parts.items()}


def window_side(model: AuxMAE) -> int:
    """Side of the windows, px: an odd number of patches, so that one is in the middle."""
    patches = max(model.image_size // model.patch_size, 1)
    return (patches - (patches + 1) % 2) * model.patch_size


def centre_of(batch: Batch, patch_size: int, *, least: int = 1) -> Batch:
    """The centre patches alone; where these are smaller, the `least` px around the pixel, as far as the window goes."""
    window = batch.image.shape[3]
    first, side = window // patch_size // 2 * patch_size, patch_size
    if side < least <= window:
        first, side = first + side // 2 - least // 2, least
    inside = slice(first, first + side)
    return batch._replace(image=batch.image[..., inside, inside], valid=batch.valid[..., inside, inside])


@dataclass(frozen=True)
class Positions:
    """The pixels of a scene that are looked at.

    Attributes:
        stride: px between those of the grid.
        grid: (n, 2) row and column of one pixel in each of the grid's squares that has a valid one: its middle, or the valid
            pixel nearest to that.
        on_grid: indices of those of them that have a label.
        places: (m, 2) the labelled pixels that are drawn from: the grid's, or all where `whole`.
        whole: all labels are drawn from, since the grid misses some that are wanted.
        labelled: how many valid pixels of the scene have a label.
    """

    stride: int
    grid: NDArray[np.int64]
    on_grid: NDArray[np.int64]
    places: NDArray[np.int64]
    whole: bool
    labelled: int


def find_positions(
    valid: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    stride: int,
    labels_per_class: Sequence[int],
    every_label: bool = False,
) -> Positions:
    """The grid of pixels, and those that have a label.

    Where less than a tenth of the scene is labelled, and the grid meets fewer labelled pixels than the largest of
    `labels_per_class` (20 at least) for each class and part, all labelled pixels are drawn from.

    Args:
        valid: (H, W), whether a pixel has any value.
        labels: (H, W), −1: none.
        stride: px between positions; 0: the smallest that leaves at most 20 000.
        labels_per_class: budgets of the probes.
        every_label: draw from all labelled pixels, however many of them the grid meets.
    """
    height, width = labels.shape
    if not stride:
        stride = max(1, math.isqrt(height * width // _MOST_POSITIONS))
        # Rounding up along each side adds some, to a narrow strip many.
        while -(-height // stride) * -(-width // stride) > _MOST_POSITIONS:
            stride += 1
    grid = _grid(valid, stride)
    labelled = (labels >= 0) & valid
    on_grid = np.flatnonzero(labelled[grid[:, 0], grid[:, 1]])
    missed = len(on_grid) < labelled.sum()
    whole = missed and (every_label or _is_sparse(len(on_grid), labels[labelled], int(valid.sum()), labels_per_class))
    places = np.argwhere(labelled) if whole else grid[on_grid]
    return Positions(stride, grid, on_grid, places, whole, int(labelled.sum()))


def _grid(valid: NDArray[np.bool_], stride: int) -> NDArray[np.int64]:
    """`Positions.grid` of a scene, square by square in reading order."""
    rows, columns = (_centres(side, stride) for side in valid.shape)
    middles = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    missed = ~valid[middles[:, 0], middles[:, 1]]
    if not missed.any() or stride == 1:
        return middles[~missed]
    others = np.argwhere(valid)
    square = others[:, 0] // stride * len(columns) + others[:, 1] // stride
    others, square = others[missed[square]], square[missed[square]]
    away = np.square(others - middles[square]).sum(axis=1)
    order = np.lexsort((away, square))
    first, nearest = np.unique(square[order], return_index=True)
    middles[first] = others[order[nearest]]
    missed[first] = False
    return middles[~missed]


def _centres(side: int, stride: int) -> NDArray[np.int64]:
    """One position in each `stride` px of a side, in the middle; in what is left over at its end, which may be less, too."""
    starts = np.arange(0, side, stride)
    return np.minimum(starts + stride // 2, side - 1)


def _is_sparse(met: int, known: NDArray[np.int64], valid: int, labels_per_class: Sequence[int]) -> bool:
    """Whether a grid that meets so many of the `known` labels misses what the probes could use (see `find_positions`)."""
    wanted = 2 * len(np.unique(known)) * max((_FEW_PER_CLASS, *labels_per_class))
    return len(known) < _SPARSE * valid and met < min(wanted, len(known))


def centre_extractor(model: AuxMAE, pool: str, device: torch.device | str) -> Extractor:
    """The encoder's features of a window's centre patch, pooled over channels (see `AuxMAE.dense_features`)."""

    def extract(batch: Batch) -> Tensor:
        image, valid = batch.image.to(device), batch.valid.to(device)
        was_training = model.training
        model.eval()
        try:
            maps = model.dense_features(image, valid=valid, channels=batch.channels, pool=pool)
            return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
        finally:
            model.train(was_training)

    return extract


def window_floors(batches: Iterable[Batch], model: AuxMAE, seed: int) -> dict[str, Extractor]:
    """The floors that are no network; PCA and filters are fitted on the given, unlabelled windows."""
    p = model.patch_size
    shown = list(batches)
    patches = sample_patches(shown, {p, 3}, seed=seed)
    components = pca_extractor(patches[p], patch_size=p, components=model.num_features, dense=True)
    spectrum, patch = spectrum_extractor(p), raw_extractor()
    return {
        STATISTICS: statistics_extractor(),
        RAW_SPECTRUM: lambda batch: spectrum(centre_of(batch, p))[:, 0],
        RAW_PATCH: lambda batch: patch(centre_of(batch, p, least=3)),
        PCA: lambda batch: components(centre_of(batch, p))[:, 0],
        CONVOLUTIONS: convolution_extractor(patches[3], shown[0].image.shape[1], patch_size=None, seed=seed),
    }
