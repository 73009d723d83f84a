"""Label rasters: a class for each pixel of an image, and which images a raster is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auxmae.data.georeference import describe_difference, describe_shift, same_place
from auxmae.data.image import ImageFile, Window, diagonal, tiles
from auxmae.data.label_files import LabelMap, check_few
from auxmae.data.notices import first_of, said_once
from auxmae.errors import DataError

# A raster with more values than this among multi-channel images is rather an image (a panchromatic or elevation band).
_FEW_VALUES = 64
# Label numbers are read as float32, which tells whole ones below this from each other.
_EXACT = 2**24
# A raster is read in tiles of this side, px.
TILE = 2048


@dataclass(frozen=True)
class LabelRaster:
    """A class for each pixel of an image.

    Attributes:
        file: one channel of original values.
        values: the original values, ascending; a pixel's class is the place of its value.
    """

    file: ImageFile
    values: tuple[int, ...]

    def read(self, index: int, window: Window | None) -> NDArray[np.int64]:
        """(h, w) classes of a window of image `index`, −1 where there is none."""
        image = self.file.read(index if self.file.count > 1 else 0, window)
        values = np.asarray(self.values, dtype=np.int64)
        raw = image.pixels[0].astype(np.int64)
        place = np.searchsorted(values, raw).clip(max=len(values) - 1)
        return np.where(image.valid[0] & (values[place] == raw), place, -1).astype(np.int64)


def is_label_raster(file: ImageFile) -> bool:
    """Whether a single-channel file looks like classes: integers, few values, read in a few windows only."""
    if file.channels != 1 or not (np.issubdtype(file.dtype, np.integer) or file.dtype == np.bool_):
        return False
    values: set[float] = set()
    for window in diagonal(file.height, file.width, 512):
        try:
            image = file.read(0, window)
        except DataError:
            return False
        values.update(np.unique(image.pixels[image.valid]).tolist())
        if len(values) > _FEW_VALUES:
            return False
    return True


def pair_rasters(
    maps: Sequence[LabelMap | None],
    files: Sequence[ImageFile],
    labels: str,
    ignored: Sequence[int] | None,
    notices: list[str],
    *,
    shared: bool = False,
    named: int | None = None,
    stranger: str | None = None,
) -> tuple[tuple[str, ...], tuple[LabelRaster | None, ...]]:
    """Label rasters and the files that they are of → class names, and a raster for each file (None: it has none).

    Sizes and places are compared, and the classes found window by window.

    Args:
        maps: a raster for each file; None: it has none.
        files: the images.
        labels: what `data.labels` says, for messages.
        ignored: values that mean "no label"; None: 0, where the format's convention says so and two classes are left.
        notices: told what was inferred.
        shared: they are one raster, of all files which it fits.
        named: the file that a shared raster is called like, and taken for alone where no georeference says that it lies where
            others do.
        stranger: an image that is left out and that a shared raster is called like: it is taken for those alone of which
            georeferences say that it lies there.

    Raises:
        DataError: a raster fits no image, or holds no classes.
    """
    rasters = [None if one is None else one.file for one in maps]
    fits = [
        raster is not None
        and (raster.height, raster.width) == (file.height, file.width)
        and raster.count in (1, file.count)
        and same_place(raster, file)
        for raster, file in zip(rasters, files, strict=True)
    ]
    unfit = [(raster, file) for raster, file, fit in zip(rasters, files, fits, strict=True) if raster is not None and not fit]
    if not any(fits) or (not shared and unfit):
        raise _misfit(*unfit[0], files, labels)
    if shared:
        fits = _of_one_raster(rasters[0], files, fits, labels, named, stranger, notices)
    missing = [file.path.name for file, fit in zip(files, fits, strict=True) if not fit]
    if missing and shared:
        notices.append(
            f"the labels apply to the {sum(fits)} images of their size and place; {len(missing)} others have none "
            f"({first_of(missing)})"
        )
    shifts = [
        (
            file.path,
            [f"{file.path.name}: the labels lie {shift} beside the image, and are taken for its pixels' (as up to half of one)"],
        )
        for raster, file, fit in zip(rasters, files, fits, strict=True)
        if raster is not None and fit and (shift := describe_shift(raster, file)) is not None
    ]
    notices.extend(said_once(shifts))
    unique = [raster for raster, fit in zip(rasters, fits, strict=True) if raster is not None and fit][: 1 if shared else None]
    values: set[int] = set()
    for raster in unique:
        values |= _values(raster, labels)
    values -= _unlabelled(values, ignored, all(one.zero_unlabelled for one in maps if one is not None), notices)
    if not values:
        raise DataError(f"{labels}: no pixel has a label", hint="check data.labels and data.ignored_labels")
    if max(values) >= _EXACT:
        raise DataError(
            f"{labels}: label numbers such as {max(values)} cannot be told from their neighbours ({_EXACT} and more)",
            hint="number the classes anew, from 0 on; data.ignored_labels names a number that means 'no label'",
        )
    check_few(values, labels)
    ordered = tuple(sorted(values))
    told = {one.names for one in maps if one is not None}
    called = told.pop() if len(told) == 1 else ()
    names = tuple(called[value] if ordered[-1] < len(called) else str(value) for value in ordered)
    paired = tuple(
        LabelRaster(raster, ordered) if raster is not None and fit else None for raster, fit in zip(rasters, fits, strict=True)
    )
    return names, paired


def _misfit(raster: ImageFile, file: ImageFile, files: Sequence[ImageFile], labels: str) -> DataError:
    """Why a raster's labels are not those of a file, one of the files that they may be of."""
    if (raster.height, raster.width) == (file.height, file.width) and not same_place(raster, file):
        return DataError(
            f"{labels}: the labels lie elsewhere than {file.path.name}: {describe_difference(raster, file)}",
            hint="warp them to the image's grid; where the pixels do match, save them without a georeference",
        )
    if (raster.height, raster.width) == (file.height, file.width):
        return DataError(
            f"{labels}: {raster.count} label maps, and {file.path.name} holds {file.count} image{'s' * (file.count > 1)}",
            hint="one map is needed for each image, or one for all, or set data.labels = 'none'",
        )
    others = sorted({f"{file.height}×{file.width}" for file in files})
    way = "name a label raster of the images' size with data.labels"
    if raster.georeference is not None and file.georeference is not None:
        way = "warp them to the image's grid, by nearest neighbour"
    elif (raster.height, raster.width) == (file.width, file.height):
        way = "labels are read as rows × columns, and fit when turned: save them transposed"
    return DataError(
        f"{labels}: the labels are {raster.height}×{raster.width} px, the images {', '.join(others[:3])} px ({file.path.name})",
        hint=f"{way}, or set data.labels = 'none'",
    )


