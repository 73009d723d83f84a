"""Labels as a file holds them: one map of original values, or one value an image; which images they are of is no matter here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window, diagonal
from auxmae.errors import DataError

MAX_CLASSES = 1000
# Side of the windows in which a raster of several channels is looked at, px.
_LOOK = 256


@dataclass(frozen=True)
class LabelMap:
    """One channel of original values, whether 0 means "no label" by the convention of the file's format, and names by value."""

    file: ImageFile
    zero_unlabelled: bool = False
    names: tuple[str, ...] = ()


def map_from_raster(path: Path, notices: list[str]) -> LabelMap:
    """One channel of original values: class numbers as they are, a palette's indices, or the largest of abundances."""
    from auxmae.data.readers import PICTURE_SUFFIXES, open_image
    from auxmae.data.readers.envi import classification

    file = open_image(path, ReadOptions(indexed=True))
    if path.suffix.lower() in PICTURE_SUFFIXES:
        hint = "store class numbers in one channel, as a GeoTIFF or a grey or palette PNG"
        if file.channels > 1:
            raise DataError(f"{path}: a picture of colours says no classes", hint=hint)
        if path.suffix.lower() != ".png":
            raise DataError(f"{path}: JPEG changes pixel values, and with them the classes", hint=hint)
    if file.channels == 1:
        names = classification(path)
        return LabelMap(file, names is not None, names or ())
    if not _are_shares(file):
        raise DataError(
            f"{path} has {file.channels} channels whose sum differs from pixel to pixel: that is a picture, and no classes",
            hint="store class numbers in one channel; several are read where they are shares of classes, of one sum everywhere",
        )
    notices.append(
        f"{path.name}: its {file.channels} channels are taken for abundances: each pixel's label is its largest "
        "(none where all are 0)"
    )
    return LabelMap(replace(file, channels=1, dtype=np.dtype(np.int64), read=partial(_read_argmax, file), channel_names=None))


def _are_shares(file: ImageFile) -> bool:
    """Whether a raster's channels are abundances: none below 0, and of one sum wherever there is any, as far as a look tells."""
    for window in diagonal(file.height, file.width, _LOOK):
        image = file.read(0, window)
        total = image.pixels.sum(axis=0)[image.valid.all(axis=0) & (image.pixels != 0).any(axis=0)]
        if len(total) and (image.pixels.min() < 0 or total.min() < 0.9 * total.max()):
            return False
    return True


def _read_argmax(file: ImageFile, index: int, window: Window | None) -> MultiChannelImage:
    image = file.read(index, window)
    known = image.valid.all(axis=0, keepdims=True) & (image.pixels != 0).any(axis=0, keepdims=True)
    return MultiChannelImage(image.pixels.argmax(axis=0)[None].astype(np.float32), known)


def labels_from_array(
    path: Path, key: str, notices: list[str], *, by_name: bool, columns_first: tuple[int, int] | None = None
) -> NDArray[Any] | LabelMap:
    """(N,) numbers or texts of images, or a file in memory of (H, W), (H, W, K) or (N, H, W) labels.

    A last axis of one, the channel, may follow; a first one, the map, may precede.  Values that the file calls missing are no
    labels.

    Args:
        path, key: the file, and its array; "": the only one.
        notices: told what was inferred.
        by_name: take axes that have names by them, as the images' are; else in their order, as the images' are.
        columns_first: (H, W) of images whose columns come before their rows in the same file: maps that fit then are alike.
    """
    from auxmae.data.readers import array_meaning, read_array
    from auxmae.data.readers.encoding import without_missing

    array = np.asarray(read_array(path, key or None))
    axes, encoding = array_meaning(path, key or None)
    if axes is not None and by_name:
        columns_first = None
        # Without axes of length one that mean nothing.
        array = array.reshape(axes.sizes).transpose([axes.letters.index(letter) for letter in "NHWC" if letter in axes.letters])
    array = without_missing(array, encoding)
    where = f"{path}:{key}" if key else str(path)
    # A map's only channel, and the only map of a stack.
    if array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.dtype.kind not in ("biufU" if array.ndim == 1 else "biuf"):
        kind = {"U": f"text of {array.ndim} axes", "V": "cells or structs of several kinds"}.get(array.dtype.kind, array.dtype)
        raise DataError(f"{where}: labels must be numbers, or one text an image, not {kind}", hint="check data.labels")
    if array.ndim == 1:
        return array
    abundances = False
    if array.ndim == 3 and not _whole(array):
        notices.append(
            f"{path.name}: labels of {' × '.join(map(str, array.shape))} are taken for abundances: each pixel's label is its "
            "largest (none where all are 0)"
        )
        known = np.isfinite(array).all(axis=2) & (array != 0).any(axis=2)
        classes = np.where(known, np.where(np.isfinite(array), array, -math.inf).argmax(axis=2), -1)
        maps, abundances = classes[None], True
    elif array.ndim == 3:
        maps = array
    elif array.ndim == 2:
        maps = array[None]
    else:
        raise DataError(f"{where}: labels of {array.ndim} axes; expected (N,), (H, W), (H, W, K) or (N, H, W)")
    if columns_first is not None and maps.shape[:0:-1] == columns_first:
        notices.append(f"{path.name}: the labels' columns come before their rows, as the images' do (data.axes)")
        maps = maps.swapaxes(1, 2)
    from auxmae.data.collection import memory_file

    data = np.where(np.isfinite(maps) & (maps >= 0), maps, np.nan).astype(np.float32)
    file = replace(memory_file(data[:, None], path), dtype=np.dtype(np.int64))
    # The ground truth of the public hyperspectral scenes (Indian Pines, Pavia, Salinas …) numbers its classes from 1.
    return LabelMap(file, zero_unlabelled=path.suffix.lower() == ".mat" and not abundances)


def _whole(array: NDArray[Any]) -> bool:
    """Whether (·, ·, ·) labels, NaN for none, are a stack of maps rather than abundances or one-hot rows in the last axis."""
    known = array[~np.isnan(array)]
    if not np.isfinite(known).all() or (known != np.round(known)).any():
        return False
    sums: Counter[float] = Counter(np.unique(np.nansum(array, axis=2)).tolist())
    one_hot = set(np.unique(known).tolist()) <= {0, 1} and set(sums) <= {0, 1}
    return not one_hot


def check_few(values: Sized, labels: str) -> None:
    """Raises DataError where there are too many different values to be classes."""
    if len(values) > MAX_CLASSES:
        raise DataError(f"{labels}: more than {MAX_CLASSES} different values: these are no classes", hint="check data.labels")
