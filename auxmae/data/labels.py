"""Labels: from class folders, label rasters, arrays inside files, and tables.

Everywhere, classes are numbered 0, 1, … in the order of their original values, and −1 means "no label".
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.exclusion import Exclusion
from auxmae.data.files import find_files, hint_for_place, relative_path
from auxmae.data.georeference import describe_difference, describe_shift, same_place
from auxmae.data.image import ImageFile, Window, diagonal, tiles
from auxmae.data.label_files import LabelMap, labels_from_array, map_from_raster
from auxmae.data.notices import said_once
from auxmae.data.pairing import ImageNames, composed
from auxmae.data.plates import STORE
from auxmae.data.tables import MISSING, PART_NAMES, TABLE_SUFFIXES, classes, numbered_labels, table_labels
from auxmae.errors import DataError
from auxmae.places import expanded

MAX_CLASSES = 1000
# A raster with more values than this among multi-channel images is rather an image (a panchromatic or elevation band).
_FEW_VALUES = 64
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


@dataclass(frozen=True)
class Labels:
    """What `load_labels` found: a class for each image or file, or a raster for each file (None: it has none), or nothing."""

    class_names: tuple[str, ...] = ()
    per_image: NDArray[np.int64] | None = None
    per_file: NDArray[np.int64] | None = None
    rasters: tuple[LabelRaster | None, ...] | None = None


def folder_labels(relative_paths: Sequence[str], notices: list[str]) -> tuple[NDArray[np.int64], tuple[str, ...]] | None:
    """Class folders → (class of each file, class names); None where the folders are no classes.

    A class is the first folder below the source that is not named like a split (train, val, test …).  Folders are
    classes when every file lies in one, there are at least two, and they hold two files each on average; where fewer files lie
    beside such folders than in them, that is told.
    """
    folders = []
    ignored: set[str] = set()
    for path in relative_paths:
        # The folders of a store are its own.
        parents = list(takewhile(lambda part: not part.endswith(STORE), PurePosixPath(path).parts[:-1]))
        ignored.update(part for part in parents if part.lower() in PART_NAMES)
        rest = [part for part in parents if part.lower() not in PART_NAMES]
        folders.append(rest[0] if rest else "")
    if ignored:
        notices.append(
            f"the folders {', '.join(sorted(ignored))} are not taken as classes or parts; "
            "the split is drawn anew (see data.split, data.exclude)"
        )
    names = sorted(set(folders) - {""})
    beside = [path for path, folder in zip(relative_paths, folders, strict=True) if not folder]
    inside = len(folders) - len(beside)
    if len(names) < 2 or inside < 2 * len(names):
        return None
    if beside:
        if len(beside) < inside:
            notices.append(
                f"labels: {inside} files lie in {len(names)} folders as if these were classes, {len(beside)} beside them "
                f"({_listed(beside)}): the folders are not taken as classes; where they are, leave these files out with "
                "data.exclude, or move them"
            )
        return None
    number = {name: place for place, name in enumerate(names)}
    return np.array([number[folder] for folder in folders], dtype=np.int64), tuple(names)


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


def label_size(labels: str) -> tuple[int, int] | None:
    """Rows and columns of the label map that `data.labels` names; None where it names none, or one that cannot be read."""
    from auxmae.data.readers import path_exists

    place = label_place(labels)
    if place is None:
        return None
    path, key = place
    if not path_exists(path) or path.suffix.lower() in TABLE_SUFFIXES or (path.is_dir() and not _holds_arrays(path)):
        return None
    try:
        found = labels_from_array(path, key, [], by_name=False) if key or _holds_arrays(path) else map_from_raster(path, [])
    except DataError:
        return None  # `load_labels` says so
    return (found.file.height, found.file.width) if isinstance(found, LabelMap) else None


def check_label_file(labels: str) -> None:
    """Raises DataError where `data.labels` names a file that is not there."""
    from auxmae.data.readers import path_exists

    place = label_place(labels)
    if place is not None and not path_exists(place[0]):
        # What stands before an address's "://" is no file whose array the rest would name.
        named = labels if "://" in labels else place[0]
        raise DataError(f"{named}: no such label file", hint=hint_for_place(labels, "data.labels (--labels)"))


def label_place(labels: str) -> tuple[Path, str] | None:
    """`data.labels` of PATH or PATH:KEY → the path, and the key or ""; None where it names no file."""
    from auxmae.data.readers import path_exists

    if labels in ("auto", "none") or labels.startswith(":"):
        return None
    path = expanded(labels)
    if ":" in str(path) and not path_exists(path):
        before, _, key = str(path).rpartition(":")
        return Path(before), key
    return path, ""


def load_labels(
    labels: str,
    files: Sequence[ImageFile],
    image_names: ImageNames,
    notices: list[str],
    ignored: Sequence[int] | None = None,
    exclude: Exclusion | None = None,
) -> Labels:
    """Reads what `data.labels` names.

    Args:
        labels: "auto" and "none" find nothing here; the path of a label raster, of a folder of them, or of a table, PATH:KEY
            (an array, or a table's column), or :KEY (an array of each image file itself).
        files: the images.
        image_names: of the files.
        notices: told what was inferred.
        ignored: values that mean "no label", beside negative ones and a raster's own nodata; None: 0, where the format's
            convention says so and two classes are left.
        exclude: files to leave out of a folder of label rasters.

    Raises:
        DataError: the labels are not there, are no labels, or fit no image.
    """
    if labels in ("auto", "none"):
        return Labels()
    place, by_name = label_place(labels), _named(files)
    if place is None:
        if len(files) > 1:
            told: list[list[str]] = [[] for _ in files]
            opened = [
                labels_from_array(file.path, labels[1:], own, by_name=by_name) for file, own in zip(files, told, strict=True)
            ]
            notices.extend(said_once(zip((file.path for file in files), told, strict=True)))
            if any(isinstance(one, np.ndarray) for one in opened):
                raise DataError(
                    f"labels {labels}: one label for each image is read from a single file, and there are {len(files)}",
                    hint="name one file with data.source",
                )
            return _finish([one for one in opened if isinstance(one, LabelMap)], files, labels, ignored, notices)
        found = labels_from_array(files[0].path, labels[1:], notices, by_name=by_name)
    else:
        path, key = place
        if path.suffix.lower() in TABLE_SUFFIXES:
            return _from_table(path, composed(key), files, image_names, notices, ignored)
        if path.is_dir() and not _holds_arrays(path):
            return _from_folder(path, files, image_names, notices, ignored, exclude or Exclusion())
        if key or _holds_arrays(path):
            found = labels_from_array(path, key, notices, by_name=by_name)
        else:
            found = map_from_raster(path, notices)
    if isinstance(found, np.ndarray):
        count = sum(file.count for file in files)
        if len(found) != count:
            raise DataError(f"{labels}: {len(found)} labels for {count} images", hint="set data.labels")
        if len(files) > 1:
            _tell_order(labels, image_names.relative_paths, notices)
        per_image, names = _image_classes(found, ignored, labels)
        return Labels(names, per_image)
    named = None if place is None else _called_like_one(place[0], image_names)
    return _finish([found] * len(files), files, labels, ignored, notices, shared=True, named=named)


def _tell_order(labels: str, paths: Sequence[str], notices: list[str]) -> None:
    """Says in which order an array's entries, which name no images, are taken for those of several files.

    Raises:
        DataError: by their numbers (img_2 before img_10) the files have another order, in which the labels may be written.
    """
    digits = max(map(len, paths))

    def by_number(path: str) -> tuple[str, ...]:
        # All else sorts as in the files' own order.
        return tuple(re.sub(r"\d+", lambda number: number[0].zfill(digits), part) for part in PurePosixPath(path).parts)

    named, numbered = sorted(paths, key=lambda path: PurePosixPath(path).parts), sorted(paths, key=by_number)
    # The digits of names that have nothing else in common, such as hashes, are no numbers.
    alike = len({re.sub(r"\d+", "0", path) for path in paths}) <= len(paths) // 2
    if alike and numbered not in (named, list(paths)):
        one, other = next(pair for pair in zip(named, numbered, strict=True) if pair[0] != pair[1])
        raise DataError(
            f"{labels}: which image is each entry of? By name {one} comes before {other}, by number behind it",
            hint="name the images in a table (CSV) with two columns, image and label",
        )
    shown = [*paths[:2], *["…"] * (len(paths) > 3), *paths[2:][-1:]]
    notices.append(f"labels: the entries of {labels} are taken for the images in this order: {', '.join(shown)}")


def own_labels(
    files: Sequence[ImageFile], ignored: Sequence[int] | None, notices: list[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]] | None:
    """The labels that array files carry themselves → (class of each image, class names); None where they carry none to use."""
    found = [file.labels for file in files if file.labels is not None]
    if len(found) < len(files):
        if found:
            without = [file.path.name for file in files if file.labels is None]
            notices.append(
                f"labels: {len(found)} of {len(files)} files hold a label for each of their images, {len(without)} do not "
                f"({_listed(without)}), so none is taken: add an array labels to these, or leave them out with data.exclude"
            )
        return None
    named = f"array {found[0][0]} of {files[0].path.name}" + (f" and of {len(files) - 1} more" if len(files) > 1 else "")
    try:
        classes, names = _image_classes(np.concatenate([entries for _, entries in found]), ignored, named)
    except DataError as error:
        notices.append(f"labels: {error.message}: not taken")
        return None
    notices.append(f"labels: {len(names)} classes by {named} (set data.labels = 'none' if its values are no classes)")
    return classes, names


def _image_classes(entries: NDArray[Any], ignored: Sequence[int] | None, where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(N,) numbers or texts → class numbers, −1 for "no label", and the classes' names."""
    if entries.dtype.kind == "U":
        texts = [text.strip() for text in entries.tolist()]
        found, names = classes(["" if text.lower() in MISSING else text for text in texts], ignored, where)
        _few(names, where)
        return found, names
    valid = np.isfinite(entries)
    if (entries[valid] != np.round(entries[valid])).any():
        raise DataError(f"{where}: the labels are no whole numbers", hint="check data.labels")
    numbers = np.where(valid, entries, -1).astype(np.int64)
    known = (numbers >= 0) & ~np.isin(numbers, ignored or ())
    if not known.any():
        raise DataError(f"{where}: no image has a label", hint="check data.labels and data.ignored_labels")
    values = np.unique(numbers[known])
    _few(values, where)
    return np.where(known, np.searchsorted(values, numbers), -1).astype(np.int64), tuple(str(value) for value in values)


def _named(files: Sequence[ImageFile]) -> bool:
    """Whether what the images' files say of their axes is what they are read by."""
    return not any(file.guessed_axes for file in files)


def _holds_arrays(path: Path) -> bool:
    from auxmae.data.readers import ARRAY_SUFFIXES

    return path.suffix.lower() in ARRAY_SUFFIXES


def _from_table(
    path: Path,
    column: str,
    files: Sequence[ImageFile],
    image_names: ImageNames,
    notices: list[str],
    ignored: Sequence[int] | None,
) -> Labels:
    """A label for each file; for each entry, where a single file holds an array of images."""
    numbered = len(files) == 1 and files[0].count > 1
    if numbered:
        texts = numbered_labels(path, column, files[0].count, notices)
    else:
        texts = table_labels(path, column, image_names, notices)
    found, names = classes(texts, ignored, path)
    _few(names, f"{path}:{column}" if column else str(path))
    return Labels(names, per_image=found) if numbered else Labels(names, per_file=found)


def _from_folder(
    folder: Path,
    files: Sequence[ImageFile],
    image_names: ImageNames,
    notices: list[str],
    ignored: Sequence[int] | None,
    exclude: Exclusion,
) -> Labels:
    """The label raster of each file, called like it: a/b.tif is the one of a/b.npy, and so is a/b_mask.png."""
    root, paths = find_files(str(folder), exclude, notices, tell_unread=False)
    images = {path.resolve() for file in files for path in file.paths}
    maps: list[LabelMap | None] = [None] * len(files)
    used: dict[int, Path] = {}
    strangers, told = [], dict[Path, list[str]]()
    for path in paths:
        if path.resolve() in images:
            continue
        name = relative_path(path, root)
        called = image_names.called_like(name)
        index = None if called is None else image_names.one(called)
        if index is None:
            strangers.append(name)
            continue
        if index in used:
            raise DataError(
                f"{image_names.relative_paths[index]}: both {used[index]} and {path} are called like it", hint="leave one there"
            )
        used[index] = path
        told[path] = []
        if _holds_arrays(path):
            found = labels_from_array(path, "", told[path], by_name=_named(files))
        else:
            found = map_from_raster(path, told[path])
        if not isinstance(found, LabelMap):
            raise DataError(f"{path}: one axis is no label raster", hint="check data.labels")
        maps[index] = found
    if not used:
        raise DataError(
            f"{folder}: no label raster is called like an image, such as {image_names.relative_paths[0]}",
            hint="give it the image's file name, or one that goes on after it (name_labels.tif)",
        )
    if strangers or len(used) < len(files):
        few = f"; {len(strangers)} are called like no image ({', '.join(strangers[:3])})" if strangers else ""
        notices.append(f"labels: {len(used)} of {len(files)} files have a raster in {folder}{few}")
    notices.extend(said_once(told.items()))
    return _finish(maps, files, str(folder), ignored, notices)


def _called_like_one(path: Path, image_names: ImageNames) -> int | None:
    """The one image that a label raster is called like; None: none, or several."""
    called = image_names.called_like(path.absolute().as_posix())
    found = [] if called is None else image_names.find(called)
    return found[0] if len(found) == 1 else None


def _finish(
    maps: Sequence[LabelMap | None],
    files: Sequence[ImageFile],
    labels: str,
    ignored: Sequence[int] | None,
    notices: list[str],
    *,
    shared: bool = False,
    named: int | None = None,
) -> Labels:
    """Checks sizes, finds the classes window by window, and pairs rasters with files.

    A raster that is `shared` by all files which it fits is that of the file `named` alone where no georeference says that it lies
    where others do.
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
        fits = _of_one_raster(rasters[0], files, fits, labels, named, notices)
    missing = [file.path.name for file, fit in zip(files, fits, strict=True) if not fit]
    if missing and shared:
        notices.append(
            f"the labels apply to the {sum(fits)} images of their size and place; {len(missing)} others have none "
            f"({_listed(missing)})"
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
    _few(values, labels)
    ordered = tuple(sorted(values))
    told = {one.names for one in maps if one is not None}
    called = told.pop() if len(told) == 1 else ()
    names = tuple(called[value] if ordered[-1] < len(called) else str(value) for value in ordered)
    paired = tuple(
        LabelRaster(raster, ordered) if raster is not None and fit else None for raster, fit in zip(rasters, fits, strict=True)
    )
    return Labels(names, rasters=paired)


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
            hint="one map is needed for each image, or one for all; set data.labels = 'none' to use no labels",
        )
    others = sorted({f"{file.height}×{file.width}" for file in files})
    way = "name a label raster of the images' size with data.labels"
    if raster.georeference is not None and file.georeference is not None:
        way = "warp them to the image's grid, by nearest neighbour"
    return DataError(
        f"{labels}: the labels are {raster.height}×{raster.width} px, the images {', '.join(others[:3])} px ({file.path.name})",
        hint=f"{way}, or set data.labels = 'none'",
    )


def _of_one_raster(
    raster: ImageFile | None, files: Sequence[ImageFile], fits: list[bool], labels: str, named: int | None, notices: list[str]
) -> list[bool]:
    """Which of the files that one raster fits it is taken for: of the same size are those of other places too."""
    assert raster is not None
    unsure = [fit and (raster.georeference is None or file.georeference is None) for file, fit in zip(files, fits, strict=True)]
    if named is not None:
        sure = [fit and (index == named or not unsure[index]) for index, fit in enumerate(fits)]
        if not any(sure):
            misfit, name = _misfit(raster, files[named], [files[named]], labels), files[named].path.name
            raise DataError(misfit.message, hint=f"{misfit.hint}; labels of other images must not be called like {name}")
        if sure != fits:
            notices.append(
                f"labels: {raster.path.name} is called like {files[named].path.name}, and not taken for other images of its size "
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
        return set(ignored)
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
            _few(values, labels)
    return values


def _few(values: Sized, labels: str) -> None:
    if len(values) > MAX_CLASSES:
        raise DataError(f"{labels}: more than {MAX_CLASSES} different values: these are no classes", hint="check data.labels")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
