"""PNG and JPEG; an alpha channel says which pixels are valid."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import geotiff, reading
from auxmae.data.readers.axes import Axes, cut
from auxmae.data.readers.cache import decoded, file_key
from auxmae.data.readers.encoding import Encoding, to_image

NAMES = {1: ("grey",), 3: ("red", "green", "blue")}
_GREY = ("1", "L", "LA")
_PALETTE = ("P", "PA")
_ALPHA = ("LA", "RGBA", "PA")
_PNG = b"\x89PNG\r\n\x1a\n"
# EXIF: the tag of the orientation, and its first value that lays rows as columns.
_ORIENTATION, _TRANSPOSED = 0x0112, 5


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens a picture of one or three channels, turned as its EXIF orientation says.

    With `options.indexed` a palette's indices are the one channel.
    """
    from PIL import Image

    if _sixteen_bits(path):
        return _by_gdal(path, options)  # Pillow has no 16-bit colour
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            mode, masked = picture.mode, "transparency" in picture.info
            if picture.getexif().get(_ORIENTATION, 1) >= _TRANSPOSED:
                width, height = height, width
    except Image.DecompressionBombError:
        return _by_gdal(path, options)  # too large to be decoded whole
    indexed = options.indexed and mode in _PALETTE
    channels = 1 if indexed or mode in _GREY else 3
    names = None if indexed else NAMES[channels]
    axes = Axes(("C", "H", "W"), (channels, height, width))
    read = partial(_read, path, options.indexed, axes, options.nodata)
    notices = []
    if mode in _ALPHA:
        notices.append(f"{path.name}: its alpha channel is transparency: it says which pixels are valid")
    elif masked:
        notices.append(f"{path.name}: what its header marks as transparent is not valid")
    if mode in _PALETTE and not indexed:
        notices.append(f"{path.name}: the colours of its palette are read as red, green and blue")
    if mode == "CMYK":
        notices.append(geotiff.CMYK.format(path.name))
    whole = (channels + (mode in _ALPHA or masked)) * height * width
    return ImageFile(path, 1, channels, height, width, np.dtype(np.uint8), read, names, notices=tuple(notices), whole=whole)


def _sixteen_bits(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(25)
    return len(head) == 25 and head.startswith(_PNG) and head[24] == 16


def _by_gdal(path: Path, options: ReadOptions) -> ImageFile:
    file = geotiff.open_file(path, options)
    return replace(file, channel_names=NAMES.get(file.channels))


def _decode(path: Path, indexed: bool) -> dict[str, NDArray[Any]]:
    """(C, H, W) pixels, and (1, H, W) validity where the picture has transparency."""
    from PIL import Image, ImageOps

    with Image.open(path) as stored:
        picture = ImageOps.exif_transpose(stored)
        arrays: dict[str, NDArray[Any]] = {}
        if picture.mode in _ALPHA or "transparency" in picture.info:
            arrays["valid"] = np.asarray(picture.convert("RGBA"))[None, ..., 3] > 0
        if indexed and picture.mode in (*_PALETTE, "1"):
            pixels: NDArray[Any] = np.asarray(picture.getchannel(0)).astype(np.uint8)
        else:
            pixels = np.asarray(picture.convert("L" if picture.mode in _GREY else "RGB"))
        arrays["pixels"] = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
        return arrays


def _read(
    path: Path,
    indexed: bool,
    axes: Axes,
    nodata: float | None,
    index: int,
    window: Window | None,
) -> MultiChannelImage:
    with reading(path):
        arrays = decoded.get((*file_key(path), indexed), partial(_decode, path, indexed))
        valid = arrays.get("valid")
        if valid is not None:
            valid = cut(valid, Axes(axes.tokens, (1, *axes.sizes[1:])), index, window)
        return to_image(cut(arrays["pixels"], axes, index, window), Encoding().with_nodata(nodata), valid)
