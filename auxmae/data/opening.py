"""Opens a source: its files found, read by their kind, and checked against each other, its channels named, its labels found.

How `layout = "auto"` decides: the embedded scenes and files with an N axis are an *array*; labels in a raster mean
*scenes*; one image alone is a *scene*; class folders, or a label for each image, mean *images*; otherwise fewer than 5 images
of at least 48 px a side, fewer than 16 of at least 144 px, or any image of more than 512 px are *scenes*, and everything
else is a folder of *images*.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from auxmae.data.band_files import suggest_pattern
from auxmae.data.channels import ChannelPlan, plan_channels, rename_channels
from auxmae.data.collection import Collection, Layout, memory_file
from auxmae.data.exclusion import Exclusion
from auxmae.data.files import find_files, relative_path
from auxmae.data.image import ImageFile, ReadOptions
from auxmae.data.joining import find_channel, join_channels
from auxmae.data.label_rasters import is_label_raster
from auxmae.data.labels import check_label_file, folder_labels, label_place, label_size, load_labels, own_labels
from auxmae.data.notices import said_once
from auxmae.data.pairing import ImageNames, shorter_names
from auxmae.data.pixel_checks import check_pixels, how_to_do_without
from auxmae.errors import DataError

Progress = Callable[[int, int], None]

SYNTHETIC = "synthetic"
# Few and large files are scenes to cut; many or small ones are images as they are.
IMAGE_SIDE = 512
# Fewer files than this, of at least this side, px: a few are too few to hold out some of them, and some more may be cut into
# blocks only where they are large enough for three a side.
SCENES = ((5, 48), (16, 144))


def open_collection(
    source: str,
    *,
    labels: str = "auto",
    ignored_labels: tuple[int, ...] | None = None,
    layout: str = "auto",
    options: ReadOptions | None = None,
    channel_names: tuple[str, ...] | None = None,
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
        channel_names: of all channels, in the files' order, in place of the files' own.
        channels: names to select and order by, or to give where there are none.
        wavelengths: centre wavelengths, nm, of all channels used.
        channel_pattern: regular expression on files' paths whose first group names a channel: each file is one channel of an
            image (see `join_channels`); "": each is an image.
        group_pattern: regular expression on images' paths whose first group names the group that an image is of, where a label
            table's rows name groups.
        exclude: file name patterns to leave out, of images and of label rasters; see `Exclusion`.
        allow_broken: leave out files that cannot be read, each with a notice, instead of stopping.
        synthetic_images: number of embedded scenes.
        seed: of the embedded scenes.
        progress: told (done, total) while files are opened.

    Raises:
        DataError: nothing usable is there, or files do not fit each other.
        SettingsError: a channel name is unknown.
    """
    if source == SYNTHETIC:
        return _synthetic(synthetic_images, seed, labels, channel_names, channels, wavelengths)
    options = options or ReadOptions()
    if (names_of_all := channel_names or channels) or channel_pattern:
        options = replace(options, channels=1 if channel_pattern else len(names_of_all or ()))
    # Images that only their labels make readable would be asked for their axes, where it is the labels that are missing.
    check_label_file(labels)
    key = None if labels == "auto" else labels[1:] if labels.startswith(":") else ""
    options = replace(options, plane=label_size(labels), plane_key=key)
    notices: list[str] = []
    warnings: list[str] = []
    exclusion = Exclusion(exclude)
    root, paths = find_files(source, exclusion, notices)
    known = _without_label_files([*paths, *exclusion.left_out], labels)
    paths = _without_label_files(paths, labels)
    files = _agree_on_transparency(_open_all(paths, options, allow_broken, notices, progress), options, notices)
    opened = {path for file in files for path in file.paths}
    if not channel_pattern:
        # What the pattern finds are channels, however few their values, and what it does not find is no image anyway.
        files = _leave_out_labels(files, labels, notices)
    # By other endings than images have, what was left out may be anything.
    endings = {file.path.suffix.lower() for file in files}
    left_out = [relative_path(path, root) for path in known if path not in opened and path.suffix.lower() in endings]
    relative = [relative_path(file.path, root) for file in files]
    if channel_pattern:
        every = [find_channel(path, channel_pattern) for path in (*left_out, *relative)]
        files, relative = join_channels(files, relative, channel_pattern, allow_broken, notices)
        # Images of which all files are left out, or which lack a channel.
        left_out = sorted({found[0] for found in every if found is not None} - set(relative))
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
    try:
        if channel_names is not None:
            files = rename_channels(files, channel_names, notices)
        plan = plan_channels(files, channels, wavelengths, notices)
    except DataError as error:
        # Bands do not fit what lies beside them.
        raise DataError(error.message, hint="; else ".join(filter(None, [*warnings[:1], error.hint]))) from error

    classes = folder_labels(relative, notices) if labels == "auto" and layout != "scenes" else None
    parts = [[relative_path(part, root) for part in file.parts] for file in files]
    names = ImageNames(relative, root, group_pattern, parts, left_out)
    found = load_labels(labels, files, names, notices, ignored_labels, exclusion, options.axes)
    if idle := exclusion.idle():
        notices.append(f"data.exclude: no file is called like {', '.join(idle)}")
    own_of_all = labels == "auto" and all(file.labels is not None for file in files)
    of_whole_images = classes is not None or found.per_image is not None or found.per_file is not None or own_of_all
    chosen = _choose_layout(layout, files, of_whole_images, found.rasters is not None)
    if chosen != "images":
        # Of images, a sample is mostly a whole one anyway.
        notices.extend(_decoded_again(files))
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
    if found.per_image is not None or found.per_file is not None:
        if chosen == "scenes":
            raise DataError(
                f"{labels}: its labels are of whole images, and {source} is read as scenes", hint="set data.layout = 'images'"
            )
        collection.labels = found.per_image if found.per_file is None else found.per_file[items[:, 0]]
        collection.class_names = found.class_names
    elif found.rasters is not None:
        collection.label_rasters, collection.class_names = found.rasters, found.class_names
    elif own_of_all and chosen == "scenes":
        # Of one image alone a label is of no use.
        if len(items) > 1:
            notices.append("labels: the files' own are of whole images, and not taken for scenes (set data.layout = 'images')")
    # What an array says of each of its images is closer than the folder that its file is in.
    elif labels == "auto" and (own := own_labels(files, ignored_labels, notices)) is not None:
        collection.labels, collection.class_names = own
    elif classes is not None:
        per_file, collection.class_names = classes
        collection.labels = per_file[items[:, 0]]
        notices.append(
            f"labels: {len(collection.class_names)} classes by folder (set data.labels = 'none' if the folders are no classes)"
        )
    check_pixels(collection, allow_broken)
    if layout == "auto":
        notices.append(_explain(collection))
    return collection