def _of_one_raster(
    raster: ImageFile | None,
    files: Sequence[ImageFile],
    fits: list[bool],
    labels: str,
    named: int | None,
    stranger: str | None,
    notices: list[str],
) -> list[bool]:
    """Which of the files that one raster fits it is taken for: of the same size are those of other places too."""
    assert raster is not None
    unsure = [fit and (raster.georeference is None or file.georeference is None) for file, fit in zip(files, fits, strict=True)]
    called = files[named].path.name if named is not None else stranger
    if called is not None:
        sure = [fit and (index == named or not unsure[index]) for index, fit in enumerate(fits)]
        if not any(sure) and named is None:
            raise DataError(
                f"{labels}: it is called like {called}, which is left out, and no georeference says that it lies where another "
                "image does",
                hint=f"leave {called} in; where the labels are of other images, call them otherwise",
            )
        if not any(sure) and named is not None:
            misfit = _misfit(raster, files[named], [files[named]], labels)
            raise DataError(misfit.message, hint=f"{misfit.hint}; labels of other images must not be called like {called}")
        if sure != fits:
            notices.append(
                f"labels: {raster.path.name} is called like {called}, and not taken for other images of its size "
                "whose georeference does not say that they lie there"
            )
        return sure
    if any(unsure) and sum(fits) > 1:
        notices.append(
            f"labels: {raster.path.name} is taken for {sum(unsure)} of the images of its size though no georeference says that "
            "they lie there: right for dates of one place; else call it like the image that it is of (image_labels.tif)"
        )
    return fits


def _unlabelled(values: set[int], ignored: Sequence[int] | None, by_convention: bool, notices: list[str]) -> set[int]:
    """Those of a map's values that mean "no label"."""
    if ignored is not None:
        # As they are read: 4294967295 as 4294967296.
        return {int(np.float32(value)) for value in ignored}
    if 0 not in values or len(values) < 2:
        return set()
    if len(values) == 2:
        # A mask, whose two values are classes.
        if by_convention:
            notices.append(f"labels: 0 and {max(values)} are two classes (set data.ignored_labels = [0] if 0 means 'no label')")
        return set()
    if by_convention:
        notices.append("labels: 0 means 'no label', as such files have it (set data.ignored_labels = [] if it is a class)")
        return {0}
    notices.append("labels: 0 counts as a class (set data.ignored_labels = [0] if it means 'no label')")
    return set()


def _values(raster: ImageFile, labels: str) -> set[int]:
    values: set[int] = set()
    for index in range(raster.count):
        for window in tiles(raster.height, raster.width, TILE):
            image = raster.read(index, window)
            found = np.unique(image.pixels[image.valid])
            if (found != np.round(found)).any():
                raise DataError(f"{labels}: the labels are no whole numbers", hint="check data.labels")
            values.update(int(value) for value in found if value >= 0)
            check_few(values, labels)
    return values
