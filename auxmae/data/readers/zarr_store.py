"""Zarr v2 and v3 stores, as folders or zipped; OME-Zarr by its own description of the axes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import reading
from auxmae.data.readers.arrays import ONLY, array_file, described_names
from auxmae.data.readers.axes import Axes, Shapes, axis_letter, cut, from_letters, from_names, resolve_axes, told_against
from auxmae.data.readers.encoding import Encoding, cf_encoding, to_image, without_missing


def _root(path: Path) -> Any:
    import zarr
    from zarr.storage import ZipStore

    return zarr.open(ZipStore(path, mode="r") if path.is_file() else str(path), mode="r")


def _members(root: Any) -> dict[str, Any]:
    import zarr

    if isinstance(root, zarr.Array):
        return {ONLY: root}
    return {name: member for name, member in root.members(max_depth=None) if isinstance(member, zarr.Array)}


def _shapes(members: dict[str, Any]) -> Shapes:
    kinds = {name: getattr(node.dtype, "kind", "V") for name, node in members.items()}
    return {
        # numpy's newer kind of text has no name that older versions understand.
        name: (node.shape, "<U" if kinds[name] == "T" else np.dtype(node.dtype).str)
        for name, node in members.items()
        if kinds[name] in "uifbcUSOT"
    }


def list_arrays(path: Path) -> Shapes:
    """Path inside the store → (shape, type) of every array of numbers or text; a bare array is called `ONLY`."""
    return _shapes(_members(_root(path)))


def load(path: Path, key: str) -> NDArray[Any]:
    """One whole array."""
    return np.asarray(_members(_root(path))[key][...])


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens an array of one or N images; only the chunks of a window are read."""
    root = _root(path)
    members = _members(root)
    shapes = _shapes(members)
    full = _full_resolution(root)
    if full is not None and options.key in (None, full[0]) and full[0] in shapes:
        options = replace(options, key=full[0])

    def known(key: str, notices: list[str]) -> Axes | None:
        if full is not None and key == full[0] and len(full[1]) == len(shapes[key][0]):
            return from_letters(path, full[1], shapes[key][0], notices)
        return from_names(path, _dimensions(members[key]), shapes[key][0], notices)

    def described(key: str, count: int) -> tuple[str, ...] | None:
        if full is not None and key == full[0] and full[2] is not None and len(full[2]) == count:
            return full[2]
        return described_names([members[key].attrs, root.attrs], count)

    read = partial(_read, path, options.nodata)
    file = array_file(path, shapes, options, partial(_labels, path), read, known, described)
    if options.axes is not None and full is not None and full[0] == options.key:
        told = told_against(path, full[1], resolve_axes(path, shapes[full[0]][0], options))
        return replace(file, notices=(*file.notices, *told))
    return file


def _labels(path: Path, key: str) -> NDArray[Any]:
    return without_missing(load(path, key), meaning(path, key)[1])


def meaning(path: Path, key: str) -> tuple[Axes | None, Encoding]:
    """The axes and the encoding of labels that an array's attributes and dimensions tell.

    Zarr's libraries fill with 0 where nothing is said, and that is a class.
    """
    node = _members(_root(path))[key]
    encoding = cf_encoding(dict(node.attrs)) if node.fill_value == 0 else _encoding(node)
    return from_names(path, _dimensions(node), node.shape), encoding


def _dimensions(node: Any) -> list[str | None]:
    """Names of the dimensions: of version 3 itself, of version 2 as xarray keeps them."""
    return list(getattr(node.metadata, "dimension_names", None) or node.attrs.get("_ARRAY_DIMENSIONS") or ())


def _full_resolution(root: Any) -> tuple[str, str, tuple[str, ...] | None] | None:
    """Key, axis letters and channel names of an OME-Zarr image (OME-NGFF 0.1 to 0.5), largest level; None: it is none."""
    attributes = dict(root.attrs)
    attributes = attributes.get("ome", attributes)
    try:
        scales = attributes["multiscales"][0]
        # Versions before 0.4 name axes by letters alone, and those before 0.3 have always the same.
        axes = [{"name": axis} if isinstance(axis, str) else axis for axis in scales.get("axes", "tczyx")]
        letters = "".join(axis_letter(axis["name"], axis.get("type")) for axis in axes)
        key = scales["datasets"][0]["path"]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    labels = tuple(channel.get("label") or "" for channel in attributes.get("omero", {}).get("channels", ()))
    return key, letters, labels if all(labels) else None


def _encoding(node: Any) -> Encoding:
    attributes = dict(node.attrs)
    # xarray keeps the fill value of a version 2 array in its metadata; elsewhere that is only what unwritten chunks hold.
    if node.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in attributes and node.fill_value is not None:
        attributes.setdefault("_FillValue", node.fill_value)
    return cf_encoding(attributes)


def _read(path: Path, nodata: float | None, key: str, axes: Axes, index: int, window: Window | None) -> MultiChannelImage:
    with reading(path):
        node = _members(_root(path))[key]
        return to_image(cut(node, axes, index, window), _encoding(node).with_nodata(nodata))
