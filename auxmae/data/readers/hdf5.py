"""HDF5 files, and MATLAB's v7.3 files, which are HDF5 with the axes in reverse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import reading
from auxmae.data.readers.arrays import array_file, described_names
from auxmae.data.readers.axes import Axes, Shapes, cut, from_names
from auxmae.data.readers.encoding import Encoding, cf_encoding, to_image, without_missing
from auxmae.errors import DataError, MissingDependencyError

_CHAR, _CELL = b"char", b"cell"


class _ColumnMajor:
    """A data set in MATLAB's order of axes: MATLAB stores the first axis fastest, and HDF5 names the slowest first."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[Any]:
        return np.asarray(self.dataset[index[::-1]]).T


def list_arrays(path: Path, called: Collection[str] = (), matlab: bool = False) -> Shapes:
    """Path inside the file → (shape, type) of every data set of numbers or text, those that links lead to among them.

    Args:
        path: the file.
        called: names that a data set of several goes by; it is listed once.
        matlab: give shapes in MATLAB's order.
    """
    return _listed(path, called, matlab)[0]


def _listed(path: Path, called: Collection[str], matlab: bool) -> tuple[Shapes, list[Path]]:
    """`list_arrays`, and the other files that links lead to."""
    import h5py

    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def visit(name: str, node: Any) -> None:
        # "#refs#" holds what MATLAB's cells point to.
        if not isinstance(node, h5py.Dataset) or name.startswith("#"):
            return
        try:
            shape, dtype = node.shape, node.dtype
        except TypeError:
            return  # a type that numpy does not have
        if shape is None or "MATLAB_empty" in node.attrs:
            return
        own = node.attrs.get("MATLAB_class")
        if own == _CHAR:
            # MATLAB's text is an array of characters, whose last axis runs along the text.
            found[name] = (shape[:0:-1], f"<U{shape[0]}")
        elif dtype.kind in "uifbcS" or own == _CELL or h5py.check_string_dtype(dtype) is not None:
            found[name] = (shape[::-1] if matlab else shape, dtype.str)

    _refuse_classic(path)
    with h5py.File(path, "r") as file:
        others = _visit_once(file, called, visit)
    return found, others


def _visit_once(file: Any, called: Collection[str], visit: Callable[[str, Any], None]) -> list[Path]:
    """Calls visit(name, node) for every group and data set: by a name in `called`, else by its own, else by that of a link to it.

    Links may lead to other files, which are returned, or in circles; those that lead to nothing are passed over.
    """
    import h5py

    # What links lead to is kept open: the number of a file that is closed may become another's.
    seen, links, held = {_identity(file["/"])}, list[str](), list[Any]()

    def see(name: str, node: Any) -> None:
        if (identity := _identity(node)) not in seen:
            seen.add(identity)
            visit(name, node)

    def note(name: str, link: Any) -> None:
        if not isinstance(link, h5py.HardLink):
            links.append(name)

    for name in called:
        if isinstance(node := _found(file, name), h5py.Dataset):
            held.append(node)
            see(name, node)
    file.visititems(see)
    file.visititems_links(note)
    for name in links:  # which grow
        node = _found(file, name)
        if node is None or _identity(node) in seen:
            continue
        held.append(node)
        see(name, node)
        if isinstance(node, h5py.Group):
            node.visititems(lambda below, one, above=name: see(f"{above}/{below}", one))
            node.visititems_links(lambda below, link, above=name: note(f"{above}/{below}", link))
    return sorted({Path(node.file.filename) for node in held} - {Path(file.filename)})


def _identity(node: Any) -> tuple[int, int]:
    """Number of the file, and place in it, of a group or data set, by which it is the same under any name."""
    import h5py

    told = h5py.h5o.get_info(node.id)
    return told.fileno, told.addr


def _found(file: Any, name: str) -> Any:
    """What a name leads to; None: nothing."""
    try:
        return file[name]
    except (KeyError, OSError, RuntimeError, ValueError):  # RuntimeError: of links that lead to themselves
        return None


def _refuse_classic(path: Path) -> None:
    """Raises DataError for netCDF's formats before version 4, which are no HDF5."""
    with path.open("rb") as file:
        head = file.read(3)
    if head == b"CDF":
        raise DataError(f"{path}: is netCDF-3, which is not read", hint="write it as netCDF-4: nccopy -k nc4 OLD.nc NEW.nc")


@contextmanager
def _dataset(path: Path, key: str) -> Iterator[Any]:
    import h5py

    # Opened for every read: handles neither pickle nor survive a fork.
    with h5py.File(path, "r") as file:
        try:
            yield file[key]
        except OSError as error:
            lacking = _lacking_filters(file[key])
            if not lacking:
                raise
            raise MissingDependencyError(
                f"{path}: {key} is compressed by HDF5's filter {', '.join(lacking)}, which is not installed",
                hint="pip install hdf5plugin, and export HDF5_PLUGIN_PATH=$(python -c 'import hdf5plugin; "
                "print(hdf5plugin.PLUGIN_PATH)')",
            ) from error


