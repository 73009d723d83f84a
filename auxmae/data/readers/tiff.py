"""TIFF: by its axes where they say what the channels are (OME, ImageJ, pages), by rasterio elsewhere."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import geotiff, reading
from auxmae.data.readers.axes import Axes, cut, from_letters, resolve_axes, times, told_against
from auxmae.data.readers.encoding import Encoding, to_image
from auxmae.data.readers.pages import full_pages
from auxmae.data.readers.planes import Planes
from auxmae.errors import DataError

# What tifffile calls axes that hold channels: channels, samples, pages, an unknown series, and the planes of a stack.
CHANNEL_AXES = "CSIQZ"
IMAGE_AXES = "TR"
# JPEG 2000 (Aperio's, in RGB, and libtiff's number), which the GDAL of rasterio's wheels lacks inside TIFFs.
_JPEG_2000 = frozenset({33005, 34712})
# Bits of NewSubfileType (TIFF 6.0, section 8): a reduced version of another page, and a transparency mask of one.
_REDUCED, _MASK = 1, 4
# What tifffile says when a description is none of these pages, as after another program has resized them, or a private tag
# (TIFF 6.0, section 2: from 32768) cannot be read: it goes on with the pages as they are, and loses none.
_HARMLESS = re.compile(r"> ((invalid )?shaped series|OME series raised) |TiffTag (3[3-9]|[4-6]\d)\d{3} ")


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens a TIFF.

    A GeoTIFF, or a TIFF of one page, is a raster for rasterio.  Pages of one size are channels; a file of several pages
    that names its axes, such as "IYX" or "TCYX", is read by them.  Reduced pages and masks are no channels.
    """
    import tifffile

    with _errors_raised(), tifffile.TiffFile(path) as tiff:
        if tiff.is_geotiff or tiff.is_gdal:
            return geotiff.open_file(path, options)
        series, masks = _series(tiff)
        plain = not tiff.is_ome and not tiff.is_imagej and len(series) == 1 and len(series[0].shape) == series[0].keyframe.ndim
        if (plain and int(series[0].keyframe.compression) not in _JPEG_2000) or not series:
            return geotiff.open_file(path, options)
        chosen, notices = _images(path, series) if tiff.is_ome else _arrays(path, series)
        names = _ome_names(tiff.ome_metadata, series[chosen[0]].name) if tiff.is_ome else None
        axes, shape = series[chosen[0]].axes, Planes(path, [series[place] for place in chosen]).shape
        dtype = series[chosen[0]].dtype
        parts = _files(path, series) if tiff.is_ome else ()
        if parts:
            notices.append(f"{path.name}: one OME-TIFF with {len(parts) - 1} other files")
    if len(chosen) > 1:
        # Single planes are the channels of one image; what has channels already is one image of several.
        axes = ("I" if axes == "YX" and not tiff.is_ome else "T") + axes
    found = _axes(path, axes, shape, options, notices)
    channels = found.size("C")
    if names is not None and len(names) != channels:
        names = None
    return ImageFile(
        path, found.size("N"), channels, found.size("H"), found.size("W"), np.dtype(dtype),
        partial(_read, path, found, tuple(chosen), bool(masks), options.nodata), names, notices=tuple(notices), parts=parts,
    )  # fmt: skip


def _series(tiff: Any) -> tuple[list[Any], list[Any]]:
    """(series of full pages, series of masks)."""
    series, masks = [], []
    # An OME-TIFF may describe images of other files too, which are these files' own: as Micro-Manager has positions.
    own = [one for one in tiff.series if one.keyframe.parent is tiff] or tiff.series
    # tifffile takes whatever is half the size for a pyramid's next level, even where no flag says that it is one.
    for one in (level for whole in own for level in whole.levels):
        kind = int(one.keyframe.subfiletype)
        if kind == _MASK:
            masks.append(one)
        elif not kind & (_REDUCED | _MASK) and not one.keyframe.is_subifd:
            series.append(one)
    return series, masks


def _images(path: Path, series: list[Any]) -> tuple[list[int], list[str]]:
    """OME-TIFF: the first image, and all others like it; beside it lie photographs of the slide and of its label."""
    kinds = [(one.axes, one.shape, one.dtype) for one in series]
    chosen = [place for place, kind in enumerate(kinds) if kind == kinds[0]]
    left = len(kinds) - len(chosen)
    return chosen, [f"{path.name}: {left} images of another kind than the first are left out"] if left else []


