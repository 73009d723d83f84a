"""The pages of a TIFF series as one lazy array: only the tiles and strips that a slice touches are decoded.

Shape letters: S samples, H rows, W columns of a page.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.readers.cache import decoded, file_key


class Planes:
    """Series of tifffile, one after the other along a new first axis where there are several.

    Args:
        path: the file; what is decoded of it is kept by its name and date.
        series: of an open `tifffile.TiffFile`, all of one shape and type.
    """

    def __init__(self, path: Path, series: list[Any]) -> None:
        self.key = file_key(path)
        self.series = series
        self.shape: tuple[int, ...] = (len(series), *series[0].shape) if len(series) > 1 else series[0].shape

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[Any]:
        if len(self.series) == 1:
            return self._cut(self.series[0], index)
        return np.stack([self._cut(one, index[1:]) for one in self.series[index[0]]])

    def _cut(self, series: Any, index: tuple[slice, ...]) -> NDArray[Any]:
        keyframe = series.keyframe
        if series.dataoffset is not None:
            return _mapped(keyframe, series.shape, series.dataoffset, index)
        leading = len(series.shape) - len(keyframe.shape)
        if leading < 0 or series.shape[leading:] != keyframe.shape or keyframe.axes not in ("YX", "YXS", "SYX"):
            return np.asarray(series.asarray()[index])
        outer = [range(*part.indices(size)) for part, size in zip(index[:leading], series.shape, strict=False)]
        numbers = [int(np.ravel_multi_index(place, series.shape[:leading])) for place in itertools.product(*outer)]
        planes = [self._page(series[number], keyframe, index[leading:]) for number in numbers]
        return np.stack(planes).reshape(*(len(part) for part in outer), *planes[0].shape)

    def _page(self, page: Any, keyframe: Any, index: tuple[slice, ...]) -> NDArray[Any]:
        if page is None:
            raise ValueError("one of the planes that its metadata promise is missing")
        if page.is_final:
            return _mapped(page, keyframe.shape, page.dataoffsets[0], index)
        chosen = dict(zip(keyframe.axes, index, strict=True))
        rows, columns = chosen["Y"], chosen["X"]
        separate, _, height, width, contiguous = keyframe.shaped
        if keyframe.is_tiled:
            tile_height, tile_width = keyframe.tilelength, keyframe.tilewidth
        else:
            tile_height, tile_width = min(keyframe.rowsperstrip, height), width
        down, across = -(-height // tile_height), -(-width // tile_width)
        out = np.zeros((separate, rows.stop - rows.start, columns.stop - columns.start, contiguous), keyframe.dtype)
        for plane, row, column in itertools.product(
            range(separate),
            range(rows.start // tile_height, -(-rows.stop // tile_height)),
            range(columns.start // tile_width, -(-columns.stop // tile_width)),
        ):
            segment = self._segment(page, keyframe, (plane * down + row) * across + column)
            if segment is None:
                continue
            top, left = row * tile_height, column * tile_width
            y, x = max(top, rows.start), max(left, columns.start)
            part = segment[y - top : rows.stop - top, x - left : columns.stop - left]
            out[plane, y - rows.start : y - rows.start + part.shape[0], x - columns.start :][:, : part.shape[1]] = part
        if keyframe.axes == "YX":
            return out[0, ..., 0]
        return out[0][..., chosen["S"]] if keyframe.axes == "YXS" else out[chosen["S"], ..., 0]

    def _segment(self, page: Any, keyframe: Any, number: int) -> NDArray[Any] | None:
        """(h, w, S) of one tile or strip; None where the file leaves it out."""
        offset, length = page.dataoffsets[number], page.databytecounts[number]
        if length == 0:
            return None

        def decode() -> dict[str, NDArray[Any]]:
            handle = _handle(page)
            tables = {}
            if keyframe.compression in (6, 7, 34892, 33007):  # JPEG keeps what all segments share apart
                tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
            handle.seek(offset)
            encoded = handle.read(length)
            data, _, shape = keyframe.decode(encoded, number, **tables)
            return {"segment": data.reshape(shape)[0]}

        return decoded.get((*self.key, page.parent.filename, offset), decode)["segment"]


def _handle(page: Any) -> Any:
    handle = page.parent.filehandle
    if handle.closed:
        handle.open()  # OME-TIFF: a plane in another file of the set
    return handle


def _mapped(page: Any, shape: tuple[int, ...], offset: int, index: tuple[slice, ...]) -> NDArray[Any]:
    """A slice of what is uncompressed and in one piece: the system reads what is touched."""
    dtype = np.dtype(page.keyframe.dtype).newbyteorder(page.parent.byteorder)
    return np.array(_handle(page).memmap_array(dtype, shape, offset=offset)[index])
