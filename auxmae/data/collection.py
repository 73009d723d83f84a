"""What an opened source is: its files, the images in them, the channels' names, and the labels.

Shape letters: N images of an array, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, Window, tiles
from auxmae.data.label_rasters import TILE, LabelRaster

Layout = Literal["images", "array", "scenes"]


@dataclass
class Collection:
    """An opened source.

    Attributes:
        source: as it was given.
        layout: "images", "array" or "scenes".
        channel_names: C names, unique, in the order in which `read` gives the channels.
        wavelengths: C centre wavelengths, nm, or None.
        class_names: names of the classes 0, 1, …; empty where there are no labels.
        files: the opened files.
        notices: what was inferred or left out, one sentence each.
        items: (items, 2) int64: file and index in it of every image that is used.
        channel_order: for each file, the file's channel of every channel of the collection; None: as they are.
        labels: (items,) int64 class of every image (−1: none), or None.
        label_rasters: for each file its label raster or None.
        relative_paths: for each file its path below the source.
        warnings: what looks wrong with the files, one sentence each.
    """

    source: str
    layout: Layout
    channel_names: tuple[str, ...]
    wavelengths: tuple[float, ...] | None
    class_names: tuple[str, ...]
    files: tuple[ImageFile, ...]
    notices: list[str]
    items: NDArray[np.int64]
    channel_order: tuple[tuple[int, ...] | None, ...]
    labels: NDArray[np.int64] | None = None
    label_rasters: tuple[LabelRaster | None, ...] = ()
    relative_paths: tuple[str, ...] = field(default=())
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of images or scenes."""
        return len(self.items)

    @property
    def dtype(self) -> np.dtype:
        """Of the stored pixels (of the first file)."""
        return self.files[0].dtype

    @property
    def in_memory(self) -> bool:
        """Whether all pixels are held in memory already."""
        return all(isinstance(file.read, partial) and file.read.func is _read_memory for file in self.files)

    @property
    def has_label_maps(self) -> bool:
        """Whether any scene has a label for each pixel."""
        return any(raster is not None for raster in self.label_rasters)

    def has_label_map(self, item: int) -> bool:
        """Whether an image has a label for each pixel."""
        return self.label_map_of(item) is not None

    def label_map_of(self, item: int) -> tuple[int, int] | None:
        """What tells an image's label map from others': images of one share its labels; None where the image has none."""
        number, index = (int(value) for value in self.items[item])
        raster = self.label_rasters[number] if self.label_rasters else None
        return None if raster is None else (id(raster.file), index if raster.file.count > 1 else 0)

    def file_of(self, item: int) -> ImageFile:
        """The file that holds an image."""
        return self.files[int(self.items[item, 0])]

    def size_of(self, item: int) -> tuple[int, int]:
        """(H, W) of an image, px."""
        file = self.file_of(item)
        return file.height, file.width

    def names_of(self, items: NDArray[np.int64]) -> str:
        """The files of two images, for people."""
        return " and ".join(self.relative_paths[number] for number in self.items[items, 0].tolist())

    def name_of(self, item: int) -> str:
        """The file of an image, and which one of it where it holds several, for people."""
        number, index = (int(value) for value in self.items[item])
        return self.relative_paths[number] + (f", image {index}" if self.files[number].count > 1 else "")

    def read(self, item: int, window: Window | None = None) -> MultiChannelImage:
        """The pixels of an image or of a window of it, its channels in the order of `channel_names`."""
        number, index = (int(value) for value in self.items[item])
        image = self.files[number].read(index, window)
        order = self.channel_order[number]
        if order is not None:
            chosen = list(order)
            image = MultiChannelImage(image.pixels[chosen], image.valid[chosen])
        return image

    def read_labels(self, item: int, window: Window | None = None) -> NDArray[np.int64] | None:
        """(h, w) class of every pixel, −1 where there is none; None where the image has no label raster."""
        number, index = (int(value) for value in self.items[item])
        raster = self.label_rasters[number] if self.label_rasters else None
        return None if raster is None else raster.read(index, window)

    def label_counts(self) -> tuple[NDArray[np.int64], int]:
        """(classes,) images, or pixels of label rasters, of each class; and how many of all have no label."""
        counts = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        if not self.has_label_maps:
            labels = np.full(len(self), -1) if self.labels is None else self.labels
            counts += np.bincount(labels + 1, minlength=len(counts))
            return counts[1:], int(counts[0])
        for item in range(len(self)):
            for window in tiles(*self.size_of(item), TILE):
                labels_HW = self.read_labels(item, window)
                if labels_HW is None:
                    counts[0] += window.height * window.width
                else:
                    counts += np.bincount(labels_HW.reshape(-1) + 1, minlength=len(counts))
        return counts[1:], int(counts[0])

    def sides(self) -> NDArray[np.int64]:
        """(files, 2) H and W of the files that are used, px."""
        used = np.unique(self.items[:, 0])
        return np.array([(self.files[number].height, self.files[number].width) for number in used], dtype=np.int64)

    def smallest_side(self) -> int:
        """The shortest side of all images, px."""
        return int(self.sides().min())

    def describe(self) -> str:
        """One line for people: how many of what, which channels, how large, which type."""
        count = len(self)
        noun = {"images": "image", "array": "image", "scenes": "scene"}[self.layout]
        names = self.channel_names
        listed = ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
        sides = np.unique(self.sides(), axis=0)
        areas = sides[np.argsort(sides.prod(axis=1), kind="stable")]
        least, most = areas[0], areas[-1]
        size = f"{least[0]}×{least[1]}" + (f" to {most[0]}×{most[1]}" if len(areas) > 1 else "")
        dtypes = "/".join(sorted({str(file.dtype) for file in self.files}))
        text = f"{count} {noun}{'' if count == 1 else 's'}"
        text += f", {len(names)} channel{'' if len(names) == 1 else 's'} ({listed}), {size} px, {dtypes}"
        return text + (f", {len(self.class_names)} class{'es' * (len(self.class_names) != 1)}" if self.class_names else "")


def memory_file(array_NCHW: NDArray[Any], path: Path, *, names: tuple[str, ...] | None = None) -> ImageFile:
    """An `ImageFile` of an array in memory, (N, C, H, W) of any numeric type; NaN and infinity are not valid."""
    count, channels, height, width = array_NCHW.shape
    read = partial(_read_memory, array_NCHW)
    return ImageFile(path, count, channels, height, width, array_NCHW.dtype, read, channel_names=names)


def _read_memory(array: NDArray[Any], index: int, window: Window | None) -> MultiChannelImage:
    image = array[index]
    if window is not None:
        image = image[:, window.top : window.top + window.height, window.left : window.left + window.width]
    pixels = image.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        valid = np.isfinite(pixels)
        pixels[~valid] = 0
    else:
        valid = np.ones(pixels.shape, dtype=bool)
    return MultiChannelImage(pixels, valid)
