"""What the axes of a stored array mean, and how a window of an image is cut from it.

Axes are letters N (images), C (channels), H, W; axes stored as one go in parentheses, slowest first: "C(WH)" is bands by
column-major pixels, as MATLAB flattens an image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ReadOptions, Window
from auxmae.errors import DataError

Shapes = Mapping[str, tuple[tuple[int, ...], str]]

# Channels are told from rows and columns without asking where there are at most a quarter as many.
_CLEAR = 4
UNIT = "1"


@dataclass(frozen=True)
class Axes:
    """How a stored array becomes (N, C, H, W).

    Attributes:
        tokens: for each stored axis its letter, two letters where it holds two axes (slowest first), or "1" for an
            axis of length one that means nothing.
        sizes: length of each letter, in the order of the tokens.
    """

    tokens: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def letters(self) -> str:
        """The letters without the axes of length one."""
        return "".join(token for token in self.tokens if token != UNIT)

    def size(self, letter: str) -> int:
        """Length of an axis; 1 where it is not stored."""
        return self.sizes[self.letters.index(letter)] if letter in self.letters else 1

    def __str__(self) -> str:
        return "".join(token if len(token) == 1 else f"({token})" for token in self.tokens if token != UNIT)


def times(shape: tuple[int, ...]) -> str:
    """A shape for people: 13 × 64 × 64."""
    return " × ".join(map(str, shape)) or "one number"


def resolve_axes(path: Path, shape: tuple[int, ...], options: ReadOptions, arrays: Shapes | None = None) -> Axes:
    """What the axes of an array mean: as the settings say, or inferred where only one reading is plausible.

    The settings may name all axes, or all but those of length one, which mean nothing where there are more than four axes.
    Three axes: the channels are first or last, fewer than the rows and the columns, and either these are equal or the
    channels at most a quarter of both; or the channels are that axis which alone is as long as the list of configured
    names; or only one reading has the rows and columns of the label map, or of another array of the file with two axes.
    Four axes: images come first, and the rest is as for three.  Anything else is asked for.

    Raises:
        DataError: ambiguous, or axes that do not fit the shape.
    """
    if options.axes is not None:
        return _given(path, shape, options, arrays)
    stored, shape = shape, lettered(shape)
    # Beside its label map a scene can only be read so that both have the same rows and columns.
    plane = options.plane or (arrays or {}).get(options.plane_key or "", ((), ""))[0][:2]
    known = _beside(shape, {plane}) if plane else None
    planes: Collection[tuple[int, ...]] = {other for other, _ in (arrays or {}).values() if len(other) == 2 and min(other) > 1}
    guess = known or guess_axes(shape, options.channels) or _beside(shape, planes)
    if guess is not None:
        return _spread(_over(tuple(guess), stored), stored)
    if len(shape) == 2:
        raise DataError(
            f"{path}: an array of {times(shape)} is bands by pixels, or one channel",
            hint=f'set {flat_settings(path, shape, arrays)}; or data.axes = "HW" for one channel',
        )
    if len(shape) in (3, 4):
        unlike = plane and len(shape) == 3 and tuple(plane) not in {shape[:2], shape[1:], (shape[0], shape[2])}
        labelled = f" (its labels are {times(plane)} px: none leaves such an image)" if unlike else ""
        asked = f"which axis of {times(stored)} holds the channels?{labelled}"
        raise DataError(f"{path}: {asked}", hint=f"set {axes_settings(shape)}")
    raise DataError(
        f"{path}: an array of {times(stored)} is no image",
        hint="2 to 4 axes longer than one can be read" + "; choose another array with data.key" * (len(arrays or ()) > 1),
    )


def lettered(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths of the axes that have letters: all of four and fewer, of more those longer than one."""
    return shape if len(shape) <= 4 else tuple(size for size in shape if size != 1)


