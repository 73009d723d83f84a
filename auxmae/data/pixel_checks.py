"""What only the pixels of an opened source tell: broken files, images without a value, copies, outliers, rounding."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auxmae.data.collection import Collection
from auxmae.data.image import ImageFile, Window, farthest, tiles
from auxmae.data.plates import store_of
from auxmae.errors import DataError

# Pixels of up to this many images are looked at when a source is opened; of more, only with allow_broken.
CHECKED_IMAGES = 2000
_CHECK_SIDE = 512
# Every integer up to this one is a float32.
_EXACT = 2**24
# An image whose largest value is beyond so many times the median image's is told of.
_FAR = 1e6
# Images whose largest values lie so many times above all others', a twentieth of them at least on either side: other units.
_APART, _CROWD = 100, 0.05


class _Look(NamedTuple):
    """What a look at an image tells: its value farthest from 0 where it was looked at, whether that was all of it, and what
    copies of it have in common, where it was.
    """

    farthest: float
    whole: bool
    digest: bytes | None


def check_pixels(collection: Collection, allow_broken: bool) -> None:
    """Leaves out images without a valid pixel, finds files that break only when pixels are read, and tells what looks odd.

    Raises:
        DataError: no image has a valid pixel; or, but for `allow_broken`, one cannot be read.
    """
    if len(collection) > CHECKED_IMAGES and not allow_broken:
        _tell_of_previews(collection)
        return
    looks: dict[int, _Look] = {}
    empty: dict[int, list[int]] = {}
    for item in range(len(collection)):
        try:
            look = _look(collection, item)
        except DataError as error:
            if not allow_broken:
                several = len(collection.files) > 1
                hint = how_to_do_without(collection.file_of(item).path, error.hint) if several else error.hint
                raise DataError(error.message, hint=hint) from error
            collection.notices.append(f"left out: {error.message}")
            continue
        if look is not None:
            looks[item] = look
            continue
        number, index = collection.items[item].tolist()
        empty.setdefault(number, []).append(index)
    for number, indices in empty.items():
        file = collection.files[number]
        where = file.path.name + (f", image {indices[0]}" if file.count > 1 else "")
        which = f"{where} and {len(indices) - 1} more of its {file.count} have" if len(indices) > 1 else f"{where} has"
        collection.notices.append(f"left out: {which} no valid pixel (all nodata, NaN, or beyond the range of float32)")
    if not looks:
        raise DataError(
            f"{collection.source}: no image has a valid pixel (all nodata, NaN, or beyond the range of float32)",
            hint="check data.nodata and the files",
        )
    _tell_of_rounding(collection, looks)
    _tell_of_copies(collection, looks)
    _tell_of_outliers(collection, looks)
    _tell_of_units(collection, looks)
    collection.items = collection.items[list(looks)]
    if collection.labels is not None:
        collection.labels = collection.labels[list(looks)]
    _tell_of_previews(collection)


def how_to_do_without(path: Path, hint: str | None) -> str:
    """What to do with one of several files that cannot be read, beside the fault's own hint where that is a mere question.

    A plate's fields have no file names to be left out by.
    """
    if hint is not None and not hint.endswith("?"):
        return hint
    store = store_of(path.parent)
    pattern = "" if store is None else f" = ['{path.relative_to(store).as_posix()}']"
    instead = f"leave it out with data.exclude{pattern} or data.allow_broken"
    return instead if hint is None else f"{hint} Else {instead}"


def _look(collection: Collection, item: int) -> _Look | None:
    """At the first window that has a valid pixel; None where none has, which only a look at all of them can tell."""
    file = collection.file_of(item)
    for window in _windows(file):
        image = collection.read(item, window)
        if image.valid.any():
            whole = image.pixels.shape[1:] == (file.height, file.width)
            return _Look(farthest(image.pixels), whole, _digest(image.pixels) if whole else None)
    return None


def _tell_of_rounding(collection: Collection, looks: Mapping[int, _Look]) -> None:
    integers = [abs(look.farthest) for item, look in looks.items() if collection.file_of(item).dtype.kind in "iu"]
    largest = max(integers, default=0.0)
    if largest > _EXACT:
        collection.notices.append(
            f"integers above {_EXACT} (here up to {largest:.4g}) are rounded to float32, to multiples of "
            f"{np.spacing(np.float32(largest)):.0f}: where smaller differences matter, subtract an offset from the files first"
        )


def _tell_of_copies(collection: Collection, looks: Mapping[int, _Look]) -> None:
    alike: dict[bytes, list[int]] = {}
    for item, look in looks.items():
        if look.digest is not None:
            alike.setdefault(look.digest, []).append(item)
    copies = [items for items in alike.values() if len(items) > 1]
    if copies:
        first, second = (collection.name_of(item) for item in copies[0][:2])
        # Settings leave out and keep together files alone.
        files = {collection.items[item, 0] for items in copies for item in items}
        in_one = any(collection.files[number].count > 1 for number in files)
        out = (
            "leave them out of the file"
            if in_one
            else "leave them out with data.exclude, or keep them together with data.group_pattern"
        )
        collection.warnings.append(
            f"{sum(map(len, copies)) - len(copies)} of {len(collection)} images are copies of others, as {second} of {first}: "
            f"held out by chance, they make a model look better than it is; {out}"
        )


def _tell_of_previews(collection: Collection) -> None:
    """Of files of one byte a pixel among others, whose values are rather those of a picture made from them."""
    files = [collection.files[number] for number in np.unique(collection.items[:, 0])]
    bytewise = [file.dtype.itemsize == 1 for file in files]
    if any(bytewise) and not all(bytewise):
        byte, wide = files[bytewise.index(True)], files[bytewise.index(False)]
        collection.warnings.append(
            f"{sum(bytewise)} of {len(bytewise)} files are stored as {byte.dtype}, such as {byte.path.name}, others as "
            f"{wide.dtype}, such as {wide.path.name}: where their values do not mean the same, leave some out with data.exclude"
        )


def _tell_of_outliers(collection: Collection, looks: Mapping[int, _Look]) -> None:
    """Of all parts, where statistics are of the training part alone."""
    typical = statistics.median(abs(look.farthest) for look in looks.values())
    far = {item: look.farthest for item, look in looks.items() if 0 < _FAR * typical < abs(look.farthest)}
    if far:
        value = max(far.values(), key=abs)
        more = f" and {len(far) - 1} other{'s' * (len(far) > 2)}" if len(far) > 1 else ""
        collection.warnings.append(
            f"{collection.name_of(next(iter(far)))}{more}: values {'down' if value < 0 else 'up'} to {value:.3g}, where images "
            f"mostly reach {typical:.3g}: leave out with data.exclude, or, if that value means no data, set data.nodata to what "
            f"the file stores for it; where it has no scale and offset, data.nodata = {value!r}"
        )


def _tell_of_units(collection: Collection, looks: Mapping[int, _Look]) -> None:
    """Of two crowds of images whose values lie far apart, as files of reflectance among files of counts."""
    # A window of a large image says little of it: of an elevation model it may be the sea.
    reached = sorted((look.farthest, item) for item, look in looks.items() if look.whole and look.farthest > 0)
    least = max(2, math.ceil(_CROWD * len(reached)))
    for place in range(least, len(reached) - least + 1):
        (low, small), (high, large) = reached[place - 1 : place + 1]
        if high > _APART * low:
            collection.warnings.append(
                f"{place} of {len(looks)} images reach {low:.3g} at most, such as {collection.name_of(small)}, and "
                f"{len(reached) - place} at least {high:.3g}, such as {collection.name_of(large)}: where these are different "
                "units, as reflectance and counts are, leave some out with data.exclude"
            )
            return


def _digest(pixels: NDArray[np.float32]) -> bytes | None:
    """What bit-equal images have in common, of at most some 64 × 64 places; None where these all hold one value."""
    height, width = pixels.shape[1:]
    some = np.ascontiguousarray(pixels[:, :: max(height // 64, 1), :: max(width // 64, 1)])
    if some.min() == some.max():
        return None
    return hashlib.blake2b(some.tobytes(), digest_size=16).digest() + repr(pixels.shape).encode()


def _windows(file: ImageFile) -> Iterator[Window]:
    """Of a large image its end (where truncation shows), its middle, and a coarse grid; then all of an image, piece by piece."""
    height, width = file.height, file.width
    h, w = min(height, _CHECK_SIDE), min(width, _CHECK_SIDE)
    if (h, w) != (height, width):
        for y, x in ((1.0, 1.0), (0.5, 0.5), *((i / 7, j / 7) for i in range(8) for j in range(8))):
            yield Window(round(y * (height - h)), round(x * (width - w)), h, w)
    yield from tiles(height, width, _CHECK_SIDE)
