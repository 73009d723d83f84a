"""npy (memory-mapped) and npz."""

from __future__ import annotations

import threading
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import reading
from auxmae.data.readers.arrays import ONLY, array_file
from auxmae.data.readers.axes import Axes, Shapes, cut
from auxmae.data.readers.cache import decoded, file_key
from auxmae.data.readers.encoding import Encoding, to_image
from auxmae.errors import DataError

# NumPy reads headers with Python's own parser, which in 3.11 fails now and then where several threads use it at once ("AST
# constructor recursion depth mismatch"; see CPython's issue 106905).
_PARSING = threading.Lock()
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def list_arrays(path: Path) -> Shapes:
    """Name → (shape, type) of every array of numbers, text or objects, by its header; an npy file's array is called `ONLY`."""
    if path.suffix.lower() == ".npy":
        array = load(path, ONLY)
        return {ONLY: (array.shape, array.dtype.str)}
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                header = _header(file)
            if header is not None and header[1].kind in "uifbcUSO":
                found[member.removesuffix(".npy")] = (header[0], header[1].str)
    return found


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    with _PARSING:
        try:
            shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        except (ValueError, KeyError):
            return None  # no array, or one with field names that no image has
    return shape, dtype


def load(path: Path, key: str) -> NDArray[Any]:
    """One array; of an npy file a memory map."""
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                raise ValueError("it does not start as npy files do")
            file.seek(0)
            _refuse_objects(file, str(path))
        with _PARSING:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    return decoded.get((*file_key(path), key), partial(_member, path, key))[key]


def _member(path: Path, key: str) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        member = key if key in archive.zip.namelist() else f"{key}.npy"
        with archive.zip.open(member) as file:
            _refuse_objects(file, f"{path}:{key}")
        with _PARSING:
            return {key: np.asarray(archive[key])}


def _refuse_objects(file: IO[bytes], where: str) -> None:
    """Raises DataError for an array of Python objects: numpy stores these as a pickle, which may run any code."""
    header = _header(file)
    if header is not None and header[1].kind == "O":
        raise DataError(
            f"{where}: an array of Python objects",
            hint="store it as numbers, or as text: array.astype(str); images of several sizes each in a file of its own",
        )


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens an array of one or N images."""
    read = partial(_read, path, options.nodata)
    file = array_file(path, list_arrays(path), options, partial(load, path), read)
    if path.suffix.lower() == ".npy":
        return file
    return replace(file, whole=file.count * file.channels * file.height * file.width * file.dtype.itemsize)


def _read(path: Path, nodata: float | None, key: str, axes: Axes, index: int, window: Window | None) -> MultiChannelImage:
    with reading(path):
        return to_image(cut(load(path, key), axes, index, window), Encoding().with_nodata(nodata))
