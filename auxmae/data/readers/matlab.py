"""MATLAB files: up to v7.2 by scipy, v7.3 as HDF5."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import arrays as common
from auxmae.data.readers import hdf5, reading


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        # MATLAB writes 512 bytes of its own before the HDF5 signature.
        return b"MATLAB 7.3" in file.read(128) or (path.stat().st_size > 520 and _signature(path))


def _signature(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(520)
    return head.startswith(b"\x89HDF\r\n\x1a\n") or head[512:].startswith(b"\x89HDF\r\n\x1a\n")


def list_arrays(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Variable → (shape, type) of every numeric variable."""
    if _is_hdf5(path):
        return hdf5.list_arrays(path)
    return {
        name: (value.shape, value.dtype.str)
        for name, value in _load_all(path, path.stat().st_mtime_ns).items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "uifbc"
    }


# Old MATLAB files can only be read whole; the last ones stay in memory, for every crop comes from them.
@lru_cache(maxsize=4)
def _load_all(path: Path, changed: int) -> dict[str, Any]:
    from scipy.io import loadmat

    return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}


def load(path: Path, key: str) -> NDArray[Any]:
    """One whole array."""
    if _is_hdf5(path):
        return hdf5.load(path, key)
    return np.asarray(_load_all(path, path.stat().st_mtime_ns)[key])


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens a variable of one or N images."""
    if _is_hdf5(path):
        return hdf5.open_file(path, options)
    arrays = list_arrays(path)
    key = common.choose_key(path, arrays, options.key)
    axes = common.resolve_axes(path, arrays[key][0], options, arrays)
    label = common.label_key(arrays, axes.size("N"))
    labels = load(path, label).reshape(-1) if label else None
    return common.array_file(path, key, arrays, options, partial(_read, path, key, axes, options.nodata), axes, labels)


def _read(path: Path, key: str, axes: common.Axes, nodata: float | None, index: int, window: Window | None) -> MultiChannelImage:
    with reading(path):
        return common.to_image(common.cut(load(path, key), axes, index, window), nodata)
