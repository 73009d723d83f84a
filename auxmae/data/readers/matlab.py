"""MATLAB files: up to v7.2 by scipy, v7.3 as HDF5.  The axes are MATLAB's in both."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
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


def _variables(path: Path) -> Arrays:
    from scipy.io import loadmat

    found: Arrays = {}
    for name, value in loadmat(path).items():
        if not name.startswith("__"):
            _add(found, name, value)
    return found


def _add(found: Arrays, name: str, value: Any) -> None:
    """A variable, or the fields of a struct as STRUCT/FIELD, as HDF5 has them; of cells, only those of text."""
    if not isinstance(value, np.ndarray):
        return
    if value.dtype.names is not None and value.size == 1:
        for field in value.dtype.names:
            _add(found, f"{name}/{field}", value[field].item())
    elif value.dtype.kind in "uifbcU":
        found[name] = value
    elif value.dtype.kind == "O" and all(isinstance(entry, np.ndarray) and entry.dtype.kind == "U" for entry in value.flat):
        found[name] = np.array(["".join(entry.flat) for entry in value.flat], dtype=np.str_).reshape(value.shape)
    else:
        # Named where the file is asked for what it holds, without its contents.
        found[name] = np.empty(value.shape, dtype="V1")


def _all(path: Path) -> Arrays:
    # Their variables are compressed as a whole: every crop comes from what was decoded once.
    return decoded.get(file_key(path), partial(_variables, path))


def list_arrays(path: Path, called: Collection[str] = ()) -> Shapes:
    """Variable → (shape, type) of every variable; the type of what is neither numbers nor text is "V1".  `called`: see `hdf5`."""
    if _is_hdf5(path):
        return hdf5.list_arrays(path, called, matlab=True)
    return {name: (value.shape, value.dtype.str) for name, value in _all(path).items()}


def load(path: Path, key: str) -> NDArray[Any]:
    """One whole array."""
    return hdf5.load(path, key, matlab=True) if _is_hdf5(path) else _all(path)[key]


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens a variable of one or N images."""
    if _is_hdf5(path):
        return hdf5.open_file(path, options, matlab=True)
    file = array_file(path, list_arrays(path), options, partial(load, path), partial(_read, path, options.nodata))
    return replace(file, whole=sum(array.nbytes for array in _all(path).values()))


def _read(path: Path, nodata: float | None, key: str, axes: Axes, index: int, window: Window | None) -> MultiChannelImage:
    with reading(path):
        return to_image(cut(_all(path)[key], axes, index, window), Encoding().with_nodata(nodata))
