"""PNG and JPEG; an alpha channel says which pixels are valid."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import arrays as common
from auxmae.data.readers import reading

NAMES = {1: ("grey",), 3: ("red", "green", "blue")}


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens a picture of one or three channels."""
    from PIL import Image

    with Image.open(path) as picture:
        width, height = picture.size
        mode = picture.mode
    channels = 1 if mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;16") else 3
    dtype = np.dtype(np.uint16 if mode.startswith("I") else np.float32 if mode == "F" else np.uint8)
    return ImageFile(path, 1, channels, height, width, dtype, partial(_read, path, channels, options.nodata), NAMES[channels])


def _read(path: Path, channels: int, nodata: float | None, index: int, window: Window | None) -> MultiChannelImage:
    from PIL import Image

    with reading(path), Image.open(path) as picture:
        valid = None
        if picture.mode in ("LA", "RGBA", "PA") or "transparency" in picture.info:
            valid = np.asarray(picture.convert("RGBA"))[None, ..., 3] > 0
        if channels == 3:
            pixels = np.moveaxis(np.asarray(picture.convert("RGB")), 2, 0)
        else:
            pixels = np.asarray(picture.convert("L") if picture.mode in ("1", "LA") else picture)[None]
        if window is not None:
            rows, columns = (
                slice(window.top, window.top + window.height),
                slice(window.left, window.left + window.width),
            )
            pixels, valid = pixels[:, rows, columns], None if valid is None else valid[:, rows, columns]
        return common.to_image(pixels, nodata, NAMES[channels], None, valid)