def _synthetic(
    count: int,
    seed: int,
    labels: str,
    channel_names: tuple[str, ...] | None,
    channels: tuple[str, ...] | None,
    wavelengths: tuple[float, ...] | None,
) -> Collection:
    from auxmae.data.synthetic import CHANNEL_NAMES, CLASS_NAMES, WAVELENGTHS, generate

    pixels, classes = generate(count, size=64, seed=seed)
    file = replace(memory_file(pixels, Path(SYNTHETIC), names=tuple(CHANNEL_NAMES)), wavelengths=tuple(WAVELENGTHS))
    notices: list[str] = []
    if channel_names is not None:
        [file] = rename_channels([file], channel_names, notices)
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
    from auxmae.data.readers.envi import data_file

    place = label_place(labels)
    if place is None:
        return paths
    path, key = place
    named = data_file(path).resolve()
    # Rasters may lie in the images' own folder.
    apart = [one for one in paths if not one.resolve().is_relative_to(named)] or paths
    return paths if key and len(apart) < len(paths) and _holds_cube(path, key) else apart


def _holds_cube(path: Path, key: str) -> bool:
    """Whether a file of arrays holds one of an image's axes beside that of the labels."""
    from auxmae.data.readers import ARRAY_SUFFIXES, list_arrays

    arrays = list_arrays(path) if path.suffix.lower() in ARRAY_SUFFIXES else {}
    return any(name != key and len(shape) > 2 for name, (shape, _) in arrays.items())


def _once_a_set(files: list[ImageFile]) -> list[ImageFile]:
    """Without the files that another is read from too: an OME-TIFF in several files is the same image by each of their names."""
    seen, kept = set[Path](), set[Path]()
    several = any(file.parts for file in files)
    # A file of a set that does not describe it is none of its own either.
    for file in sorted(files, key=lambda file: not file.parts) if several else ():
        if file.path.resolve() not in seen:
            seen.update(part.resolve() for part in file.parts)
            kept.add(file.path)
    return [file for file in files if file.path in kept] if several else files


