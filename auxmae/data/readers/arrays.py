"""Arrays that do not say what their axes mean: which array holds the image, and which axis is which.

Axes are letters N (images), C (channels), H, W; axes stored as one go in parentheses, slowest first: "C(WH)" is bands by
column-major pixels, as MATLAB flattens an image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.errors import DataError

Shapes = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Axes:
    """How a stored array becomes (N, C, H, W): `stored` letters with flattened axes split, `shape` of that."""

    stored: str
    shape: tuple[int, ...]
    flattened: bool

    def size(self, letter: str) -> int:
        return self.shape[self.stored.index(letter)] if letter in self.stored else 1


def choose_key(path: Path, arrays: Shapes, key: str | None) -> str:
    """The array that holds the image: the named one, the only one, or the only one that can be an image cube.

    Raises:
        DataError: none, or several; they are listed.
    """
    listed = ", ".join(f"{name} {' × '.join(map(str, shape))}" for name, (shape, _) in arrays.items())
    if key is not None:
        if key not in arrays:
            raise DataError(f"{path}: no array {key!r}; it holds {listed or 'none'}", hint="set data.key to one of them")
        return key
    numeric = {name: shape for name, (shape, kind) in arrays.items() if np.dtype(kind).kind in "uifb" and len(shape) >= 2}
    if len(numeric) == 1:
        return next(iter(numeric))
    cubes = [name for name, shape in numeric.items() if len(shape) in (3, 4) and min(shape[-2:]) > 1]
    if len(cubes) == 1 and all(
        len(shape) < 3 and np.prod(shape) * 2 <= np.prod(numeric[cubes[0]]) for name, shape in numeric.items() if name != cubes[0]
    ):
        return cubes[0]
    if not numeric:
        raise DataError(f"{path}: no array that can be an image; it holds {listed or 'nothing'}", hint="set data.key")
    largest = max(numeric, key=lambda name: int(np.prod(numeric[name])))
    raise DataError(
        f"{path}: which array is the image? It holds {listed}", hint=f'set data.key, for example data.key="{largest}"'
    )


def resolve_axes(path: Path, shape: tuple[int, ...], options: ReadOptions, arrays: Shapes | None = None) -> Axes:
    """What the axes of an array mean: as the settings say, or inferred where only one reading is plausible.

    Three axes: the channels are first or last, and they are that axis which is smaller than both others; four axes: images
    come first, and the channels are next or last by the same rule.  Anything else is asked for.

    Raises:
        DataError: ambiguous, or axes that do not fit the shape.
    """
    text = f"{' × '.join(map(str, shape))}"
    if options.axes is not None:
        return _given(path, shape, options)
    if len(shape) == 2:
        proposals = _square_hint(shape, arrays)
        raise DataError(
            f"{path}: an array of {text} is bands by pixels, or one channel",
            hint=f'set data.axes = "C(WH)" (column-major, as MATLAB stores) or "C(HW)" (row-major) with data.size = {proposals}, '
            'or data.axes = "HW" for one channel',
        )
    if len(shape) in (3, 4):
        last = shape[-3:]
        prefix = "N" if len(shape) == 4 else ""
        if last[0] < min(last[1], last[2]):
            return Axes(prefix + "CHW", shape, False)
        if last[2] < min(last[0], last[1]):
            return Axes(prefix + "HWC", shape, False)
        raise DataError(
            f"{path}: which axis of {text} holds the channels?",
            hint=f'set data.axes, for example data.axes = "{prefix}HWC" or "{prefix}CHW"',
        )
    raise DataError(f"{path}: an array of {text} is no image", hint="set data.key and data.axes")


def _square_hint(shape: tuple[int, ...], arrays: Shapes | None) -> str:
    for other, _ in (arrays or {}).values():
        if len(other) in (2, 3) and other[0] * other[1] in shape and other[0] > 1 and other[1] > 1 and other != shape:
            return f"[{other[0]}, {other[1]}]"
    return "[HEIGHT, WIDTH]"


def _given(path: Path, shape: tuple[int, ...], options: ReadOptions) -> Axes:
    axes = options.axes or ""
    tokens = re.findall(r"\([NCHW]+\)|[NCHW]", axes)
    letters = "".join(tokens).replace("(", "").replace(")", "")
    if "".join(tokens) != axes or len(set(letters)) != len(letters) or not {"H", "W"} <= set(letters):
        raise DataError(
            f"{path}: data.axes = {axes!r} is no axis order",
            hint='use each of H and W once, with C and N where they are: "HWC", "NCHW", "C(WH)"',
        )
    if len(tokens) != len(shape):
        raise DataError(
            f"{path}: data.axes = {axes!r} has {len(tokens)} axes, the array {len(shape)} ({' × '.join(map(str, shape))})"
        )
    full: list[int] = []
    for token, length in zip(tokens, shape, strict=True):
        if len(token) == 1:
            full.append(length)
            continue
        if sorted(token[1:-1]) != ["H", "W"]:
            raise DataError(f"{path}: only H and W can be stored as one axis, not {token}")
        if options.size is None:
            raise DataError(
                f"{path}: data.axes = {axes!r} stores {length} pixels as one axis",
                hint="set data.size = [HEIGHT, WIDTH]",
            )
        if options.size[0] * options.size[1] != length:
            raise DataError(
                f"{path}: data.size = {list(options.size)} is {options.size[0] * options.size[1]} pixels, the array has {length}"
            )
        full.extend(options.size[0] if letter == "H" else options.size[1] for letter in token[1:-1])
    return Axes(letters, tuple(full), "(" in axes)


def cut(array: NDArray[Any], axes: Axes, index: int, window: Window | None) -> NDArray[Any]:
    """(C, h, w) of image `index` from an array (or a lazy one with `shape` and slicing); only what is needed is read."""
    whole = window or Window(0, 0, axes.size("H"), axes.size("W"))
    if axes.flattened:
        # The pixels of a window are scattered along the flat axis; such arrays are small enough to be read whole.
        array = np.asarray(array[...]).reshape(axes.shape)
    chosen = {
        "N": slice(index, index + 1),
        "C": slice(None),
        "H": slice(whole.top, whole.top + whole.height),
        "W": slice(whole.left, whole.left + whole.width),
    }
    part = np.asarray(array[tuple(chosen[letter] for letter in axes.stored)])
    order = [axes.stored.index(letter) for letter in "NCHW" if letter in axes.stored]
    part = part.transpose(order)
    if "N" in axes.stored:
        part = part[0]
    return part if "C" in axes.stored else part[None]


def to_image(
    pixels: NDArray[Any],
    nodata: float | None,
    names: tuple[str, ...] | None = None,
    wavelengths: tuple[float, ...] | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> MultiChannelImage:
    """Stored pixels (C, h, w) → float32 with a validity mask."""
    mask = np.isfinite(pixels) if pixels.dtype.kind == "f" else np.ones(pixels.shape, bool)
    if nodata is not None and np.isfinite(nodata):
        mask &= pixels != nodata
    if valid is not None:
        mask &= valid
    return MultiChannelImage(np.where(mask, pixels, 0).astype(np.float32), mask, names, wavelengths)


def array_file(
    path: Path,
    key: str,
    arrays: Shapes,
    options: ReadOptions,
    read: Callable[[int, Window | None], MultiChannelImage],
    axes: Axes,
    labels: NDArray[Any] | None = None,
) -> ImageFile:
    """The ImageFile of an array whose axes are known."""
    shape, kind = arrays[key]
    notices = []
    if options.axes is None:
        notices.append(
            f"{path.name}: array {key} of {' × '.join(map(str, shape))} is read as {axes.stored}; set data.axes if that is wrong"
        )
    fits = labels is not None and labels.ndim == 1 and labels.shape[0] == axes.size("N") and labels.dtype.kind in "iu"
    return ImageFile(
        path,
        axes.size("N"),
        axes.size("C"),
        axes.size("H"),
        axes.size("W"),
        np.dtype(kind),
        read,
        labels=np.asarray(labels, np.int64) if fits else None,
        notices=tuple(notices),
    )


LABEL_NAMES = ("y", "label", "labels", "target", "targets")


def label_key(arrays: Shapes, count: int) -> str | None:
    """The one-dimensional integer array of N entries that is called like labels, if there is just one."""
    found = [
        name
        for name, (shape, kind) in arrays.items()
        if name.rsplit("/", 1)[-1].lower() in LABEL_NAMES
        and np.dtype(kind).kind in "iu"
        and shape in ((count,), (count, 1), (1, count))
    ]
    return found[0] if len(found) == 1 and count > 1 else None
