"""Labels: from class folders, label rasters, arrays inside files, and tables.

Everywhere, classes are numbered 0, 1, … in the order of their original values, and −1 means "no label".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.exclusion import Exclusion
from auxmae.data.files import find_files, hint_for_place, relative_path
from auxmae.data.image import ImageFile
from auxmae.data.label_files import LabelMap, check_few, labels_from_array, map_from_raster
from auxmae.data.label_rasters import LabelRaster, pair_rasters
from auxmae.data.notices import first_of, said_once
from auxmae.data.pairing import ImageNames, composed
from auxmae.data.plates import STORE
from auxmae.data.tables import MISSING, PART_NAMES, TABLE_SUFFIXES, classes, numbered_labels, table_labels
from auxmae.errors import DataError
from auxmae.places import expanded

# Share of the names that hold as many numbers as each other from which on they are numbered.
_NUMBERED = 0.9


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
                f"({first_of(beside)}): the folders are not taken as classes; where they are, leave these files out with "
                "data.exclude, or move them"
            )
        return None
    number = {name: place for place, name in enumerate(names)}
    return np.array([number[folder] for folder in folders], dtype=np.int64), tuple(names)


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
    axes: str | None = None,
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
        axes: order of the images' axes, as set.

    Raises:
        DataError: the labels are not there, are no labels, or fit no image.
    """
    if labels in ("auto", "none"):
        return Labels()
    place, by_name = label_place(labels), _named(files)
    if place is None:
        if len(files) > 1:
            told: list[list[str]] = [[] for _ in files]
            opened = [_of_image_file(file, labels[1:], own, by_name, axes) for file, own in zip(files, told, strict=True)]
            notices.extend(said_once(zip((file.path for file in files), told, strict=True)))
            if any(isinstance(one, np.ndarray) for one in opened):
                raise DataError(
                    f"labels {labels}: one label for each image is read from a single file, and there are {len(files)}",
                    hint="name one file with data.source",
                )
            return _of_pixels(pair_rasters([one for one in opened if isinstance(one, LabelMap)], files, labels, ignored, notices))
        found = _of_image_file(files[0], labels[1:], notices, by_name, axes)
    else:
        path, key = place
        if path.suffix.lower() in TABLE_SUFFIXES:
            return _from_table(path, composed(key), files, image_names, notices, ignored)
        if path.is_dir() and not _holds_arrays(path):
            return _from_folder(path, files, image_names, notices, ignored, exclude or Exclusion())
        if len(files) == 1 and key and files[0].path.resolve() == path.resolve():
            found = _of_image_file(files[0], key, notices, by_name, axes)
        elif key or _holds_arrays(path):
            found = labels_from_array(path, key, notices, by_name=by_name)
        else:
            found = map_from_raster(path, notices)
    if isinstance(found, np.ndarray):
        count = sum(file.count for file in files)
        if len(found) != count:
            raise DataError(f"{labels}: {len(found)} labels for {count} images", hint="set data.labels")
        if len(files) > 1:
            _tell_order(labels, files, image_names.relative_paths, notices)
        per_image, names = _image_classes(found, ignored, labels)
        return Labels(names, per_image)
    named = None if place is None else _called_like_one(place[0], image_names)
    stranger = None if place is None else image_names.left_out_like(place[0].absolute().as_posix())
    maps = [found] * len(files)
    return _of_pixels(pair_rasters(maps, files, labels, ignored, notices, shared=True, named=named, stranger=stranger))


def _of_image_file(file: ImageFile, key: str, notices: list[str], by_name: bool, axes: str | None) -> NDArray[Any] | LabelMap:
    """An array of an image's own file, whose maps have their axes in the order that is set for the image's."""
    columns_first = axes is not None and "WH" in axes.replace("C", "").replace("N", "") and "(" not in axes
    size = (file.height, file.width) if columns_first else None
    return labels_from_array(file.path, key, notices, by_name=by_name, columns_first=size)


def _of_pixels(found: tuple[tuple[str, ...], tuple[LabelRaster | None, ...]]) -> Labels:
    class_names, rasters = found
    return Labels(class_names, rasters=rasters)


def _tell_order(labels: str, files: Sequence[ImageFile], paths: Sequence[str], notices: list[str]) -> None:
    """Says in which order an array's entries, which name no images, are taken for those of several files.

    Raises:
        DataError: by their numbers (img_2 before img_10) the files have another order, in which the labels may be written.
    """
    digits = max(map(len, paths))

    def by_number(path: str) -> tuple[str, ...]:
        # All else sorts as in the files' own order.
        return tuple(re.sub(r"\d+", lambda number: number[0].zfill(digits), part) for part in PurePosixPath(path).parts)

    named, numbered = sorted(paths, key=lambda path: PurePosixPath(path).parts), sorted(paths, key=by_number)
    # The digits of names that have nothing else in common, such as hashes, are no numbers; nor where they stand in more or fewer
    # places from name to name, as in short hashes, of which many are the same but for their digits.
    alike = len({re.sub(r"\d+", "0", path) for path in paths}) <= len(paths) // 2
    places = Counter(len(re.findall(r"\d+", path)) for path in paths).most_common(1)[0][1]
    if alike and places >= _NUMBERED * len(paths) and numbered not in (named, list(paths)):
        one, other = next(pair for pair in zip(named, numbered, strict=True) if pair[0] != pair[1])
        raise DataError(
            f"{labels}: which image is each entry of? By name {one} comes before {other}, by number behind it",
            hint="name the images in a table (CSV) with two columns, image and label"
            if all(file.count == 1 for file in files)
            else "write the files' numbers with leading zeros, or save in each file an array labels of its images",
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
                f"({first_of(without)}), so none is taken: save these too with an array labels, and the images along an axis N, "
                "of length 1 for one image; or leave them out with data.exclude"
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
        check_few(names, where)
        return found, names
    valid = np.isfinite(entries)
    if (entries[valid] != np.round(entries[valid])).any():
        raise DataError(f"{where}: the labels are no whole numbers", hint="check data.labels")
    numbers = np.where(valid, entries, -1).astype(np.int64)
    known = (numbers >= 0) & ~np.isin(numbers, ignored or ())
    if not known.any():
        raise DataError(f"{where}: no image has a label", hint="check data.labels and data.ignored_labels")
    values = np.unique(numbers[known])
    check_few(values, where)
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
    check_few(names, f"{path}:{column}" if column else str(path))
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
    return _of_pixels(pair_rasters(maps, files, str(folder), ignored, notices))


def _called_like_one(path: Path, image_names: ImageNames) -> int | None:
    """The one image that a label raster is called like; None: none, or several."""
    called = image_names.called_like(path.absolute().as_posix())
    found = [] if called is None else image_names.find(called)
    return found[0] if len(found) == 1 else None
