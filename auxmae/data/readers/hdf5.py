"""HDF5 files, and MATLAB's v7.3 files, which are HDF5 with the axes in reverse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import reading
from auxmae.data.readers.arrays import array_file
from auxmae.data.readers.axes import Axes, Shapes, cut, from_names
from auxmae.data.readers.encoding import cf_encoding, to_image


class _ColumnMajor:
    """A data set in MATLAB's order of axes: MATLAB stores the first axis fastest, and HDF5 names the slowest first."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[Any]:
        return np.asarray(self.dataset[index[::-1]]).T


def list_arrays(path: Path, matlab: bool = False) -> Shapes:
    """Path inside the file → (shape, type) of every numeric data set; `matlab`: shapes in MATLAB's order."""
    import h5py

    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def visit(name: str, node: Any) -> None:
        # "#refs#" holds what MATLAB's cells point to; text is stored as numbers too.
        if not isinstance(node, h5py.Dataset) or name.startswith("#") or node.attrs.get("MATLAB_class") == b"char":
            return
        try:
            shape, dtype = node.shape, node.dtype
        except TypeError:
            return  # a type that numpy does not have
        if shape is not None and dtype.kind in "uifbc" and "MATLAB_empty" not in node.attrs:
            found[name] = (shape[::-1] if matlab else shape, dtype.str)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


@contextmanager
def _dataset(path: Path, key: str) -> Iterator[Any]:
    import h5py

    # Opened for every read: handles neither pickle nor survive a fork.
    with h5py.File(path, "r") as file:
        yield file[key]


def load(path: Path, key: str, matlab: bool = False) -> NDArray[Any]:
    """One whole array."""
    with _dataset(path, key) as dataset:
        array = np.asarray(dataset[...])
    return array.T if matlab else array


def open_file(path: Path, options: ReadOptions, matlab: bool = False) -> ImageFile:
    """Opens an array of one or N images; windows are read, not the whole."""
    read = partial(_read, path, options.nodata, matlab)
    known = partial(_known, path)
    return array_file(path, list_arrays(path, matlab), options, partial(load, path, matlab=matlab), read, known)


def _known(path: Path, key: str) -> Axes | None:
    """Axes by the labels of the dimensions, or by the scales attached to them, as netCDF does; MATLAB has neither."""
    with _dataset(path, key) as dataset:
        names = [dimension.label or (dimension[0].name.split("/")[-1] if len(dimension) else None) for dimension in dataset.dims]
        return from_names(names, dataset.shape)


def _read(
    path: Path, nodata: float | None, matlab: bool, key: str, axes: Axes, index: int, window: Window | None
) -> MultiChannelImage:
    with reading(path), _dataset(path, key) as dataset:
        encoding = cf_encoding(dataset.attrs).with_nodata(nodata)
        return to_image(cut(_ColumnMajor(dataset) if matlab else dataset, axes, index, window), encoding)