def _open_all(
    paths: list[Path], options: ReadOptions, allow_broken: bool, notices: list[str], progress: Progress | None
) -> list[ImageFile]:
    from auxmae.data.readers import open_image

    def attempt(path: Path) -> ImageFile | DataError:
        try:
            return open_image(path, options)
        except DataError as error:
            return error

    files, broken = list[ImageFile](), list[str]()
    # Opening is mostly waiting for the disk: a few threads hide it.
    with ThreadPoolExecutor(max_workers=min(8, len(paths))) as pool:
        for done, (path, result) in enumerate(zip(paths, pool.map(attempt, paths), strict=True), start=1):
            if isinstance(result, ImageFile):
                files.append(result)
            elif allow_broken:
                broken.append(result.message)
            else:
                pool.shutdown(wait=False, cancel_futures=True)
                raise DataError(result.message, hint=how_to_do_without(path, result.hint) if len(paths) > 1 else result.hint)
            if progress is not None:
                progress(done, len(paths))
    if not files:
        raise DataError(f"none of the {len(paths)} files can be read; the first: {broken[0]}")
    notices.extend(f"left out: {message}" for message in broken)
    return _once_a_set(files)


def _agree_on_transparency(files: list[ImageFile], options: ReadOptions, notices: list[str]) -> list[ImageFile]:
    """A band marked as transparency is that in every file or in none, by its values in all of them.

    By itself a chip of near infrared that is saturated, or all 0, looks like transparency, and a soft tile like a channel.
    """
    from auxmae.data.readers import open_image
    from auxmae.data.readers.geotiff import is_transparency

    alphas = {file.path: file.alpha for file in files if file.alpha is not None}
    if not alphas:
        return files
    transparency = is_transparency(alphas.values())
    others = [path for path, alpha in alphas.items() if is_transparency([alpha]) != transparency]
    if not others:
        return files
    deciding = max(alphas, key=lambda path: alphas[path][0 if transparency else 1])
    what = "is that" if transparency else "is read as a channel"
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    notices.append(
        f"{others[0].name}{more}: the last band is marked as transparency and {what}, as in {deciding.name}: one way for all"
    )
    overruled, agreed = set(others), replace(options, transparency=transparency)
    return [open_image(file.path, agreed) if file.path in overruled else file for file in files]


def _leave_out_labels(files: list[ImageFile], labels: str, notices: list[str]) -> list[ImageFile]:
    """Label rasters among images are told from them: one channel, whole numbers, few values.  Where all images have one channel,
    those alone that lie in a folder that `labels` names, and are called like another file and go on after its name.
    """
    if len(files) < 2:
        return files
    place = label_place(labels)
    likely = [file for file in files if file.channels == 1]
    if len(likely) == len(files):
        likely = [] if place is None else _called_like_others(files, place[0])
    rasters = [file.path for file in likely if is_label_raster(file)]
    # Those that `labels` names are used.
    idle = [path for path in rasters if place is None or not path.resolve().is_relative_to(place[0].resolve())]
    if idle:
        one = len(idle) == 1
        told = (
            f"{idle[0].name} looks like a label raster (one channel, few whole numbers) and is not used as an image"
            if one
            else f"{len(idle)} files, {idle[0].name} the first, look like label rasters (one channel, few whole numbers) and "
            "are not used as images"
        )
        if labels in ("auto", "none"):
            folder = os.path.commonpath([path.parent for path in idle])
            told += f"; use {'its' if one else 'their'} labels with --labels {idle[0] if one else folder}"
        notices.append(told)
    left_out = set(rasters)
    return [file for file in files if file.path not in left_out]


def _called_like_others(files: Sequence[ImageFile], folder: Path) -> list[ImageFile]:
    """Those in a folder whose names go on after another's: a_mask.png beside a.tif."""
    folder = folder.resolve()
    inside = [file for file in files if folder in file.path.resolve().parents]
    relative = [relative_path(file.path.resolve(), folder) for file in inside]
    names = ImageNames(relative)
    return [file for file, path in zip(inside, relative, strict=True) if any(map(names.find, shorter_names(path)[1:]))]


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


def _decoded_again(files: Sequence[ImageFile]) -> list[str]:
    """Says where samples, drawn from several files in turn, are slow since these are decoded whole and too large to be kept."""
    from auxmae.data.readers import cache

    sizes = [file.whole for file in files if file.whole]
    # A data set keeps float32 pixels and validity of as many bytes, 5 a value: less than the file's own 8 of float64.
    kept = 5 * sum(file.count * file.channels * file.height * file.width for file in files)
    if len(sizes) < 2 or min(sum(sizes), kept) <= cache.BUDGET:
        return []
    return [
        f"{len(sizes)} files of a format that is not read by windows are {sum(sizes) / 2**20:.0f} MiB, more than the "
        f"{cache.BUDGET / 2**20:.0f} MiB that a process keeps: most samples decode a whole file; store them as npy, Zarr, "
        "MATLAB v7.3 or tiled GeoTIFF"
    ]


def _explain(collection: Collection) -> str:
    what = {
        "images": "each file is one image",
        "array": "each entry of the array is one image",
        "scenes": "the files are scenes, cut into crops",
    }[collection.layout]
    return f"layout: {collection.layout} ({what}; set data.layout to change it)"
