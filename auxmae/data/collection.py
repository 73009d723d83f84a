"""What a data source is: its files opened and checked against each other, its channels named, its labels found.

Shape letters: N images of an array, C channels, H rows, W columns.

How `layout = "auto"` decides: the embedded scenes and files with an N axis are an *array*; labels in a raster mean
*scenes*; one image alone is a *scene*; class folders, or a table of labels, mean *images*; otherwise fewer than 5 images
of at least 48 px a side, fewer than 16 of at least 144 px, or any image of more than 512 px are *scenes*, and everything
else is a folder of *images*.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from auxmae.data.band_files import suggest_pattern
from auxmae.data.channels import ChannelPlan, plan_channels
from auxmae.data.files import find_files, relative_path
from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window, tiles
from auxmae.data.joining import join_channels
from auxmae.data.labels import TILE, LabelRaster, folder_labels, is_label_raster, label_place, label_size, load_labels, own_labels
from auxmae.data.notices import said_once
from auxmae.data.pairing import ImageNames
from auxmae.errors import DataError

Layout = Literal["images", "array", "scenes"]
Progress = Callable[[int, int], None]

SYNTHETIC = "synthetic"
# Few and large files are scenes to cut; many or small ones are images as they are.
IMAGE_SIDE = 512
# Fewer files than this, of at least this side, px: a few are too few to hold out some of them, and some more may be cut into
# blocks only where they are large enough for three a side.
SCENES = ((5, 48), (16, 144))
# Pixels of up to this many images are looked at when a source is opened; of more, only with allow_broken.
CHECKED_IMAGES = 2000
_CHECK_SIDE = 512
# Every integer up to this one is a float32.
_EXACT = 2**24
# An image whose largest value is beyond so many times the median image's is told of.
_FAR = 1e6


@dataclass
class Collection:
    """An opened source.

    Attributes:
        source: as it was given.
        layout: "images", "array" or "scenes".
        channel_names: C names, unique, in the order in which `read` gives the channels.
        wavelengths: C centre wavelengths, nm, or None.
        class_names: names of the classes 0, 1, …; empty where there are no labels.
        files: the opened files.
        notices: what was inferred or left out, one sentence each.
        items: (items, 2) int64: file and index in it of every image that is used.
        channel_order: for each file, the file's channel of every channel of the collection; None: as they are.
        labels: (items,) int64 class of every image (−1: none), or None.
        label_rasters: for each file its label raster or None.
        relative_paths: for each file its path below the source.
        warnings: what looks wrong with the files, one sentence each.
    """

    source: str
    layout: Layout
    channel_names: tuple[str, ...]
    wavelengths: tuple[float, ...] | None
    class_names: tuple[str, ...]
    files: tuple[ImageFile, ...]
    notices: list[str]
    items: NDArray[np.int64]
    channel_order: tuple[tuple[int, ...] | None, ...]
    labels: NDArray[np.int64] | None = None
    label_rasters: tuple[LabelRaster | None, ...] = ()
    relative_paths: tuple[str, ...] = field(default=())
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of images or scenes."""
        return len(self.items)

    @property
    def dtype(self) -> np.dtype:
        """Of the stored pixels (of the first file)."""
        return self.files[0].dtype

    @property
    def in_memory(self) -> bool:
        """Whether all pixels are held in memory already."""
        return all(isinstance(file.read, partial) and file.read.func is _read_memory for file in self.files)

    @property
    def has_label_maps(self) -> bool:
        """Whether any scene has a label for each pixel."""
        return any(raster is not None for raster in self.label_rasters)

    def file_of(self, item: int) -> ImageFile:
        """The file that holds an image."""
        return self.files[int(self.items[item, 0])]

    def size_of(self, item: int) -> tuple[int, int]:
        """(H, W) of an image, px."""
        file = self.file_of(item)
        return file.height, file.width

    def names_of(self, items: NDArray[np.int64]) -> str:
        """The files of two images, for people."""
        return " and ".join(self.relative_paths[number] for number in self.items[items, 0].tolist())

    def name_of(self, item: int) -> str:
        """The file of an image, and which one of it where it holds several, for people."""
        number, index = (int(value) for value in self.items[item])
        return self.relative_paths[number] + (f", image {index}" if self.files[number].count > 1 else "")

    def read(self, item: int, window: Window | None = None) -> MultiChannelImage:
        """The pixels of an image or of a window of it, its channels in the order of `channel_names`."""
        number, index = (int(value) for value in self.items[item])
        image = self.files[number].read(index, window)
        order = self.channel_order[number]
        if order is not None:
            chosen = list(order)
            image = MultiChannelImage(image.pixels[chosen], image.valid[chosen])
        return image

    def read_labels(self, item: int, window: Window | None = None) -> NDArray[np.int64] | None:
        """(h, w) class of every pixel, −1 where there is none; None where the image has no label raster."""
        number, index = (int(value) for value in self.items[item])
        raster = self.label_rasters[number] if self.label_rasters else None
        return None if raster is None else raster.read(index, window)

    def label_counts(self) -> tuple[NDArray[np.int64], int]:
        """(classes,) images, or pixels of label rasters, of each class; and how many of all have no label."""
        counts = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        if not self.has_label_maps:
            labels = np.full(len(self), -1) if self.labels is None else self.labels
            counts += np.bincount(labels + 1, minlength=len(counts))
            return counts[1:], int(counts[0])
        for item in range(len(self)):
            for window in tiles(*self.size_of(item), TILE):
                labels_HW = self.read_labels(item, window)
                if labels_HW is None:
                    counts[0] += window.height * window.width
                else:
                    counts += np.bincount(labels_HW.reshape(-1) + 1, minlength=len(counts))
        return counts[1:], int(counts[0])

    def sides(self) -> NDArray[np.int64]:
        """(files, 2) H and W of the files that are used, px."""
        used = np.unique(self.items[:, 0])
        return np.array([(self.files[number].height, self.files[number].width) for number in used], dtype=np.int64)

    def smallest_side(self) -> int:
        """The shortest side of all images, px."""
        return int(self.sides().min())

    def describe(self) -> str:
        """One line for people: how many of what, which channels, how large, which type."""
        count = len(self)
        noun = {"images": "image", "array": "image", "scenes": "scene"}[self.layout]
        names = self.channel_names
        listed = ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
        sides = np.unique(self.sides(), axis=0)
        areas = sides[np.argsort(sides.prod(axis=1), kind="stable")]
        least, most = areas[0], areas[-1]
        size = f"{least[0]}×{least[1]}" + (f" to {most[0]}×{most[1]}" if len(areas) > 1 else "")
        dtypes = "/".join(sorted({str(file.dtype) for file in self.files}))
        text = f"{count} {noun}{'' if count == 1 else 's'}"
        text += f", {len(names)} channel{'' if len(names) == 1 else 's'} ({listed}), {size} px, {dtypes}"
        return text + (f", {len(self.class_names)} classes" if self.class_names else "")


