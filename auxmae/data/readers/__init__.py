"""One reader per format, chosen by suffix; each returns an `ImageFile`.

`.tif` is read by tifffile where the file's own axes say more than GDAL would see (OME, ImageJ, or pages as channels), by
rasterio elsewhere.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, ReadOptions
from auxmae.data.plates import is_group
from auxmae.data.readers.arrays import as_text
from auxmae.data.readers.axes import Axes, Shapes
from auxmae.data.readers.encoding import Encoding, real_numbers
from auxmae.data.readers.envi import DATA_SUFFIXES, HEADER, has_header
from auxmae.errors import AuxMAEError, DataError, MissingDependencyError, ResourceError


@dataclass(frozen=True)
class Reader:
    """Where a format's opener lives, which package it needs, and which extra brings that package."""

    module: str
    package: str
    extra: str | None = None


_TIFF = Reader("tiff", "tifffile")
_GDAL = Reader("geotiff", "rasterio")
_NUMPY = Reader("numpy_files", "numpy")
_HDF5 = Reader("hdf5", "h5py")
_PICTURE = Reader("picture", "PIL")
READERS: dict[str, Reader] = {
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".hdr": _GDAL,
    ".img": _GDAL,
    ".jp2": _GDAL,
    ".npy": _NUMPY,
    ".npz": _NUMPY,
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".he5": _HDF5,
    ".nc": _HDF5,
    ".nc4": _HDF5,
    ".mat": Reader("matlab", "scipy"),
    ".zarr": Reader("zarr_store", "zarr", "zarr"),
    ".png": _PICTURE,
    ".jpg": _PICTURE,
    ".jpeg": _PICTURE,
}
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_VECTORS = frozenset({".geojson", ".shp", ".gpkg", ".kml"})
# Tables of labels, as spreadsheets and data frames are stored.
_SHEETS = frozenset({".xlsx", ".xls", ".ods", ".parquet", ".feather"})
_MICROSCOPES = frozenset({".czi", ".lif", ".nd2", ".oib", ".oif", ".vsi", ".svs", ".ndpi", ".mrxs"})
# What no file is to blame for, and what to do about it.
_RESOURCES = {
    errno.EMFILE: "raise the number of open files: ulimit -n",
    errno.ENFILE: "close other programs, or raise the system's number of open files",
    errno.ENOMEM: "free some memory, or use fewer data.workers",
    errno.EACCES: "check who may read it",
    errno.EPERM: "check who may read it",
    errno.EIO: "check the disk or the connection to it",
}
# Python's words for a package of which only a part could be imported.
_HALF_IMPORTED = re.compile(r"(partially initialized )?module '(\w+)[\w.]*' has no attribute")
# What a pointer of Git LFS starts with.
_POINTER = b"version https://git-lfs"
# Characters of a path in the message that it is too long.
_SHOWN = 100
ARRAY_SUFFIXES = frozenset({".npy", ".npz", ".h5", ".hdf5", ".he5", ".nc", ".nc4", ".mat", ".zarr"})


def supported_suffixes() -> tuple[str, ...]:
    """The file name endings that can be read whatever lies beside the file."""
    return tuple(READERS)


def is_readable(path: Path) -> bool:
    """Whether the name is one that can be read: by its suffix, or as the data of an ENVI header beside it."""
    return _suffix(path) in READERS


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.name.lower().endswith(".zarr.zip") or is_group(path):
        return ".zarr"
    return HEADER if suffix in DATA_SUFFIXES and not path.is_dir() and has_header(path) else suffix


def export_first(path: Path) -> str:
    """What to do with a microscope's own format, behind what is supported; empty for any other."""
    microscope = path.suffix.lower() in _MICROSCOPES
    return f"; save {path.suffix.lower()} as OME-TIFF first, by the microscope's program, Fiji or bfconvert" if microscope else ""


