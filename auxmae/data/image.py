"""What every reader returns: what a file holds and what its channels are called, its pixels, and which of them are valid.

Shape letters: C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: rows [top, top + height), columns [left, left + width)."""

    top: int
    left: int
    height: int
    width: int


def tiles(height: int, width: int, side: int) -> Iterator[Window]:
    """Windows of at most `side` × `side` px that cover an image, row by row."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield Window(top, left, min(side, height - top), min(side, width - left))


def diagonal(height: int, width: int, side: int) -> Iterator[Window]:
    """Three windows of at most `side` × `side` px to look at an image by: its corner, its middle, and the opposite corner."""
    h, w = min(height, side), min(width, side)
    for place in (0.0, 0.5, 1.0):
        yield Window(round(place * (height - h)), round(place * (width - w)), h, w)


@dataclass(frozen=True)
class MultiChannelImage:
    """One image, or a window of it.

    Attributes:
        pixels: (C, H, W) float32, in the units of the file (scale and offset of the file applied); 0 where not valid.
        valid: (C, H, W) bool, False for nodata, NaN and infinity.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]


def farthest(pixels: NDArray[np.float32]) -> float:
    """The pixel value farthest from 0, with its sign; pixels of any shape, at least one."""
    return float(pixels.flat[np.abs(pixels).argmax()])


@dataclass(frozen=True)
class ReadOptions:
    """How to read files that do not say enough about themselves; key to nodata are those of the settings' [data] table.

    Attributes:
        key: name of the array inside an HDF5, MATLAB, npz or Zarr file; None to choose where only one fits.
        axes: axis order such as "HWC", "NCHW" or "C(WH)"; None to infer where only one reading is plausible.
        size: (H, W) in pixels, for files that store pixels as one axis.
        nodata: stored value that means "no data", in place of the file's own and of its valid range; NaN: none; None: the file's.
        channels: number of channels that the image has to have, to tell them from rows and columns; None: not known.
        plane: (H, W) of the label map that belongs to the image, to tell the channels from rows and columns; None: not known.
        plane_key: name of that map's array, where it is in the file itself; "" where labels are elsewhere, or not wanted; None:
            nothing was said of labels.
        transparency: whether a last band that a TIFF marks as transparency is that, or a channel (False); None: as it looks.
        indexed: read pictures with a palette as the palette's indices (label rasters) rather than as its colours.
    """

    key: str | None = None
    axes: str | None = None
    size: tuple[int, int] | None = None
    nodata: float | None = None
    channels: int | None = None
    plane: tuple[int, int] | None = None
    plane_key: str | None = None
    transparency: bool | None = None
    indexed: bool = False


@dataclass(frozen=True)
class ImageFile:
    """An opened file: what its header says, and how to read from it.  It holds no handle and can be pickled.

    Attributes:
        path: where it is.
        count: number of images in it (N); 1 for all but arrays with an N axis.
        channels, height, width: C, H, W of each image.
        dtype: of the stored pixels.
        read: read(index, window) → MultiChannelImage; index in [0, count), window None for the whole image.  Reads
            no more of the file than the window needs, where the format allows.  A module-level function or a
            functools.partial of one, so that loader processes can receive it.
        channel_names, wavelengths: C names, and C centre wavelengths in nm; None where the file carries none.
        labels: where the file itself carries a label for each image, the name of that array and its (count,) numbers or
            texts, as they are stored; else None.
        georeference: {"crs": str, "transform": six floats} where the file has one, else None.
        notices: what was inferred and the user should be told, one sentence each.
        alpha: of a last band that a TIFF marks as transparency, as writers do channels too, how many of the values looked at are
            the largest of their type, and how many neither that nor 0; None: none is marked.
        whole: bytes that are decoded for any window of it, those of all of it; 0 where the format is read by windows.
        guessed_axes: whether which axis is which was guessed, or set against the axes' names: those of the labels' axes say
            nothing then.
        parts: the files that it is read from where these are several, one a channel, those of one OME-TIFF or those that links
            of an HDF5 file lead to; empty where `path` is the file.
    """

    path: Path
    count: int
    channels: int
    height: int
    width: int
    dtype: np.dtype
    read: Callable[[int, Window | None], MultiChannelImage]
    channel_names: tuple[str, ...] | None = None
    wavelengths: tuple[float, ...] | None = None
    labels: tuple[str, NDArray[Any]] | None = None
    georeference: dict[str, object] | None = None
    notices: tuple[str, ...] = field(default=())
    alpha: tuple[int, int] | None = None
    whole: int = 0
    guessed_axes: bool = False
    parts: tuple[Path, ...] = field(default=())

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are read."""
        return self.parts or (self.path,)
