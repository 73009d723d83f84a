"""A part of a collection as a torch Dataset of scaled crops.

Shapes: C channels, h × w = image_size × image_size px.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auxmae.data.collection import Collection
from auxmae.data.image import Window
from auxmae.data.splits import Part
from auxmae.data.statistics import Scaling


class Sample(NamedTuple):
    """image (C, h, w) float32 scaled, 0 where invalid; valid (C, h, w) bool; label, −1 without; label_map (h, w) or None."""

    image: Tensor
    valid: Tensor
    label: int
    label_map: Tensor | None


class ImageDataset(torch.utils.data.Dataset[Sample]):
    """Crops of a part of a collection.

    With `augment`, a crop's place and flips are drawn from (seed, epoch, index) alone, so that neither resuming nor loader
    processes change them; crops of scenes never touch a block of another part.  Without, they are a fixed grid that covers
    the part (images: their centre).

    Args:
        collection, part: what to read.
        image_size: side of a crop, px; smaller images are padded, and the padding is invalid.
        scaling: applied to the pixels; None leaves them as they are.
        augment, flips, seed: see above.
    """

    def __init__(
        self,
        collection: Collection,
        part: Part,
        *,
        image_size: int,
        scaling: Scaling | None,
        augment: bool,
        flips: bool = True,
        seed: int = 0,
    ) -> None:
        self.collection, self.part, self.image_size, self.augment, self.flips, self.seed = (
            collection, part, image_size, augment, flips, seed,
        )  # fmt: skip
        self.scaling = None if scaling is None else scaling.select(collection.channel_names)
        self.epoch = 0
        self.has_label_maps = collection.has_label_maps
        scenes = collection.layout == "scenes"
        self.windows: list[tuple[int, Window, Window]] = []  # item, the crop of the grid, the area it lies in
        for item, area in part.areas:
            self.windows.extend((item, window, area) for window in (_grid(area, image_size) if scenes else [_centre(area, image_size)]))

    @property
    def channel_names(self) -> tuple[str, ...]:
        return self.collection.channel_names

    def set_epoch(self, epoch: int) -> None:
        """Chooses which random crops and flips come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        item, window, area = self.windows[index]
        turn = 0
        if self.augment:
            generator = np.random.default_rng([self.seed, self.epoch, index])
            window = self._random_window(item, area, generator)
            turn = int(generator.integers(4)) if self.flips else 0
        image = self.collection.read(item, window)
        pixels, valid = _pad(image.pixels, self.image_size), _pad(image.valid, self.image_size)
        classes = self._label_map(item, window)
        if turn & 1:
            pixels, valid, classes = pixels[..., ::-1], valid[..., ::-1], classes[..., ::-1] if classes is not None else None
        if turn & 2:
            pixels, valid = pixels[..., ::-1, :], valid[..., ::-1, :]
            classes = classes[::-1] if classes is not None else None
        valid_CHW = torch.from_numpy(np.ascontiguousarray(valid))
        image_CHW = torch.from_numpy(np.ascontiguousarray(pixels))
        if self.scaling is not None:
            image_CHW = torch.where(valid_CHW, self.scaling.apply(image_CHW), 0.0)
        label_map = None if classes is None else torch.from_numpy(np.ascontiguousarray(classes))
        return Sample(image_CHW, valid_CHW, -1 if self.collection.labels is None else int(self.collection.labels[item]), label_map)

    def _label_map(self, item: int, window: Window) -> NDArray[np.int64] | None:
        if not self.has_label_maps:
            return None
        part = self.collection.read_labels(item, window)
        if part is None:
            return np.full((self.image_size, self.image_size), -1, np.int64)
        return _pad(part[None], self.image_size, fill=-1)[0]

    def _random_window(self, item: int, area: Window, generator: np.random.Generator) -> Window:
        """A crop that begins inside the area; it may reach over the area's edge, but never into another part."""
        height, width = self.collection.size_of(item)
        side = self.image_size
        held = self.part.held_out.get(item, ())
        if self.collection.layout == "scenes":
            top = int(generator.integers(area.top, area.top + area.height))
            left = int(generator.integers(area.left, area.left + area.width))
            window = _fit(top, left, side, Window(0, 0, height, width))
            if not any(_overlap(window, other) for other in held):
                return window
            top = int(generator.integers(area.top, max(area.top + area.height - side, area.top) + 1))
            left = int(generator.integers(area.left, max(area.left + area.width - side, area.left) + 1))
            return _fit(top, left, side, area)
        top = int(generator.integers(0, max(height - side, 0) + 1))
        left = int(generator.integers(0, max(width - side, 0) + 1))
        return _fit(top, left, side, Window(0, 0, height, width))


def _fit(top: int, left: int, side: int, area: Window) -> Window:
    """A square of `side` at (top, left), moved and cut so that it lies in the area."""
    top = max(min(top, area.top + area.height - side), area.top)
    left = max(min(left, area.left + area.width - side), area.left)
    return Window(top, left, min(side, area.top + area.height - top), min(side, area.left + area.width - left))


def _overlap(a: Window, b: Window) -> bool:
    return (
        a.top < b.top + b.height
        and b.top < a.top + a.height
        and a.left < b.left + b.width
        and b.left < a.left + a.width
    )


def _centre(area: Window, side: int) -> Window:
    return _fit(area.top + (area.height - side) // 2, area.left + (area.width - side) // 2, side, area)


def _grid(area: Window, side: int) -> list[Window]:
    """Squares side by side that lie in the area; what is left over at its edge is not used twice."""
    rows = range(area.top, max(area.top + area.height - side, area.top) + 1, side)
    columns = range(area.left, max(area.left + area.width - side, area.left) + 1, side)
    return [_fit(top, left, side, area) for top in rows for left in columns]


def _pad(array: NDArray, side: int, fill: int = 0) -> NDArray:
    bottom, right = side - array.shape[1], side - array.shape[2]
    if bottom <= 0 and right <= 0:
        return array
    return np.pad(array, ((0, 0), (0, bottom), (0, right)), constant_values=fill)
