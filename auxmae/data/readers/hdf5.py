"""HDF5, and MATLAB v7.3, which is HDF5."""

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
    """Path inside the file → (shape, type) of every numeric data set."""
    import h5py

    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "uifbc" and not name.startswith("#"):
            found[name] = (node.shape, node.dtype.str)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def load(path: Path, key: str) -> NDArray[Any]:
    """One whole array."""
    import h5py

    with h5py.File(path, "r") as file:
        return np.asarray(file[key][...])


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens an array of one or N images; windows are read, not the whole."""
    arrays = list_arrays(path)
    key = common.choose_key(path, arrays, options.key)
    axes = common.resolve_axes(path, arrays[key][0], options, arrays)
    label = common.label_key(arrays, axes.size("N"))
    labels = load(path, label).reshape(-1) if label else None
    return common.array_file(path, key, arrays, options, partial(_read, path, key, axes, options.nodata), axes, labels)


def _read(path: Path, key: str, axes: common.Axes, nodata: float | None, index: int, window: Window | None) -> MultiChannelImage:
    import h5py

    # Opened for every read: handles neither pickle nor survive a fork.
    with reading(path), h5py.File(path, "r") as file:
        return common.to_image(common.cut(file[key], axes, index, window), nodata)
