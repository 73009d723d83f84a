"""Files of named arrays: which array holds the image, and which one the labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions
from auxmae.data.readers.axes import (
    Axes,
    Shapes,
    axes_settings,
    flat_settings,
    guess_axes,
    is_place,
    lettered,
    missing_size,
    resolve_axes,
    split_axes,
    times,
)
from auxmae.data.readers.encoding import real_numbers
from auxmae.errors import DataError

LABEL_NAMES = ("y", "label", "labels", "target", "targets")
# Arrays, or attributes of an array or of a group above it, that name the channels.
CHANNEL_NAMES = ("channel_names", "channels")
# The name of an array in a file that holds one and gives it none.
ONLY = "array"
_LISTED = 8


# (name, notices) → the axes of an array that says what its own mean, and what is to be told of them; else None.
Known = Callable[[str, list[str]], Axes | None]


def _unknown(key: str, notices: list[str]) -> None:
    """Of a format whose arrays do not say what their axes mean."""


def choose_key(path: Path, arrays: Shapes, options: ReadOptions, known: Known = _unknown) -> str:
    """The array that holds the image: the named one, or the only one that can be an image cube.

    A smaller array of two axes beside one cube is a label map or the like, and that of the labels is named.  Arrays whose axes
    are `known` need no setting for them.

    Raises:
        DataError: none, or several; those that can be an image are listed, with all settings that the likeliest needs.
    """
    if options.key is not None:
        if options.key not in arrays:
            raise DataError(
                f"{path}: no array {options.key!r}; it holds {_listed(arrays) or 'none'}", hint="set data.key to one of them"
            )
        return options.key
    fitting = {
        name: shape
        for name, (shape, kind) in arrays.items()
        if np.dtype(kind).kind in "uifb" and _can_be_image(shape) and _has_axes(shape, options.axes)
    }
    if len(fitting) > 1:
        fitting.pop(options.plane_key or "", None)
    cubes = [name for name, shape in fitting.items() if len(shape) > 2]
    if len(fitting) == 1:
        return next(iter(fitting))
    if len(cubes) == 1 and all(
        np.prod(shape) * 2 <= np.prod(fitting[cubes[0]]) for name, shape in fitting.items() if name != cubes[0]
    ):
        return cubes[0]
    if not fitting:
        empty = next((name for name, (shape, _) in arrays.items() if 0 in shape), None)
        if empty is not None and len(arrays) == 1:
            raise DataError(
                f"{path}: an axis of {'its array' if empty == ONLY else f'array {empty}'} is 0 ({times(arrays[empty][0])}): it "
                "holds no pixels",
                hint="write the file anew",
            )
        odd = [np.dtype(kind) for shape, kind in arrays.values() if _can_be_image(shape) and np.dtype(kind).kind not in "uifb"]
        if odd:
            raise DataError(
                f"{path}: no array that can be an image; it holds {_listed(arrays)}, of {odd[0]}",
                hint=real_numbers(str(odd[0])),
            )
        if options.axes is not None and any(_can_be_image(shape) for shape, _ in arrays.values()):
            raise DataError(
                f"{path}: data.axes = {options.axes!r} fits none of its arrays; it holds {_listed(arrays)}",
                hint="give a letter to each axis, or to each that is longer than one",
            )
        objects = any(np.dtype(kind).kind == "O" and len(shape) == 1 for shape, kind in arrays.values())
        raise DataError(
            f"{path}: no array that can be an image; it holds {_listed(arrays) or 'nothing'}",
            hint="an image is an array of real numbers with 2 to 4 axes longer than one"
            + ", none of Python objects: store images of several sizes each in a file of its own" * objects,
        )
    likely = [name for name in fitting if not _tells_places(name, fitting[name])] or list(fitting)
    # Of two alike, one of flags is likelier whole numbers.
    likeliest = max(
        likely, key=lambda name: (math.prod(fitting[name]), len(fitting[name]), np.dtype(arrays[name][1]).kind == "f")
    )
    axes, shape = known(likeliest, []), fitting[likeliest]
    setting = f'data.key = "{likeliest}"' if axes else _settings(path, likeliest, arrays, options)
    single = len(shape) == 2 or (axes is not None and "C" not in axes.letters)
    alike, instead = [fitting[name] for name in likely].count(shape), ""
    if single and alike > 1:
        instead = "; arrays that are the channels of one image are to be stored as one array"
    elif alike > 2:
        instead = "; images are to be stored as one array of all of them, or each in a file of its own"
    raise DataError(
        f"{path}: which array is the image? It holds {_listed({name: arrays[name] for name in fitting})}",
        hint=f"set {setting}{instead}",
    )


def _can_be_image(shape: tuple[int, ...]) -> bool:
    return 2 <= sum(size > 1 for size in shape) <= 4


def _tells_places(name: str, shape: tuple[int, ...]) -> bool:
    """Whether an array is called as the coordinates of pixels are, and has no more axes than these.

    Y and X may be anything, and a height is that of what is seen.
    """
    called = name.rsplit("/", 1)[-1]
    return sum(size > 1 for size in shape) <= 2 and len(called) > 1 and called.lower() != "height" and is_place(called)


def _has_axes(shape: tuple[int, ...], axes: str | None) -> bool:
    return axes is None or len(split_axes(axes)) in (0, len(shape), sum(size > 1 for size in shape))


def _listed(arrays: Shapes) -> str:
    names = [f"{name} {times(shape)}" for name, (shape, _) in arrays.items()]
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _settings(path: Path, name: str, arrays: Shapes, options: ReadOptions) -> str:
    """Every setting that an array needs to be read as the image, so that one more try is enough."""
    shape, key = lettered(arrays[name][0]), f'data.key = "{name}"'
    if options.axes is not None:
        size = missing_size(shape, options, arrays)
        return f"{key} and {size}" if size else key
    if len(shape) == 2:
        return f'{key}, {flat_settings(path, shape, arrays)}; or {key} and data.axes = "HW" for one channel'
    return key if guess_axes(shape, options.channels) else f"{key} and {axes_settings(shape)}"


def as_text(array: NDArray[Any], where: str) -> NDArray[np.str_]:
    """An array of text of any kind as Python's, without the spaces that fill it up; None and NaN, for a missing text, as "".

    Raises:
        DataError: it holds something else.
    """
    texts = []
    for value in np.asarray(array).reshape(-1).tolist():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            value = ""
        if not isinstance(value, (str, bytes)):
            raise DataError(f"{where}: not all of it is text", hint="store text alone, or numbers alone")
        texts.append((value if isinstance(value, str) else value.decode("utf-8", errors="backslashreplace")).rstrip())
    return np.array(texts, dtype=np.str_).reshape(np.shape(array))


def entries_of(
    arrays: Shapes, called: Sequence[str], beside: str, kinds: str, count: int, noun: str, notices: list[str]
) -> str | None:
    """The one array of one axis that is called so and has as many entries as there are `noun`.

    Args:
        arrays: what the file holds.
        called: names, in small letters.
        beside: the image's array: of several, the one in its group is meant.
        kinds: numpy's letters of the types that it may have.
        count: of entries.
        noun: what they are of.
        notices: told why an array that is called so is not the one.
    """
    found = {
        name: math.prod(shape)
        for name, (shape, kind) in arrays.items()
        if name.rsplit("/", 1)[-1].lower() in called
        and np.dtype(kind).kind in kinds
        and shape
        and max(shape) == math.prod(shape)
        and name.strip("/") != beside.strip("/")
    }
    fitting = [name for name, size in found.items() if size == count]
    group = beside.strip("/").rpartition("/")[0]
    siblings = [name for name in fitting if name.strip("/").rpartition("/")[0] == group]
    chosen = siblings or fitting
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        notices.append(f"{' and '.join(chosen)} may both be those of the {noun}: neither is taken")
    elif found:
        sizes = ", ".join(f"{name} has {size} entries" for name, size in found.items())
        notices.append(f"{sizes}, for {count} {noun}: not taken")
    return None


def _without_coordinates(arrays: Shapes, axes: Axes) -> Shapes:
    """The arrays, but for one called y that tells where the rows lie, as one called x beside it does of the columns."""

    def tells_places(name: str) -> bool:
        before, _, called = name.rpartition("/")
        beside = f"{before}/x".lstrip("/")
        return called == "y" and [arrays.get(one, ((), ""))[0] for one in (name, beside)] == [
            (axes.size("H"),),
            (axes.size("W"),),
        ]

    return {name: array for name, array in arrays.items() if not tells_places(name)}


def _own_labels(
    path: Path, arrays: Shapes, key: str, axes: Axes, load: Callable[[str], NDArray[Any]], notices: list[str]
) -> tuple[str, NDArray[Any]] | None:
    """The name and the entries of the array that holds a label for each of N images, numbers or text.

    N may be 1, as of the last of several files; without such an axis one number may mean anything.
    """
    told, count = list[str](), axes.size("N")
    noun = "image" if count == 1 else "images"
    name = entries_of(arrays, LABEL_NAMES, key, "biufUSO", count, noun, told) if "N" in axes.letters else None
    notices.extend(f"{path.name}: labels: {text}" for text in told)
    if name is None:
        return None
    try:
        array = load(name)
        entries = array if array.dtype.kind in "biuf" else as_text(array, f"{path.name}: {name}")
    except DataError as error:
        notices.append(f"{error.message}: not taken")
        return None
    return name, entries.reshape(-1)


def _own_maps(path: Path, arrays: Shapes, key: str, axes: Axes) -> list[str]:
    """Says how arrays are used that are called like labels and hold a map of each image: by their names alone they are not."""
    size = (axes.size("H"), axes.size("W"))
    maps = [
        name
        for name, (shape, kind) in arrays.items()
        if name.rsplit("/", 1)[-1].lower() in LABEL_NAMES
        and np.dtype(kind).kind in "biuf"
        and shape in (size, (axes.size("N"), *size))
        and name != key
    ]
    return [f"{path.name}: array {name} may hold labels of the pixels: --labels :{name} uses it" for name in maps]


def _own_names(
    path: Path, arrays: Shapes, key: str, count: int, load: Callable[[str], NDArray[Any]], notices: list[str]
) -> tuple[str, ...] | None:
    """The channels' names that an array of text holds; None where none does."""
    told = list[str]()
    name = entries_of(arrays, CHANNEL_NAMES, key, "USO", count, "channels", told)
    notices.extend(f"{path.name}: {text}" for text in told)
    if name is None:
        return None
    try:
        return names_in(load(name))
    except DataError as error:
        notices.append(f"{error.message}: not taken")
        return None


