"""MATLAB files: up to v7.2 by scipy, v7.3 as HDF5.  The axes are MATLAB's in both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import hdf5, reading
from auxmae.data.readers.arrays import array_file
from auxmae.data.readers.axes import Axes, Shapes, cut
from auxmae.data.readers.cache import Arrays, decoded, file_key
from auxmae.data.readers.encoding import Encoding, to_image

_HDF5 = b"\x89HDF\r\n\x1a\n"


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(520)
    # MATLAB writes 512 bytes of its own before the HDF5 signature.
    return head.startswith(_HDF5) or head[512:] == _HDF5


def _numeric(path: Path) -> Arrays:
    from scipy.io import loadmat

    return {
        name: value
        for name, value in loadmat(path).items()
        if not name.startswith("__") and isinstance(value, np.ndarray) and value.dtype.kind in "uifbc"
    }


def _all(path: Path) -> Arrays:
    # Their variables are compressed as a whole: every crop comes from what was decoded once.
    return decoded.get(file_key(path), partial(_numeric, path))


def list_arrays(path: Path) -> Shapes:
    """Variable → (shape, type) of every numeric variable."""
    if _is_hdf5(path):
        return hdf5.list_arrays(path, matlab=True)
    return {name: (value.shape, value.dtype.str) for name, value in _all(path).items()}


def load(path: Path, key: str) -> NDArray[Any]:
    """One whole array."""
    return hdf5.load(path, key, matlab=True) if _is_hdf5(path) else _all(path)[key]


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens a variable of one or N images."""
    if _is_hdf5(path):
        return hdf5.open_file(path, options, matlab=True)
    return array_file(path, list_arrays(path), options, partial(load, path), partial(_read, path, options.nodata))


def _read(path: Path, nodata: float | None, key: str, axes: Axes, index: int, window: Window | None) -> MultiChannelImage:
    with reading(path):
        return to_image(cut(_all(path)[key], axes, index, window), Encoding().with_nodata(nodata))