def _files(path: Path, series: list[Any]) -> tuple[Path, ...]:
    """The files that an OME-TIFF's pages are in, by name, of which each may describe all; empty where that is one."""
    if not any(one.is_multifile for one in series):
        return ()  # without a look at every page
    found = {page.parent.filehandle.path for one in series for page in one.pages if page is not None}
    # tifffile follows links.
    folder = os.path.realpath(path.parent)
    return tuple(sorted(path.parent / os.path.relpath(one, folder) for one in found)) if len(found) > 1 else ()


def _arrays(path: Path, series: list[Any]) -> tuple[list[int], list[str]]:
    """The series that are the image; tifffile makes one of pages that are alike, or of each array that it has written.

    Raises:
        DataError: several whose pages are alike, and not their number.
    """
    places = [place for place, one in enumerate(series) for _ in one.pages]
    kinds = [
        (*_sides(series[place]), f"{series[place].dtype}, {series[place].keyframe.samplesperpixel} samples") for place in places
    ]
    pages, notices = full_pages(path, kinds)
    chosen = sorted({places[page] for page in pages})
    shapes = [series[place].shape for place in chosen]
    if len(set(shapes)) > 1:
        raise DataError(
            f"{path}: its arrays are not alike ({', '.join(map(times, shapes))}): are they images, or channels of one?",
            hint="store each image in a file of its own, or the channels as one array",
        )
    return chosen, notices


def _sides(series: Any) -> tuple[int, int]:
    lengths = dict(zip(series.axes, series.shape, strict=True))
    return lengths.get("Y", 1), lengths.get("X", 1)


@contextmanager
def _errors_raised() -> Iterator[None]:
    """tifffile only logs that a file ends too early, and goes on with the pages that are left; here that is an error.

    What it logs besides stays off the terminal, where Python writes what no handler takes.

    Raises:
        ValueError: tifffile has logged an error, and not one in spite of which it has every page.
    """
    records: list[logging.LogRecord] = []
    own = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Other threads open other files meanwhile.
            if record.thread == own and not _HARMLESS.search(record.getMessage()):
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


def _axes(path: Path, axes: str, shape: tuple[int, ...], options: ReadOptions, notices: list[str]) -> Axes:
    """tifffile's axes → N, C, H, W."""
    # Without a word about its axes (Q), an array with channels last is written as many narrow pages.
    unknown = axes.count("Q")
    if options.axes is not None or unknown > 1 or (unknown and "S" not in axes):
        found = resolve_axes(path, shape, options)
        if options.axes is None:
            notices.append(f"{path.name}: its pages ({times(shape)}) are read as {found}; set data.axes if that is wrong")
        else:
            notices.extend(told_against(path, axes, found))
        return found
    return from_letters(path, axes, shape, notices, channels=CHANNEL_AXES, images=IMAGE_AXES)


def _ome_names(metadata: str | None, called: str) -> tuple[str, ...] | None:
    """The names of the channels of the first image that is called so, or else of the first one."""
    if not metadata:
        return None
    try:
        images = ET.fromstring(metadata).findall("{*}Image")
    except ET.ParseError:
        return None
    image = next((one for one in images if one.get("Name", "") == called), images[0] if images else None)
    names = tuple(channel.get("Name") or "" for channel in image.iterfind("{*}Pixels/{*}Channel")) if image is not None else ()
    return names if names and all(names) else None


def _read(
    path: Path,
    axes: Axes,
    chosen: tuple[int, ...],
    masked: bool,
    nodata: float | None,
    index: int,
    window: Window | None,
) -> MultiChannelImage:
    import tifffile

    with reading(path), _errors_raised(), tifffile.TiffFile(path) as tiff:
        series, masks = _series(tiff)
        pixels = cut(Planes(path, [series[place] for place in chosen]), axes, index, window)
        valid = _valid(path, masks, axes, window) if masked else None
        return to_image(pixels, Encoding().with_nodata(nodata), valid)


def _valid(path: Path, masks: list[Any], axes: Axes, window: Window | None) -> NDArray[np.bool_] | None:
    """(1, h, w) or (C, h, w): one mask for all channels, or one for each; of any other number, what all agree on."""
    size = (axes.size("H"), axes.size("W"))
    parts = []
    for mask in masks:
        if mask.shape[-2:] == size and len(mask.shape) in (2, 3):
            tokens = ("C", "H", "W")[-len(mask.shape) :]
            parts.append(cut(Planes(path, [mask]), Axes(tokens, mask.shape), 0, window))
    if not parts:
        return None
    valid: NDArray[np.bool_] = np.concatenate(parts) != 0
    return valid if len(valid) in (1, axes.size("C")) else np.asarray(valid.all(axis=0, keepdims=True))
