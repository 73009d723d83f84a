"""npy (memory-mapped) and npz."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import arrays as common
from auxmae.data.readers import reading


def list_arrays(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → (shape, type); an npy file's array is called "array"."""
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return {"array": (array.shape, array.dtype.str)}
    found = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            array = archive[name]
            found[name] = (array.shape, array.dtype.str)
    return found


def load(path: Path, key: str) -> NDArray[Any]:
    """One array; of an npy file a memory map."""
    if path.suffix.lower() == ".npy":
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive[key])


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens an array of one or N images."""
    arrays = list_arrays(path)
    key = common.choose_key(path, arrays, options.key if path.suffix.lower() == ".npz" else None)
    axes = common.resolve_axes(path, arrays[key][0], options, arrays)
    label = common.label_key(arrays, axes.size("N"))
    labels = load(path, label).reshape(-1) if label else None
    return common.array_file(path, key, arrays, options, partial(_read, path, key, axes, options.nodata), axes, labels)


def _read(path: Path, key: str, axes: common.Axes, nodata: float | None, index: int, window: Window | None) -> MultiChannelImage:
    with reading(path):
        return common.to_image(common.cut(load(path, key), axes, index, window), nodata)