def _reader(path: Path) -> Any:
    suffix = _suffix(path)
    if suffix not in READERS:
        kind = f"{suffix} without an ENVI header beside it" if suffix in DATA_SUFFIXES[1:] else suffix or "a file without suffix"
        vector = "; shapes are to be drawn on the image's grid first, by gdal_rasterize for one" * (suffix in _VECTORS)
        table = "; of tables those in CSV" * (suffix in _SHEETS)
        raise DataError(
            f"{path}: no reader for {kind}", hint=f"supported are {', '.join(READERS)}{vector}{table}{export_first(path)}"
        )
    reader = READERS[suffix]
    try:
        importlib.import_module(reader.package)
    except ModuleNotFoundError as error:
        if error.name != reader.package:
            raise
        extra = f"auxmae[{reader.extra}]" if reader.extra else reader.package
        raise MissingDependencyError(
            f"{path}: reading {suffix} needs {reader.package}, which is not installed", hint=f"pip install '{extra}'"
        ) from error
    return importlib.import_module(f"auxmae.data.readers.{reader.module}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a format's library raises about a file into an error that names the file.

    Raises:
        DataError: the file is broken, or of another kind.
        ResourceError: files, memory or permission are lacking, or a package cannot be loaded: no fault of the file.
        MissingDependencyError: a package is not installed.
    """
    try:
        yield
    except AuxMAEError:
        raise
    except MemoryError as error:
        raise ResourceError(
            f"{path}: too large for memory",
            hint="store it in a format that is read by windows, such as a tiled GeoTIFF",
        ) from error
    # The libraries raise many unrelated types for a broken file (struct.error, KeyError, zlib.error, their own).
    except Exception as error:
        if "imagecodecs" in str(error):
            raise MissingDependencyError(
                f"{path}: its compression needs imagecodecs, which is not installed", hint="pip install 'auxmae[codecs]'"
            ) from error
        refused = _refused(path, error)
        if refused is not None:
            raise refused from error
        # GDAL's own words stand in the exception behind rasterio's.
        told = error.__cause__ or error.__context__ if "previous exception" in str(error) else error
        reason = (str(told or error).splitlines() or [""])[0][:200] or type(error).__name__
        hint = "is it complete, and of the kind that its suffix says?"
        if "missing codec" in reason:
            hint = "GDAL lacks its compression: write it anew with another one, such as Deflate"
        if not _is_utf8(path):
            hint = "rename it: its name is not UTF-8"
        elif _is_pointer(path):
            hint = "it only says where Git LFS has the file: git lfs pull"
        raise DataError(f"{path}: cannot be read: {reason}", hint=hint) from error


def _refused(path: Path, error: BaseException) -> ResourceError | None:
    """What the machine lacks, where that is behind an exception or one that led to it."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    for one in chain:
        # GDAL, HDF5 and the loader of shared libraries give the system's words, without its number.
        number = one.errno if isinstance(one, OSError) else None
        codes = [code for code in _RESOURCES if number == code or os.strerror(code).lower() in str(one).lower()]
        if codes:
            return ResourceError(f"{path}: {os.strerror(codes[0]).lower()}", hint=_RESOURCES[codes[0]])
    for one in chain:
        half = _HALF_IMPORTED.match(str(one)) if isinstance(one, AttributeError) else None
        if half or isinstance(one, ImportError):
            what = half[2] if half else getattr(one, "name", None) or "a package"
            return ResourceError(
                f"{path}: {what} cannot be loaded: {(str(one).splitlines() or [''])[0][:200]}",
                hint="is it installed whole? too few open files (ulimit -n) prevent it too",
            )
    return None


def _is_utf8(path: Path) -> bool:
    """Whether a name's bytes are UTF-8, as many libraries expect."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in its place until Git LFS has fetched it."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def path_exists(path: Path) -> bool:
    """Whether there is such a file or folder.

    Raises:
        DataError: a name that is too long.
        ResourceError: a folder that may not be looked into.
    """
    try:
        return path.exists()
    except OSError as error:
        refused = _refused(Path(str(path)[:_SHOWN]), error)
        raise refused or DataError(f"{str(path)[:_SHOWN]}: cannot be opened: {error.strerror}", hint="check the path") from error


def open_image(path: Path, options: ReadOptions = ReadOptions()) -> ImageFile:  # noqa: B008 (immutable)
    """Reads a file's header.

    Args:
        path: the file, or the folder of a Zarr store.
        options: for files that do not say enough about themselves.

    Raises:
        DataError: unreadable, ambiguous, or empty.
        MissingDependencyError: the format's library is not installed.
        ResourceError: no fault of the file: see `reading`.
    """
    path = Path(path)
    if not path_exists(path):
        raise DataError(f"{path}: there is no such file")
    with reading(path):
        if path.is_dir() and _suffix(path) != ".zarr":
            raise DataError(f"{path}: is a folder, neither a file nor a Zarr array or group")
        module = _reader(path)
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    with reading(path):
        file: ImageFile = module.open_file(path, options)
    if min(file.count, file.channels, file.height, file.width) < 1:
        raise DataError(f"{path}: holds no pixels: an axis is 0 ({file.count} × {file.channels} × {file.height} × {file.width})")
    if file.dtype.kind not in "uifb":
        raise DataError(f"{path}: pixels of type {file.dtype} are not supported", hint=real_numbers(str(file.dtype)))
    return file


def list_arrays(path: Path, key: str | None = None) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → (shape, type) of every array of numbers or text in an npy, npz, HDF5, MATLAB or Zarr file.

    Args:
        path: the file.
        key: the name that an array goes by where it has several, as HDF5's links give it; None: its own.

    Raises:
        DataError: unreadable.
    """
    with reading(path):
        module = _reader(path)
        several = key is not None and module.__name__.endswith((".hdf5", ".matlab"))
        arrays: dict[str, tuple[tuple[int, ...], str]] = module.list_arrays(path, *([[key]] if several else []))
    return arrays


def _only(arrays: Shapes) -> str | None:
    """The name of the only array, of numbers where there are any; None: there are several."""
    numbers = [name for name, (_, kind) in arrays.items() if np.dtype(kind).kind in "uifbc"]
    return next(iter(numbers or arrays)) if len(numbers or arrays) == 1 else None


def array_meaning(path: Path, key: str | None = None) -> tuple[Axes | None, Encoding]:
    """What a file says of the array that `read_array` reads: its axes by their names, else None, and which of its numbers mean
    "missing"; npy, npz and MATLAB files say neither.
    """
    module = _reader(path)
    with reading(path):
        return module.meaning(path, key or _only(list_arrays(path))) if hasattr(module, "meaning") else (None, Encoding())


def read_array(path: Path, key: str | None = None, options: ReadOptions | None = None) -> NDArray[Any]:
    """One whole array of an npy, npz, HDF5, MATLAB or Zarr file, numbers as they are stored; without a key the only one, of
    numbers where there are any.

    Raises:
        DataError: unreadable, no such array, several and no key, or not all of one that holds text is text.
    """
    if _suffix(path) not in ARRAY_SUFFIXES:
        raise DataError(f"{path}: holds no named arrays", hint=f"expected one of {', '.join(sorted(ARRAY_SUFFIXES))}")
    module = _reader(path)
    key = key or (options.key if options else None)
    arrays = list_arrays(path, key)
    key = key or _only(arrays)
    if key not in arrays:
        listed = ", ".join(f"{name} {shape}" for name, (shape, _) in arrays.items()) or "none"
        problem = "say which array" if key is None else f"no array {key!r}"
        raise DataError(f"{path}: {problem}; it holds {listed}", hint=f"write it as {path}:NAME")
    with reading(path):
        array: NDArray[Any] = module.load(path, key)
    return as_text(array, f"{path}:{key}") if array.dtype.kind in "USTO" else array