def _over(tokens: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
    """Tokens of all axes from those of all that are longer than one; as they are where they are not as many."""
    if len(tokens) == len(shape) or len(tokens) != sum(size != 1 for size in shape):
        return tokens
    rest = iter(tokens)
    return tuple(UNIT if size == 1 else next(rest) for size in shape)


def _spread(tokens: tuple[str, ...], shape: tuple[int, ...]) -> Axes:
    """The axes of a shape by a token each, none of which stands for two."""
    return Axes(tokens, tuple(size for token, size in zip(tokens, shape, strict=True) if token != UNIT))


def guess_axes(shape: tuple[int, ...], channels: int | None = None) -> str | None:
    """The axis letters of a shape where only one reading is plausible, else None."""
    if len(shape) not in (3, 4):
        return None
    prefix, (first, middle, last) = "N" * (len(shape) - 3), shape[-3:]
    found = [place for place, size in enumerate(shape) if size == channels]
    if len(found) == 1:
        if len(shape) == 3:
            return ("CHW", "HCW", "HWC")[found[0]]
        # Of four axes another may hold the images: equal sides tell which ones are rows and columns.
        if found[0] == 1 and middle == last:
            return "NCHW"
        if found[0] == 3 and first == middle:
            return "NHWC"
    if _clear(first, middle, last):
        return prefix + "CHW"
    return prefix + "HWC" if _clear(last, first, middle) else None


def _beside(shape: tuple[int, ...], planes: Collection[tuple[int, ...]]) -> str | None:
    """The axis letters of three axes, in the one reading whose rows and columns are those of a map."""
    if len(shape) != 3:
        return None
    first, middle, last = shape
    readings = {"CHW": (middle, last), "HCW": (first, last), "HWC": (first, middle)}
    found = [letters for letters, plane in readings.items() if plane in planes]
    if len(found) == 2 and "HCW" in found:
        found.remove("HCW")  # rows of bands: rare
    return found[0] if len(found) == 1 else None


def _clear(channels: int, height: int, width: int) -> bool:
    least = min(height, width)
    return channels < least and (height == width or _CLEAR * channels <= least)


def axes_settings(shape: tuple[int, ...]) -> str:
    """The two likeliest axis orders of an array of 3 or 4 axes, each with what it would mean."""
    prefix = "N" * (len(shape) - 3)
    # A square image is likelier than one that is not, and fewer channels than more.
    ranked = sorted(
        (prefix + "CHW", prefix + "HWC"),
        key=lambda order: (shape[order.index("H")] != shape[order.index("W")], shape[order.index("C")]),
    )
    if len(shape) == 3 and _clear(shape[1], shape[0], shape[2]):
        ranked = ["HCW", *ranked]
    if len(shape) == 4 and _clear(shape[2], shape[0], shape[1]):
        ranked = ["HWCN", *ranked]
    choices = []
    for order in ranked[:2]:
        sizes = dict(zip(order, shape, strict=True))
        images = f"{sizes['N']} images, " if "N" in sizes else ""
        choices.append(f'"{order}" ({images}{sizes["C"]} channels of {sizes["H"]} × {sizes["W"]} px)')
    text = f"data.axes = {' or '.join(choices)}"
    # Many more slices than a side: single-channel images in a row are likelier than so many channels.
    if len(shape) == 3 and shape[0] > max(shape[1:]):
        text += f' or "NHW" ({shape[0]} images of one channel)'
    elif len(shape) == 3 and shape[2] > max(shape[:2]):
        text += f' or "HWN" ({shape[2]} images of one channel)'
    return text


def flat_settings(path: Path, shape: tuple[int, ...], arrays: Shapes | None) -> str:
    """Axes and size for an array of bands by pixels."""
    pixels, size = _flat_size(shape, arrays)
    column, row = ("C(WH)", "C(HW)") if pixels == 1 else ("(WH)C", "(HW)C")
    order = f'data.axes = "{row}" (row-major; "{column}": column-major, as MATLAB stores)'
    if path.suffix.lower() == ".mat":
        order = f'data.axes = "{column}" (column-major, as MATLAB stores; "{row}": row-major)'
    return f"{order} and {size}"


def _flat_size(shape: tuple[int, ...], arrays: Shapes | None) -> tuple[int, str]:
    """Which axis holds the pixels, and the size to set: of another array that has as many pixels, or of a square."""
    for other, _ in (arrays or {}).values():
        if len(other) in (2, 3) and other != shape and min(other[:2]) > 1 and other[0] * other[1] in shape:
            return shape.index(other[0] * other[1]), f"data.size = [{other[0]}, {other[1]}]"
    pixels = max(range(len(shape)), key=lambda axis: shape[axis])
    side = math.isqrt(shape[pixels])
    square = side > 1 and side * side == shape[pixels]
    return pixels, f"data.size = [{side}, {side}]" if square else "data.size = [HEIGHT, WIDTH]"


def missing_size(shape: tuple[int, ...], options: ReadOptions, arrays: Shapes | None) -> str | None:
    """The data.size that data.axes asks for where it is not set, else None."""
    if options.size is not None or "(" not in (options.axes or ""):
        return None
    return _flat_size(shape, arrays)[1]


def _given(path: Path, shape: tuple[int, ...], options: ReadOptions, arrays: Shapes | None) -> Axes:
    axes = options.axes or ""
    tokens = split_axes(axes)
    letters = "".join(tokens)
    if not tokens or len(set(letters)) != len(letters) or not {"H", "W"} <= set(letters):
        raise DataError(
            f"{path}: data.axes = {axes!r} is no axis order",
            hint='use each of H and W once, with C and N where they are: "HWC", "NCHW", "C(WH)"',
        )
    tokens = _over(tokens, shape)
    if len(tokens) != len(shape):
        raise DataError(f"{path}: data.axes = {axes!r} has {len(tokens)} axes, the array {len(shape)} ({times(shape)})")
    sizes: list[int] = []
    for token, length in zip(tokens, shape, strict=True):
        if token == UNIT:
            continue
        if len(token) == 1:
            sizes.append(length)
            continue
        if sorted(token) != ["H", "W"]:
            raise DataError(f"{path}: only H and W can be stored as one axis, not ({token})")
        if options.size is None:
            raise DataError(
                f"{path}: data.axes = {axes!r} stores {length} pixels as one axis",
                hint=f"set {missing_size(shape, options, arrays)}",
            )
        if options.size[0] * options.size[1] != length:
            raise DataError(
                f"{path}: data.size = {list(options.size)} is {options.size[0] * options.size[1]} pixels, the array has {length}"
            )
        sizes.extend(options.size[0] if letter == "H" else options.size[1] for letter in token)
    return Axes(tokens, tuple(sizes))


def split_axes(axes: str) -> tuple[str, ...]:
    """ "C(WH)" → ("C", "WH"); empty where it is no axis order."""
    if not re.fullmatch(r"(\([NCHW]+\)|[NCHW])+", axes):
        return ()
    return tuple(token.strip("()") for token in re.findall(r"\([NCHW]+\)|[NCHW]", axes))


def from_letters(
    path: Path, axes: str, shape: tuple[int, ...], notices: list[str], *, channels: str = "CZ", images: str = "T"
) -> Axes:
    """A format's own axis letters → N, C, H, W.

    Args:
        path: for errors.
        axes: one letter for each axis, among them Y and X.
        shape: their lengths; axes of length one mean nothing.
        notices: told of planes (Z) that are channels.
        channels: letters that hold channels, where only one axis longer than one has one of them.
        images: letters that count images.

    Raises:
        DataError: several axes of channels or of images, or letters that are neither.
    """
    several = sum(axis in channels and size > 1 for axis, size in zip(axes, shape, strict=True)) > 1
    tokens = []
    for axis, size in zip(axes, shape, strict=True):
        if axis in "YX":
            tokens.append({"Y": "H", "X": "W"}[axis])
        elif size == 1:
            tokens.append(UNIT)
        elif axis in channels and not several:
            tokens.append("C")
        else:
            tokens.append("N" if axis in images else "?")
    if "?" in tokens or tokens.count("N") > 1 or sorted(token for token in tokens if token in "HW") != ["H", "W"]:
        beside = any(axis == "C" and size > 1 for axis, size in zip(axes, shape, strict=True))
        raise DataError(
            f"{path}: its axes {axes} ({times(shape)}) are more than channels, rows and columns"
            if beside
            else f"{path}: which of its axes {axes} ({times(shape)}) holds the channels?",
            hint=_letters_hint(axes, shape)
            or "an image has channels, rows and columns: save each plane and each time in a file of its own",
        )
    if "Z" in channels and (planes := dict(zip(axes, shape, strict=True)).get("Z", 1)) > 1:
        order = "".join({"Y": "H", "X": "W", "Z": "N"}.get(axis, "") for axis in axes)
        # Where another axis counts images already, no setting makes images of planes.
        instead = "" if "N" in tokens else f'; set data.axes = "{order}" if they are images'
        notices.append(f"{path.name}: its {planes} planes (Z) are read as channels{instead}")
    return _spread(tuple(tokens), shape)


def told_against(path: Path, letters: str, found: Axes) -> list[str]:
    """A notice where the axes that are set take others for the channels than the file's own letters do."""
    # Samples of colour (S) beside channels: either may be what an image has.
    if len(letters) != len(found.tokens) or "C" not in letters or "S" in letters:
        return []
    taken = found.tokens[letters.index("C")]
    if taken == "C" or all(found.size(letter) == 1 for letter in taken):
        return []
    return [f"{path.name}: its axes are {letters}; data.axes = {str(found)!r} does not take C for the channels"]


def _letters_hint(axes: str, shape: tuple[int, ...]) -> str | None:
    """What to set where two axes are neither rows nor columns; None where no setting helps."""
    long = [axis for axis, size in zip(axes, shape, strict=True) if size > 1]
    order = "".join({"Y": "H", "X": "W"}.get(axis, "?") for axis in long)
    if sorted(order) != ["?", "?", "H", "W"]:
        return None
    first, second = (order.replace("?", letter, 1).replace("?", other) for letter, other in ("NC", "CN"))
    # Samples of colour (S) beside channels: either may be what an image has.
    if "C" in long and "S" not in long:
        # The file says itself which axis holds the channels; the other order would take these for images.
        order = "".join({"Y": "H", "X": "W", "C": "C"}.get(axis, "N") for axis in long)
        counted = next(axis for axis in long if axis not in "CYX")
        return f'set data.axes = "{order}" to make each {counted} an image; or save one, or a projection, of each file'
    return f'set data.axes = "{first}" or "{second}" (N: images, C: channels)'


# Names that files give to dimensions (the CF conventions' coordinates, and what libraries write), as axis letters.
_NAMES = {
    "Y": ("y", "lat", "latitude", "rlat", "south_north", "row", "rows", "height", "northing", "line", "lines"),
    "X": ("x", "lon", "longitude", "rlon", "west_east", "column", "columns", "col", "cols", "width", "easting"),
    "C": ("c", "band", "bands", "channel", "channels", "variable", "variables", "wavelength", "wavelengths", "spectral"),
    "T": ("t", "time", "valid_time", "n", "sample", "samples", "image", "images"),
}
# Of the air, of the sea, and of models.
_LEVELS = frozenset({
    "level", "levels", "lev", "plev", "pressure", "pressure_level", "isobaricinhpa", "altitude", "height", "depth", "model_level",
    "hybrid", "sigma", "bottom_top",
})  # fmt: skip
# Of forecasts, and of what a model gives beside each other.
_MEMBERS = frozenset({"member", "members", "ensemble", "ensemble_member", "realization", "number", "step", "lead_time"})
# Of images beside which times may be the channels.
_COUNTED = frozenset({
    "patch", "patches", "tile", "tiles", "chip", "chips", "crop", "crops", "scene", "scenes", "frame", "frames", "batch", "index",
    "id",
})  # fmt: skip
_LETTERS = {name: letter for letter, names in _NAMES.items() for name in names}


def is_place(name: str) -> bool:
    """Whether a dimension, or the array of its coordinates, is called as one along rows or columns is."""
    return _LETTERS.get(name.lower(), "") in ("X", "Y")


def axis_letter(name: str, kind: str | None) -> str:
    """The letter of an axis of OME-NGFF by its name, else by its type (versions 0.4 and 0.5, "axes" metadata); "?": unknown."""
    letter = _LETTERS.get(name.lower(), name.upper() if len(name) == 1 else "?")
    return {"channel": "C", "time": "T"}.get(kind or "", "?") if letter == "?" else letter


def from_names(path: Path, names: Sequence[str | None], shape: tuple[int, ...], notices: list[str] | None = None) -> Axes | None:
    """Axes by the names of an array's dimensions; None where they do not tell all of them.

    Beside rows and columns, and times, an axis of levels holds the channels.  So does one of another name, unless it may count
    images: it is called so, or is the longest axis, or longer than that of times and not called as members of an ensemble are.
    Axes of length one whose name says nothing, or what that of another does, mean nothing.

    Args:
        path: for notices.
        names: of each axis; None: it has none.
        shape: their lengths.
        notices: told of an axis of another name that is taken for the channels as levels are; None: it is not.
    """
    words = [(name or "").lower() for name in names]
    letters = [_LETTERS.get(word, "?") for word in words]
    if len(letters) != len(shape):
        return None
    letters = [
        UNIT if size == 1 and (letter == "?" or letters.count(letter) > 1) else letter
        for letter, size in zip(letters, shape, strict=True)
    ]
    if letters.count("Y") > 1:  # a height above the ground, where the rows are called otherwise
        letters = ["?" if word == "height" and letter == "Y" else letter for word, letter in zip(words, letters, strict=True)]
    taken = None
    if "C" not in letters and letters.count("?") == 1:
        place = letters.index("?")
        times = shape[letters.index("T")] if "T" in letters else None
        if words[place] in _LEVELS:
            letters[place] = "C"
        elif notices is not None and not _may_count_images(words[place], place, shape, times):
            letters[place], taken = "C", names[place]
    stored = [letter for letter in letters if letter != UNIT]
    if "?" in stored or len(set(stored)) != len(stored) or not {"Y", "X"} <= set(stored):
        return None
    found = _spread(tuple({"Y": "H", "X": "W", "T": "N"}.get(letter, letter) for letter in letters), shape)
    if notices is not None and taken is not None:
        notices.append(f"{path.name}: its axis {taken} is read as channels ({found}); set data.axes if that is wrong")
    return found


def _may_count_images(word: str, place: int, shape: tuple[int, ...], times: int | None) -> bool:
    """Whether an axis whose name is no letter's may count images: it is called so, or is longer than the others of its kind.

    Args:
        word: its name, in small letters.
        place: of it in the shape.
        shape: lengths of all axes.
        times: how many times lie beside it; None: no axis is one of times.
    """
    if word in {"", *_COUNTED}:
        return True
    if times is None:
        return shape.index(max(shape)) == place
    return shape[place] > times and word not in _MEMBERS and re.search("lev|depth", word) is None


def cut(array: Any, axes: Axes, index: int, window: Window | None) -> NDArray[Any]:
    """(C, h, w) of image `index` from an array, or from a lazy one that can be sliced; only what is needed is read."""
    whole = window or Window(0, 0, axes.size("H"), axes.size("W"))
    wanted = {
        UNIT: slice(0, 1),
        "N": slice(index, index + 1),
        "C": slice(0, axes.size("C")),
        "H": slice(whole.top, whole.top + whole.height),
        "W": slice(whole.left, whole.left + whole.width),
    }
    stored: list[slice] = []
    shape: list[int] = []
    within: list[slice] = []
    for token in axes.tokens:
        chosen, length = wanted[token[0]], 1
        if len(token) == 2:
            # All of the faster axis for the wanted part of the slower one is one piece of the stored axis.
            length = axes.size(token[1])
            stored.append(slice(chosen.start * length, chosen.stop * length))
        else:
            stored.append(chosen)
        if token != UNIT:
            shape.append(chosen.stop - chosen.start)
            within.append(slice(None))
        if len(token) == 2:
            shape.append(length)
            within.append(wanted[token[1]])
    part = np.asarray(array[tuple(stored)]).reshape(shape)[tuple(within)]
    part = part.transpose([axes.letters.index(letter) for letter in "NCHW" if letter in axes.letters])
    if "N" in axes.letters:
        part = part[0]
    return part if "C" in axes.letters else part[None]
