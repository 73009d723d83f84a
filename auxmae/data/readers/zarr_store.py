"""Zarr v2 and v3 stores."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import arrays as common
from auxmae.data.readers import reading


def _open(path: Path) -> dict[str, Any]:
    import zarr

    node = zarr.open(str(path), mode="r")
    if isinstance(node, zarr.Array):
        return {"array": node}
    return {name: member for name, member in node.members(max_depth=None) if isinstance(member, zarr.Array)}


def list_arrays(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Path inside the store → (shape, type); a bare array is called "array"."""
    return {name: (node.shape, np.dtype(node.dtype).str) for name, node in _open(path).items()}


def load(path: Path, key: str) -> NDArray[Any]:
    """One whole array."""
    return np.asarray(_open(path)[key][...])


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens an array of one or N images; only the chunks of a window are read."""
    arrays = list_arrays(path)
    key = common.choose_key(path, arrays, options.key)
    axes = common.resolve_axes(path, arrays[key][0], options, arrays)
    label = common.label_key(arrays, axes.size("N"))
    labels = load(path, label).reshape(-1) if label else None
    return common.array_file(path, key, arrays, options, partial(_read, path, key, axes, options.nodata), axes, labels)


def _read(path: Path, key: str, axes: common.Axes, nodata: float | None, index: int, window: Window | None) -> MultiChannelImage:
    with reading(path):
        return common.to_image(common.cut(_open(path)[key], axes, index, window), nodata)
