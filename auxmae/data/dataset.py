"""Images and crops of one part of a collection, scaled, as a torch data set.

Shape letters: C channels, h rows, w columns of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auxmae.data.collection import Collection
from auxmae.data.image import MultiChannelImage, Window, farthest
from auxmae.data.splits import Part
from auxmae.data.statistics import Scaling
from auxmae.errors import DataError

# Small data sets are decoded once and kept: float32 pixels and validity take 5 bytes a value.
_CACHE_BYTES = 256 * 2**20
# Draws of a crop that straddles training blocks before one inside a single block is taken.
_ATTEMPTS = 16
# An image larger than a sample is looked at in so many windows a side, at most: a large field in many would cost hours.
_WINDOWS = 4
# Scaled values beyond this are no measurements: their squares, summed over an image, overflow float32.
_LARGEST = 1e15


class Sample(NamedTuple):
    """One image or crop.

    Attributes:
        image: (C, h, w) float32, scaled; 0 where not valid.
        valid: (C, h, w) bool.
        label: class of the whole image, −1: none.
        label_map: (h, w) int64 class of every pixel (−1: none), or None where the collection has no label rasters.
    """

    image: Tensor
    valid: Tensor
    label: int
    label_map: Tensor | None


class ImageDataset(torch.utils.data.Dataset[Sample]):
    """One part of a collection, cut to squares.

    With `augment`, crops and flips are drawn from (seed, epoch, index) alone.  A crop of a scene lies in the part's own
    blocks.  Without, a sample is one of the windows that lie side by side in a block, or are spread over an image from edge to
    edge: as many a side as samples go into it, rounded, 4 at most; one alone is its middle.  Those of an image, and those that
    `cover` a block, may overlap; a pixel that several of them hold has its label in the first one alone, so that none counts
    twice.  What is smaller is padded (not valid).

    Args:
        collection: the images.
        part: which of them.
        image_size: side of a sample, px.
        scaling: pixel values → network inputs; None: pixels as they are.
        augment: random crops and flips.
        cover: without `augment`, windows reach over all of a block, and overlap where they have to.
        edges: without `augment`, windows reach from edge to edge of blocks and images alike, as random crops do.
        flips: whether augmentation flips.
        samples: with `augment`, how many samples an epoch has at least: images and windows are drawn again, cut otherwise.
        seed: of the augmentation.

    Attributes:
        images: how many images, or windows of scenes, the part has, whatever is drawn of them.
    """

    def __init__(
        self,
        collection: Collection,
        part: Part,
        *,
        image_size: int,
        scaling: Scaling | None = None,
        augment: bool = False,
        cover: bool = False,
        edges: bool = False,
        flips: bool = True,
        samples: int = 0,
        seed: int = 0,
    ) -> None:
        self.collection, self.part = collection, part
        self.image_size = image_size
        # By name: a stored scaling may be of more channels, or in another order.
        self.scaling = None if scaling is None else scaling.select(collection.channel_names)
        self.augment, self.flips, self.seed = augment, flips, seed
        self.epoch = 0
        if len(part.blocks):
            self._windows = _grid(part.blocks, image_size, cover=(cover or edges) and not augment)
            self.images = len(self._windows)
        else:
            empty = np.zeros((0, 8), dtype=np.int64)
            self._windows = empty if augment else _spread(collection, part.items, image_size, edges=edges)
            self.images = len(part.items)
        self._samples = (max(self.images, samples) if self.images else 0) if augment else len(self._windows)
        # Blocks of each scene, to find those that a crop touches.
        self._blocks: dict[int, NDArray[np.int64]] = {}
        for scene in np.unique(part.blocks[:, 0]) if len(part.blocks) else ():
            self._blocks[int(scene)] = part.blocks[part.blocks[:, 0] == scene][:, 1:]
        used = np.unique(np.concatenate([part.items, part.blocks[:, 0]])).astype(np.int64)
        sides = [collection.size_of(int(item)) for item in used]
        total = sum(height * width for height, width in sides) * len(collection.channel_names) * 5
        # What is in memory already is not kept twice.
        self._on_disk = not collection.in_memory
        self._keeps_all = self._on_disk and total <= _CACHE_BYTES
        # Whole images: all that were read, or the one of the last window, of which the next one will most likely be.
        self._cache: dict[int, MultiChannelImage] = {}

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the C channels."""
        return self.collection.channel_names

    def of_images(self, chosen: NDArray[np.int64]) -> ImageDataset:
        """The windows of some of the part's images, by their places among its items, as they are measured."""
        groups = None if self.part.groups is None else self.part.groups[chosen]
        part = replace(self.part, items=self.part.items[chosen], groups=groups)
        return ImageDataset(self.collection, part, image_size=self.image_size, scaling=self.scaling, seed=self.seed)

    def measured(self) -> ImageDataset:
        """The same part as it is measured: nothing is drawn, images are seen in their windows, and windows cover scenes' blocks.

        Images that either of the two has decoded and keeps are those of both.
        """
        other = ImageDataset(
            self.collection, self.part, image_size=self.image_size, scaling=self.scaling, cover=True, seed=self.seed
        )
        other._cache = self._cache
        return other

    @property
    def in_parts(self) -> bool:
        """Whether several samples are windows of one image, which belong together."""
        return not len(self.part.blocks) and len(self._windows) > self.images

    def items(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """(B,) which image of the collection each sample comes from."""
        return np.array([self._place(index)[0] for index in indices], dtype=np.int64)

    def groups(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """(B,) which of the part's groups each sample belongs to; where it has none, which image or block."""
        entry: NDArray[np.int64] = self._windows[np.asarray(indices, dtype=np.int64), 5]
        return entry if self.part.groups is None else self.part.groups[entry]

    def set_epoch(self, epoch: int) -> None:
        """Chooses which crops and flips are drawn."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` of the epoch.

        Raises:
            DataError: the file cannot be read.
        """
        image, valid, label, label_map = self.fetch([index])
        return Sample(image[0], valid[0], int(label[0]), None if label_map is None else label_map[0])

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """A batch, scaled in one go: image and valid (B, C, h, w), label (B,), label_map (B, h, w) or None.

        Raises:
            DataError: a file cannot be read, or a valid pixel is, scaled, beyond what can be computed with.
        """
        size, channels = self.image_size, len(self.channel_names)
        image = np.zeros((len(indices), channels, size, size), dtype=np.float32)
        valid = np.zeros(image.shape, dtype=bool)
        label = np.full(len(indices), -1, dtype=np.int64)
        maps = np.full((len(indices), size, size), -1, dtype=np.int64) if self.collection.has_label_maps else None
        for row, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
            item, window, flips = self._place(index)
            pixels = self._read(item, window)
            h, w = pixels.pixels.shape[1:]
            image[row, :, :h, :w] = _flip(pixels.pixels, flips)
            valid[row, :, :h, :w] = _flip(pixels.valid, flips)
            if self.collection.labels is not None:
                label[row] = self.collection.labels[item]
            if maps is not None:
                found = self.collection.read_labels(item, window)
                if found is not None:
                    rows, columns = self.held(index)
                    maps[row, rows:h, columns:w] = _flip(found, flips)[rows:, columns:]
        if maps is not None:
            # Where no channel has a pixel, there is nothing that a label could be of.
            maps[~valid.any(axis=1)] = -1
        x, valid_tensor = torch.from_numpy(image), torch.from_numpy(valid)
        if self.scaling is not None:
            x = self.scaling.apply(x)
        if not valid.all():
            x = x.masked_fill(~valid_tensor, 0.0)
        if self.scaling is not None and x.numel():
            self._check_range(x, indices)
        return x, valid_tensor, torch.from_numpy(label), None if maps is None else torch.from_numpy(maps)

    def _check_range(self, x: Tensor, indices: Sequence[int]) -> None:
        """Raises DataError where scaled pixels x (B, C, h, w) hold NaN or a value beyond `_LARGEST`."""
        low, high = torch.aminmax(x)
        if low >= -_LARGEST and high <= _LARGEST:
            return
        row, channel, *_ = (~(x.abs() <= _LARGEST)).nonzero()[0].tolist()
        item, window = self.place(indices[row])
        value = farthest(self._read(item, window).pixels[channel])
        raise DataError(
            f"{self.collection.name_of(item)}: channel {self.channel_names[channel]} holds {value:.3g}, too far beyond "
            "the values that the scaling was made for to compute with",
            hint="leave the file out with data.exclude, or, if the value means no data, set data.nodata to what the file stores "
            f"for it; where it has no scale and offset, data.nodata = {value!r}",
        )

    def place(self, index: int) -> tuple[int, Window]:
        """Which image of the collection sample `index` comes from, and where in it."""
        item, window, _ = self._place(index)
        return item, window

    def held(self, index: int) -> tuple[int, int]:
        """How many of the first rows and columns of sample `index` windows before it hold already."""
        rows, columns = (0, 0) if self.augment else self._windows[index, 6:].tolist()
        return rows, columns

    def _place(self, index: int) -> tuple[int, Window, tuple[bool, bool]]:
        random = np.random.default_rng((self.seed, self.epoch, index)) if self.augment else None
        if random is None:
            item, top, left, height, width = (int(value) for value in self._windows[index, :5])
        elif len(self.part.blocks):
            item = int(self._windows[index % self.images, 0])
            top, left, height, width = self._crop(item, random)
        else:
            item = int(self.part.items[index % self.images])
            full_height, full_width = self.collection.size_of(item)
            height, width = min(full_height, self.image_size), min(full_width, self.image_size)
            top = int(random.integers(full_height - height + 1))
            left = int(random.integers(full_width - width + 1))
        flips = (False, False)
        if random is not None and self.flips:
            vertical, horizontal = random.random(2) < 0.5
            flips = (bool(vertical), bool(horizontal))
        return item, Window(top, left, height, width), flips

    def _crop(self, scene: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop whose pixels all lie in this part's blocks of the scene."""
        blocks, size = self._blocks[scene], self.image_size
        areas = blocks[:, 2] * blocks[:, 3]
        full_height, full_width = self.collection.size_of(scene)
        top, left, height, width = (int(v) for v in blocks[random.choice(len(blocks), p=areas / areas.sum())])
        h, w = min(size, full_height), min(size, full_width)
        for _ in range(_ATTEMPTS):
            y, x = top + int(random.integers(height)), left + int(random.integers(width))
            if y + h > full_height or x + w > full_width:
                continue
            # Blocks do not overlap: the crop is inside the part when its overlaps with the blocks add up to all of it.
            rows = np.minimum(y + h, blocks[:, 0] + blocks[:, 2]) - np.maximum(y, blocks[:, 0])
            columns = np.minimum(x + w, blocks[:, 1] + blocks[:, 3]) - np.maximum(x, blocks[:, 1])
            if int((rows.clip(min=0) * columns.clip(min=0)).sum()) == h * w:
                return y, x, h, w
        h, w = min(size, height), min(size, width)
        return top + int(random.integers(height - h + 1)), left + int(random.integers(width - w + 1)), h, w

    def _read(self, item: int, window: Window) -> MultiChannelImage:
        if not (self._keeps_all or (self.in_parts and self._is_small(item))):
            return self.collection.read(item, window)
        image = self._cache.get(item)
        if image is None:
            if not self._keeps_all:
                self._cache.clear()
            image = self._cache[item] = self.collection.read(item)
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)
        return MultiChannelImage(image.pixels[:, rows, columns], image.valid[:, rows, columns])

    def _is_small(self, item: int) -> bool:
        """Whether an image on disk is better read once than window by window."""
        height, width = self.collection.size_of(item)
        return self._on_disk and height * width * len(self.channel_names) * 5 <= _CACHE_BYTES

    def __getstate__(self) -> dict[str, object]:
        # A loader process fills its own cache: sending ours would cost more than reading the files.
        return {**self.__dict__, "_cache": {}}


def _grid(blocks: NDArray[np.int64], size: int, *, cover: bool) -> NDArray[np.int64]:
    """(n, 8) scene, top, left, height, width, number of the block, and how many of the first rows and columns earlier windows
    hold, of windows in blocks, at least one a block: side by side in its middle, or (`cover`) spread evenly from edge to edge.
    """
    windows: list[tuple[int, ...]] = []
    for block, (scene, top, left, height, width) in enumerate(blocks.tolist()):
        h, w = min(size, height), min(size, width)
        rows, columns = _starts(height, h, cover=cover), _starts(width, w, cover=cover)
        windows.extend(
            (scene, top + y, left + x, h, w, block, held_rows, held_columns)
            for y, held_rows in rows
            for x, held_columns in columns
        )
    return np.array(windows, dtype=np.int64).reshape(-1, 8)


def _spread(collection: Collection, items: NDArray[np.int64], size: int, *, edges: bool) -> NDArray[np.int64]:
    """(n, 8) as of `_grid`, but image and the image's place in `items` for scene and block, of windows spread evenly over images,
    those of one image one after the other; with `edges` as many as cover it, 4 a side at most.
    """
    windows: list[tuple[int, ...]] = []
    for entry, item in enumerate(items.tolist()):
        full = collection.size_of(item)
        height, width = (min(size, side) for side in full)
        # As many as go into it, rounded: fewer would leave most of an image unseen that is nearly two windows wide.
        rows, columns = (
            _evenly(whole, side, min(-(-whole // side) if edges else (2 * whole + side) // (2 * side), _WINDOWS))
            for whole, side in zip(full, (height, width), strict=True)
        )
        windows.extend(
            (item, top, left, height, width, entry, held_rows, held_columns)
            for top, held_rows in rows
            for left, held_columns in columns
        )
    return np.array(windows, dtype=np.int64).reshape(-1, 8)


def _starts(length: int, side: int, *, cover: bool) -> list[tuple[int, int]]:
    """First pixel of each window along a block's side, and how many of its pixels the window before it holds."""
    if cover:
        return _evenly(length, side, -(-length // side))
    return [((length % side) // 2 + side * number, 0) for number in range(length // side)]


def _evenly(length: int, side: int, count: int) -> list[tuple[int, int]]:
    """The same of `count` windows spread from edge to edge; one alone is in the middle."""
    starts = np.linspace(0, length - side, count).round().astype(int).tolist() if count > 1 else [(length - side) // 2]
    return [(start, max(before + side - start, 0)) for before, start in zip([-side, *starts], starts, strict=False)]


def _flip(array: NDArray[Any], flips: tuple[bool, bool]) -> NDArray[Any]:
    vertical, horizontal = flips
    if vertical:
        array = array[..., ::-1, :]
    return array[..., ::-1] if horizontal else array