def names_in(value: Any) -> tuple[str, ...] | None:
    """Names of channels from an array or an attribute; None where it holds something else."""
    try:
        names = tuple(as_text(np.asarray(value), "names").reshape(-1).tolist())
    except (DataError, ValueError):
        return None
    return names if all(names) else None


def described_names(attributes: Sequence[Mapping[str, Any]], count: int) -> tuple[str, ...] | None:
    """Names of C channels from the first of several sets of attributes that has as many; None: there are none."""
    found = (names_in(one[name]) for one in attributes for name in CHANNEL_NAMES if name in one)
    return next((names for names in found if names is not None and len(names) == count), None)


def _is_set_against(key: str, axes: Axes, known: Known) -> bool:
    """Whether axes that the user has set have rows and columns in another order than their names say."""
    try:
        named = known(key, [])
    except DataError:
        return False  # the names do not tell: therefore they are set
    return named is not None and [x for x in named.letters if x in "HW"] != [x for x in axes.letters if x in "HW"]


def array_file(
    path: Path,
    arrays: Shapes,
    options: ReadOptions,
    load: Callable[[str], NDArray[Any]],
    read: Callable[..., MultiChannelImage],
    known: Known = _unknown,
    described: Callable[[str, int], tuple[str, ...] | None] = lambda key, count: None,
) -> ImageFile:
    """The ImageFile of the array that holds the image.

    Args:
        path: the file.
        arrays: what it holds.
        options: the settings.
        load: load(name) → one whole array, for labels.  Text is of any kind that `as_text` takes.
        read: read(key, axes, index, window) → pixels; picklable.
        known: see `Known`.
        described: described(name, C) → the names that the file's attributes give the C channels of an array, else None.

    Raises:
        DataError: which array or which axes is ambiguous.
    """
    key = choose_key(path, arrays, options, known)
    shape, kind = arrays[key]
    notices = list[str]()
    axes = named = known(key, notices) if options.axes is None else None
    if axes is None:
        axes = resolve_axes(path, shape, options, arrays)
        if options.axes is None:
            which = "its array" if key == ONLY else f"array {key}"
            notices.append(f"{path.name}: {which} of {times(shape)} is read as {axes}; set data.axes if that is wrong")
    labels = _own_labels(path, _without_coordinates(arrays, axes), key, axes, load, notices)
    if options.plane_key is None:
        notices.extend(_own_maps(path, arrays, key, axes))
    channels = axes.size("C")
    names = described(key, channels) or _own_names(path, arrays, key, channels, load, notices)
    return ImageFile(
        path,
        axes.size("N"),
        channels,
        axes.size("H"),
        axes.size("W"),
        np.dtype(kind),
        partial(read, key, axes),
        names,
        labels=labels,
        notices=tuple(notices),
        guessed_axes=named is None and (options.axes is None or _is_set_against(key, axes, known)),
    )