def memory_file(array_NCHW: NDArray[Any], path: Path, *, names: tuple[str, ...] | None = None) -> ImageFile:
    """An `ImageFile` of an array in memory, (N, C, H, W) of any numeric type; NaN and infinity are not valid."""
    count, channels, height, width = array_NCHW.shape
    read = partial(_read_memory, array_NCHW)
    return ImageFile(path, count, channels, height, width, array_NCHW.dtype, read, channel_names=names)


def _read_memory(array: NDArray[Any], index: int, window: Window | None) -> MultiChannelImage:
    image = array[index]
    if window is not None:
        image = image[:, window.top : window.top + window.height, window.left : window.left + window.width]
    pixels = image.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        valid = np.isfinite(pixels)
        pixels[~valid] = 0
    else:
        valid = np.ones(pixels.shape, dtype=bool)
    return MultiChannelImage(pixels, valid)


def open_collection(
    source: str,
    *,
    labels: str = "auto",
    ignored_labels: tuple[int, ...] | None = None,
    layout: str = "auto",
    options: ReadOptions | None = None,
    channels: tuple[str, ...] | None = None,
    wavelengths: tuple[float, ...] | None = None,
    channel_pattern: str = "",
    group_pattern: str = "",
    exclude: Sequence[str] = (),
    allow_broken: bool = False,
    synthetic_images: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Collection:
    """Opens a source: a file, a folder, a glob pattern, or "synthetic".

    Args:
        source: what to open.
        labels: "auto" (class folders, or the array of an image file that is called like labels), "none", the path of a label
            raster, of a folder of them or of a table, PATH:KEY, or :KEY (an array in the image file itself).
        ignored_labels: values of them that mean "no label"; None: see `load_labels`.
        layout: "auto", "images", "array" or "scenes".
        options: how to read files that do not say enough about themselves.
        channels: names to select and order by, or to give where the files have none.
        wavelengths: centre wavelengths, nm, of all channels used.
        channel_pattern: regular expression on files' paths whose first group names a channel: each file is one channel of an
            image (see `join_channels`); "": each is an image.
        group_pattern: regular expression on images' paths whose first group names the group that an image is of, where a label
            table's rows name groups.
        exclude: file name patterns to leave out.
        allow_broken: leave out files that cannot be read, each with a notice, instead of stopping.
        synthetic_images: number of embedded scenes.
        seed: of the embedded scenes.
        progress: told (done, total) while files are opened.

    Raises:
        DataError: nothing usable is there, or files do not fit each other.
        SettingsError: a channel name is unknown.
    """
    if source == SYNTHETIC:
        return _synthetic(synthetic_images, seed, labels, channels, wavelengths)
    options = options or ReadOptions()
    if channels or channel_pattern:
        options = replace(options, channels=1 if channel_pattern else len(channels or ()))
    options = replace(options, plane=label_size(labels), plane_key=labels[1:] if labels.startswith(":") else None)
    notices: list[str] = []
    warnings: list[str] = []
    root, paths = find_files(source, exclude, notices)
    paths = _without_label_files(paths, labels)
    files = _open_all(paths, options, allow_broken, notices, progress)
    files = _leave_out_labels(files, labels, notices)
    relative = [relative_path(file.path, root) for file in files]
    if channel_pattern:
        files, relative = join_channels(files, relative, channel_pattern, allow_broken, notices)
    elif (pattern := suggest_pattern(files, relative)) is not None:
        warnings.append(
            f"the files look like the channels of images, one a file, and each is read as an image of its own: --set "
            f"data.channel_pattern='{pattern}' joins them"
        )
    elif len(files) > 1 and all(file.channels == 1 for file in files):
        notices.append(
            "every file has one channel; where these are channels of one image, say how they are named with data.channel_pattern"
        )
    notices.extend(said_once((file.path, file.notices) for file in files))
    plan = plan_channels(files, channels, wavelengths, notices)

    classes = folder_labels(relative, notices) if labels == "auto" and layout != "scenes" else None
    names = ImageNames(relative, root, group_pattern, [[part.name for part in file.parts] for file in files])
    found = load_labels(labels, files, names, notices, ignored_labels)
    named = classes is not None or found.per_file is not None
    chosen = _choose_layout(layout, files, named, found.rasters is not None)
    items = np.array([(number, index) for number, file in enumerate(files) for index in range(file.count)], dtype=np.int64)
    collection = Collection(
        source,
        chosen,
        plan.names,
        plan.wavelengths,
        (),
        tuple(files),
        notices,
        items,
        plan.order,
        None,
        (),
        tuple(relative),
        warnings,
    )
    if found.per_image is not None:
        if len(found.per_image) != len(items):
            raise DataError(f"{labels}: {len(found.per_image)} labels for {len(items)} images", hint="set data.labels")
        collection.labels, collection.class_names = found.per_image, found.class_names
    elif found.per_file is not None:
        if chosen == "scenes":
            raise DataError(
                f"{labels}: a table labels whole images, and {source} is read as scenes", hint="set data.layout = 'images'"
            )
        collection.labels, collection.class_names = found.per_file[items[:, 0]], found.class_names
    elif found.rasters is not None:
        collection.label_rasters, collection.class_names = found.rasters, found.class_names
    elif classes is not None and chosen == "images":
        per_file, collection.class_names = classes
        collection.labels = per_file[items[:, 0]]
    elif labels == "auto" and (own := own_labels(files, ignored_labels, notices)) is not None:
        collection.labels, collection.class_names = own
    _check_pixels(collection, allow_broken)
    if layout == "auto":
        notices.append(_explain(collection))
    return collection


def _synthetic(
    count: int, seed: int, labels: str, channels: tuple[str, ...] | None, wavelengths: tuple[float, ...] | None
) -> Collection:
    from auxmae.data.synthetic import CHANNEL_NAMES, CLASS_NAMES, WAVELENGTHS, generate

    pixels, classes = generate(count, size=64, seed=seed)
    file = replace(memory_file(pixels, Path(SYNTHETIC), names=tuple(CHANNEL_NAMES)), wavelengths=tuple(WAVELENGTHS))
    notices: list[str] = []
    plan: ChannelPlan = plan_channels([file], channels, wavelengths, notices)
    items = np.stack([np.zeros(count, dtype=np.int64), np.arange(count, dtype=np.int64)], axis=1)
    collection = Collection(
        SYNTHETIC,
        "array",
        plan.names,
        plan.wavelengths,
        (),
        (file,),
        notices,
        items,
        plan.order,
        relative_paths=(SYNTHETIC,),
    )
    if labels == "auto":
        collection.labels, collection.class_names = np.asarray(classes, dtype=np.int64), tuple(CLASS_NAMES)
    return collection


def _without_label_files(paths: list[Path], labels: str) -> list[Path]:
    """The files but for those that `data.labels` names, unless these are images too."""
    place = label_place(labels)
    if place is None:
        return paths
    path, key = place
    named = path.resolve()
    # Rasters may lie in the images' own folder.
    apart = [one for one in paths if not one.resolve().is_relative_to(named)] or paths
    return paths if key and len(apart) < len(paths) and _holds_cube(path, key) else apart


def _holds_cube(path: Path, key: str) -> bool:
    """Whether a file of arrays holds one of an image's axes beside that of the labels."""
    from auxmae.data.readers import ARRAY_SUFFIXES, list_arrays

    arrays = list_arrays(path) if path.suffix.lower() in ARRAY_SUFFIXES else {}
    return any(name != key and len(shape) > 2 for name, (shape, _) in arrays.items())


def _open_all(
    paths: list[Path], options: ReadOptions, allow_broken: bool, notices: list[str], progress: Progress | None
) -> list[ImageFile]:
    from auxmae.data.readers import open_image

    def attempt(path: Path) -> ImageFile | DataError:
        try:
            return open_image(path, options)
        except DataError as error:
            return error

    instead = "leave it out with data.exclude or data.allow_broken"
    files, broken = list[ImageFile](), list[str]()
    # Opening is mostly waiting for the disk: a few threads hide it.
    with ThreadPoolExecutor(max_workers=min(8, len(paths))) as pool:
        for done, result in enumerate(pool.map(attempt, paths), start=1):
            if isinstance(result, ImageFile):
                files.append(result)
            elif allow_broken:
                broken.append(result.message)
            else:
                pool.shutdown(wait=False, cancel_futures=True)
                raise DataError(result.message, hint=result.hint or (instead if len(paths) > 1 else None))
            if progress is not None:
                progress(done, len(paths))
    if not files:
        raise DataError(f"none of the {len(paths)} files can be read; the first: {broken[0]}")
    notices.extend(f"left out: {message}" for message in broken)
    return files


def _leave_out_labels(files: list[ImageFile], labels: str, notices: list[str]) -> list[ImageFile]:
    """Label rasters among multi-channel images are told from them: one channel, whole numbers, few values."""
    if len(files) < 2 or all(file.channels == 1 for file in files):
        return files
    rasters = [file.path for file in files if file.channels == 1 and is_label_raster(file)]
    if len(rasters) == 1 and labels in ("auto", "none"):
        notices.append(
            f"{rasters[0].name} looks like a label raster (one channel, few whole numbers) and is not used as an image; "
            f"use its labels with --labels {rasters[0]}"
        )
    elif rasters and labels in ("auto", "none"):
        notices.append(
            f"{len(rasters)} files, {rasters[0].name} the first, look like label rasters (one channel, few whole numbers) and "
            f"are not used as images; use their labels with --labels {os.path.commonpath([path.parent for path in rasters])}"
        )
    left_out = set(rasters)
    return [file for file in files if file.path not in left_out]


def _choose_layout(layout: str, files: Sequence[ImageFile], has_classes: bool, has_raster: bool) -> Layout:
    has_array = any(file.count > 1 for file in files)
    if layout == "scenes":
        return "scenes"
    if layout == "array":
        return "array"
    if layout == "images":
        return "images"
    if has_array:
        return "array"
    if has_raster or len(files) == 1:
        return "scenes"
    if has_classes:
        return "images"
    smallest = min(min(file.height, file.width) for file in files)
    largest = max(max(file.height, file.width) for file in files)
    few = any(len(files) < count and smallest >= side for count, side in SCENES)
    return "scenes" if few or largest > IMAGE_SIDE else "images"


def _explain(collection: Collection) -> str:
    what = {
        "images": "each file is one image",
        "array": "each entry of the array is one image",
        "scenes": "the files are scenes, cut into crops",
    }[collection.layout]
    return f"layout: {collection.layout} ({what}; set data.layout to change it)"


def _check_pixels(collection: Collection, allow_broken: bool) -> None:
    """Leaves out images without a valid pixel, finds files that break only when pixels are read, and tells of rounding."""
    if len(collection) > CHECKED_IMAGES and not allow_broken:
        return
    keep = np.zeros(len(collection), dtype=bool)
    largest = 0.0
    magnitudes = np.zeros(len(collection))
    digests = dict[bytes | None, list[int]]()
    for item in range(len(collection)):
        file = collection.file_of(item)
        try:
            for window in _probe_windows(file):
                image = collection.read(item, window)
                if image.valid.any():
                    keep[item] = True
                    magnitudes[item] = np.abs(image.pixels).max()
                    if image.pixels.shape[1:] == (file.height, file.width):
                        digests.setdefault(_digest(image.pixels), []).append(item)
                    if file.dtype.kind in "iu":
                        largest = max(largest, magnitudes[item])
                    break
        except DataError as error:
            if not allow_broken:
                raise
            collection.notices.append(f"left out: {error.message}")
            continue
        if not keep[item]:
            where = file.path.name + (f", image {int(collection.items[item, 1])}" if file.count > 1 else "")
            collection.notices.append(f"left out: {where} has no valid pixel (all nodata, NaN, or beyond the range of float32)")
    if not keep.any():
        raise DataError(
            f"{collection.source}: no image has a valid pixel (all nodata, NaN, or beyond the range of float32)",
            hint="check data.nodata and the files",
        )
    if largest > _EXACT:
        collection.notices.append(
            f"integers above {_EXACT} (here up to {largest:.4g}) are rounded to float32, to multiples of "
            f"{np.spacing(np.float32(largest)):.0f}: where smaller differences matter, subtract an offset from the files first"
        )
    copies = [group for digest, group in digests.items() if digest is not None and len(group) > 1]
    if copies:
        first, second = (collection.name_of(item) for item in copies[0][:2])
        collection.warnings.append(
            f"{sum(map(len, copies)) - len(copies)} of {len(collection)} images are copies of others, as {second} of {first}: "
            "held out by chance, they make a model look better than it is; leave them out with data.exclude, or keep them "
            "together with data.group_pattern"
        )
    # Of all parts, where statistics are of the training part alone.
    typical = float(np.median(magnitudes[keep]))
    far = np.flatnonzero(keep & (typical > 0) & (magnitudes > _FAR * typical))
    if len(far):
        more = f" and {len(far) - 1} other{'s' * (len(far) > 2)}" if len(far) > 1 else ""
        collection.warnings.append(
            f"{collection.name_of(int(far[0]))}{more}: values up to {magnitudes[far].max():.3g}, where images mostly reach "
            f"{typical:.3g}: leave out with data.exclude, or set data.nodata if that value means no data"
        )
    collection.items = collection.items[keep]
    if collection.labels is not None:
        collection.labels = collection.labels[keep]


def _digest(pixels: NDArray[np.float32]) -> bytes | None:
    """What bit-equal images have in common, of at most some 64 × 64 places; None where these all hold one value."""
    height, width = pixels.shape[1:]
    some = np.ascontiguousarray(pixels[:, :: max(height // 64, 1), :: max(width // 64, 1)])
    return (
        None
        if some.min() == some.max()
        else hashlib.blake2b(some.tobytes(), digest_size=16).digest() + repr(pixels.shape).encode()
    )


def _probe_windows(file: ImageFile) -> list[Window]:
    """The whole of a small image; of a large one its end (where truncation shows), its middle, and a coarse grid."""
    height, width = file.height, file.width
    h, w = min(height, _CHECK_SIDE), min(width, _CHECK_SIDE)
    if (h, w) == (height, width):
        return [Window(0, 0, h, w)]
    places = [(1.0, 1.0), (0.5, 0.5), *((i / 7, j / 7) for i in range(8) for j in range(8))]
    return [Window(round(y * (height - h)), round(x * (width - w)), h, w) for y, x in places]