def _lacking_filters(dataset: Any) -> list[str]:
    """The filters that a data set's chunks have gone through and HDF5 does not find, by their numbers."""
    import h5py

    made = dataset.id.get_create_plist()
    numbers = [made.get_filter(place)[0] for place in range(made.get_nfilters())]
    return [str(number) for number in numbers if not h5py.h5z.filter_avail(number)]


def load(path: Path, key: str, matlab: bool = False) -> NDArray[Any]:
    """One whole array; of a cell its texts, and its other entries as arrays."""
    with _dataset(path, key) as dataset:
        own = dataset.attrs.get("MATLAB_class")
        array = np.asarray(dataset[...])
        if own == _CELL:
            array = _filled(array.shape, [_entry(dataset.file[place]) for place in array.reshape(-1)])
    array = array.T if matlab else array
    return _joined(array) if own == _CHAR else array


def _entry(dataset: Any) -> Any:
    """What an entry of a cell holds: a text, or an array."""
    if dataset.attrs.get("MATLAB_class") != _CHAR:
        return dataset[...]
    return "" if "MATLAB_empty" in dataset.attrs else "".join(_joined(np.asarray(dataset[...]).T).tolist())


def _joined(characters: NDArray[Any]) -> NDArray[Any]:
    """(…, length) code numbers of characters → (…) text."""
    rows = characters.reshape(-1, characters.shape[-1]).tolist()
    return _filled(characters.shape[:-1], ["".join(map(chr, row)) for row in rows])


def _filled(shape: tuple[int, ...], values: Sequence[Any]) -> NDArray[Any]:
    """An array of objects, which numpy is not to make one array of."""
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array.reshape(shape)


def open_file(path: Path, options: ReadOptions, matlab: bool = False) -> ImageFile:
    """Opens an array of one or N images; windows are read, not the whole."""
    read = partial(_read, path, options.nodata, matlab)
    called = [name for name in (options.key, options.plane_key) if name]
    known, described = partial(_known, path), partial(_described, path)
    labels = partial(load, path, matlab=True) if matlab else partial(_labels, path)
    arrays, others = _listed(path, called, matlab)
    file = array_file(path, arrays, options, labels, read, known, described)
    return replace(file, parts=(path, *others)) if others else file


def _labels(path: Path, key: str) -> NDArray[Any]:
    return without_missing(load(path, key), meaning(path, key)[1])


def meaning(path: Path, key: str) -> tuple[Axes | None, Encoding]:
    """The axes and the encoding that an array's attributes and dimensions tell."""
    with _dataset(path, key) as dataset:
        return _named_axes(path, dataset), _encoding(dataset)


def _known(path: Path, key: str, notices: list[str]) -> Axes | None:
    with _dataset(path, key) as dataset:
        return _named_axes(path, dataset, notices)


def _named_axes(path: Path, dataset: Any, notices: list[str] | None = None) -> Axes | None:
    """Axes by the labels of the dimensions, or by the scales attached to them, as netCDF does; MATLAB has neither."""
    names = [dimension.label or (dimension[0].name.split("/")[-1] if len(dimension) else None) for dimension in dataset.dims]
    return from_names(path, names, dataset.shape, notices)


def _described(path: Path, key: str, count: int) -> tuple[str, ...] | None:
    """The channels' names by attributes of the data set, of its group, or of the file."""
    with _dataset(path, key) as dataset:
        return described_names([dataset.attrs, dataset.parent.attrs, dataset.file.attrs], count)


# What netCDF fills variables with where nothing else is said (NetCDF User's Guide, "Fill Values"; netcdf.h, NC_FILL_…).  A
# variable of one byte has no such value.
_FILLS: dict[str, float] = {
    "f4": 2.0**119 * 15, "f8": 2.0**119 * 15, "i2": -(2**15) + 1, "u2": 2**16 - 1, "i4": -(2**31) + 1, "u4": 2**32 - 1,
    "i8": -(2**63) + 2, "u8": 2**64 - 2,
}  # fmt: skip


def _encoding(dataset: Any) -> Encoding:
    """By the attributes; where they name no missing value, netCDF's own, which HDF5 then has as the data set's fill value."""
    attributes, default = dataset.attrs, _FILLS.get(dataset.dtype.str[1:])
    named = "_FillValue" in attributes or "missing_value" in attributes
    if default is None or named or dataset.fillvalue != default:
        return cf_encoding(attributes)
    return cf_encoding({**attributes, "_FillValue": default})


def _read(
    path: Path, nodata: float | None, matlab: bool, key: str, axes: Axes, index: int, window: Window | None
) -> MultiChannelImage:
    with reading(path), _dataset(path, key) as dataset:
        encoding = _encoding(dataset).with_nodata(nodata)
        return to_image(cut(_ColumnMajor(dataset) if matlab else dataset, axes, index, window), encoding)
