"""TIFF: by its axes where they say what the channels are (OME, ImageJ, pages), by rasterio elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import arrays as common
from auxmae.data.readers import geotiff, reading
from auxmae.errors import DataError

# What tifffile calls axes that hold channels: channels, samples, pages, an unknown series, and the planes of a stack.
CHANNEL_AXES = "CSIQZ"


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens a TIFF.

    A GeoTIFF, or a TIFF of one page, is a raster for rasterio.  A file of several pages is read by the axes of its first
    series, such as "IYX" or "TCYX".
    """
    import tifffile

    with _errors_raised(), tifffile.TiffFile(path) as tiff:
        geographic = tiff.is_geotiff or tiff.is_gdal
        if geographic or (len(tiff.pages) == 1 and not tiff.is_ome and not tiff.is_imagej):
            return geotiff.open_file(path, options)
        series = tiff.series[0]
        axes, shape, dtype = series.axes, series.shape, series.dtype
        names = _ome_names(tiff.ome_metadata) if tiff.is_ome else None
    chosen = common.resolve_axes(path, shape, options) if options.axes is not None else _from_letters(path, axes, shape)
    channels = chosen.size("C")
    if names is not None and (len(names) != channels or len(set(names)) != len(names)):
        names = None
    return ImageFile(
        path, chosen.size("N"), channels, chosen.size("H"), chosen.size("W"), np.dtype(dtype),
        partial(_read, path, chosen, options.nodata, names), names,
    )  # fmt: skip


@contextmanager
def _errors_raised() -> Iterator[None]:
    """tifffile only logs that a file ends too early, and goes on with the pages that are left; here that is an error."""
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Collector(logging.ERROR)
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if records:
        raise ValueError(records[0].getMessage())


def _from_letters(path: Path, axes: str, shape: tuple[int, ...]) -> common.Axes:
    """tifffile's axes → N, C, H, W.  Axes of length one are dropped; T counts images."""
    letters, sizes = [], []
    extra = [axis for axis, size in zip(axes, shape, strict=True) if axis in CHANNEL_AXES and size > 1]
    for axis, size in zip(axes, shape, strict=True):
        if axis in "YX":
            letters.append({"Y": "H", "X": "W"}[axis])
        elif size == 1:
            # A slice of length one has to stay in the index; N and C are free letters for it.
            letters.append("1")
        elif axis in CHANNEL_AXES and len(extra) == 1:
            letters.append("C")
        elif axis in "TR":
            letters.append("N")
        else:
            letters.append("?")
        sizes.append(size)
    if "?" in letters or letters.count("N") > 1 or not {"H", "W"} <= set(letters):
        raise DataError(f"{path}: which of its axes {axes} {shape} are the channels?", hint='set data.axes, for example "NCHW"')
    kept = [(letter, size) for letter, size in zip(letters, sizes, strict=True) if letter != "1"]
    return common.Axes("".join(letter for letter, _ in kept), tuple(size for _, size in kept), False)


def _ome_names(metadata: str | None) -> tuple[str, ...] | None:
    if not metadata:
        return None
    try:
        channels = ET.fromstring(metadata).findall("{*}Image/{*}Pixels/{*}Channel")
    except ET.ParseError:
        return None
    names = tuple(channel.get("Name") or "" for channel in channels)
    return names if names and all(names) else None


def _read(
    path: Path,
    axes: common.Axes,
    nodata: float | None,
    names: tuple[str, ...] | None,
    index: int,
    window: Window | None,
) -> MultiChannelImage:
    import tifffile

    with reading(path), tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        pixels: Any
        try:
            # Uncompressed and contiguous: only what is asked for is read.
            pixels = tifffile.memmap(path, mode="r")
        except ValueError:
            pixels = series.asarray()
        return common.to_image(common.cut(pixels.reshape(axes.shape), axes, index, window), nodata, names)
