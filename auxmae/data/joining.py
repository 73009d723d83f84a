"""Images that are stored one file a channel: which files are one image, and how it is read from them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from auxmae.data.channels import natural_order, shortened
from auxmae.data.georeference import describe_difference, describe_shift, same_place
from auxmae.data.image import ImageFile, MultiChannelImage, Window
from auxmae.errors import DataError

Read = Callable[[int, Window | None], MultiChannelImage]
_SHOWN = 3


def join_channels(
    files: Sequence[ImageFile], relative_paths: Sequence[str], pattern: str, allow_broken: bool, notices: list[str]
) -> tuple[list[ImageFile], list[str]]:
    """Joins files of one channel into images → (the images, their paths below the source).

    Files are one image when their paths are the same but for the channel's name, and for what further groups of the pattern
    match: an identifier of the file, for one.  These are taken out of the path: site1/site1_B02.tif becomes site1/site1.tif, and
    cell7/DAPI.tif becomes cell7.

    Args:
        files: of one channel each.
        relative_paths: of the files, below their source.
        pattern: regular expression on these paths; its group `channel`, else its first one, names the channel, others match
            what differs besides.
        allow_broken: leave out images that lack a channel, each with a notice, instead of stopping.
        notices: told which files have another name, and which channels are coarser.

    Raises:
        DataError: nothing matches, a file holds more than one channel, an image lacks a channel or has it twice in one size,
            sizes are no multiples of each other, or files lie elsewhere.
    """
    images: dict[str, dict[str, ImageFile]] = {}
    strangers, coarser = [], set[str]()
    for file, path in zip(files, relative_paths, strict=True):
        found = find_channel(path, pattern)
        if found is None:
            strangers.append(path)
            continue
        image, name = found
        if file.channels != 1 or file.count != 1:
            raise DataError(
                f"{path}: it holds {file.count} × {file.channels} channels, and data.channel_pattern joins files of one channel",
                hint="leave it out with data.exclude, or correct the pattern",
            )
        channels = images.setdefault(image, {})
        other = channels.get(name)
        if other is not None:
            if (other.height, other.width) == (file.height, file.width):
                raise DataError(
                    f"{path}: its image has a channel {name!r} already, {other.path.name}", hint="correct data.channel_pattern"
                )
            # As Sentinel-2's products have them: one band in several resolutions.
            coarser.add(name)
            file = max(other, file, key=lambda one: one.height * one.width)
        channels[name] = file
    if not images:
        raise DataError(
            f"data.channel_pattern {pattern!r} finds no channel in any path, such as {relative_paths[0]}",
            hint="correct the pattern; its group is the channel's name",
        )
    if strangers:
        notices.append(
            f"left out, as data.channel_pattern finds no channel in their paths: {', '.join(strangers[:_SHOWN])}"
            + (f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else "")
        )
    if coarser:
        notices.append(f"of several resolutions the finest is taken: {', '.join(sorted(coarser, key=natural_order))}")
    names = tuple(sorted({name for channels in images.values() for name in channels}, key=natural_order))
    joined, paths, coarse = list[ImageFile](), list[str](), dict[str, tuple[int, Path]]()
    for path, channels in images.items():
        if missing := [name for name in names if name not in channels]:
            lacks = f"{path}: there is no file for its channel{'s' * (len(missing) > 1)} {', '.join(missing[:_SHOWN])}"
            if not allow_broken:
                raise DataError(
                    lacks,
                    hint="add it, or leave files out with data.exclude, or such images with data.allow_broken = true; where an "
                    "image's files differ in more than the channel, put parentheses around that in data.channel_pattern too",
                )
            notices.append(f"left out: {lacks}")
            continue
        joined.append(_join(path, names, [channels[name] for name in names], coarse))
        paths.append(path)
    if not joined:
        raise DataError(f"no image has all of the channels {', '.join(names)}", hint="correct data.channel_pattern")
    notices.extend(
        f"channel {name} is {factor} times coarser: its pixels are repeated; data.exclude leaves files such as {path.name} out"
        for name, (factor, path) in coarse.items()
    )
    notices.extend(_of_other_types(names, images.values()))
    return joined, paths


def find_channel(path: str, pattern: str) -> tuple[str, str] | None:
    """The path of the image that a file is of, and the channel's name, as `join_channels` has them; None where none is found."""
    found = re.search(pattern, path)
    name = None if found is None else found.group(found.re.groupindex.get("channel", 1))
    return None if found is None or not name else (_common(path, found), name)


def _of_other_types(names: Sequence[str], images: Iterable[dict[str, ImageFile]]) -> list[str]:
    """Says which channels are stored in another type than most: flags of quality beside reflectances, for one."""
    first = {name: file for channels in reversed([*images]) for name, file in channels.items()}
    most = Counter(file.dtype for file in first.values()).most_common(1)[0][0]
    return [
        f"channel {name} is stored as {first[name].dtype}, most others as {most}: where it holds no measurement, leave files "
        f"such as {first[name].path.name} out with data.exclude"
        for name in names
        if first[name].dtype != most
    ]


def _common(path: str, found: re.Match[str]) -> str:
    """The path without what the pattern's groups match, the last of them first: the others' places stay."""
    inner = len(path)
    for start, end in sorted(
        {found.span(group) for group in range(1, found.re.groups + 1)}, key=lambda span: (-span[1], span[0])
    ):
        # A group within another one is gone with it; one that matches nothing stands nowhere, or takes nothing out.
        if start < end <= inner:
            path, inner = _without(path, start, end), start
    return path


def _without(path: str, start: int, end: int) -> str:
    """The path without the channel's name between two places, and without what parts it from the rest.

    Its ending is in small letters: an image's files may differ in .TIF and .tif.
    """
    folder, _, head = path[:start].rpartition("/")
    tail, _, rest = path[end:].partition("/")
    name = head.rstrip("_-. ") + (tail if head else tail.lstrip("_- "))
    # Of a file that is called like its channel nothing is left but the ending.
    kept = "" if name.startswith(".") else name
    whole = PurePosixPath("/".join(part for part in (folder, kept, rest) if part) or path)
    return whole.with_suffix(whole.suffix.lower()).as_posix()


def _join(path: str, names: tuple[str, ...], parts: Sequence[ImageFile], coarse: dict[str, tuple[int, Path]]) -> ImageFile:
    """One image; its grid is that of the largest file, and what is coarser by a whole number is repeated."""
    largest, finest = max(zip(names, parts, strict=True), key=lambda one: one[1].height * one[1].width)
    readers: list[tuple[Read, int]] = []
    shifted: dict[str, list[str]] = {}
    for name, part in zip(names, parts, strict=True):
        factor = finest.height // part.height
        if (part.height * factor, part.width * factor) != (finest.height, finest.width):
            raise DataError(
                f"{part.path}: {part.height}×{part.width} px, and {finest.path.name} of the same image "
                f"{finest.height}×{finest.width} px: no whole number times more",
                hint="bring the files to one size, or leave some out with data.exclude",
            )
        if not same_place(part, finest):
            raise DataError(
                f"{part.path} lies elsewhere than {finest.path.name} of the same image: {describe_difference(part, finest)}",
                hint="warp the files to one grid, correct data.channel_pattern, or leave some out with data.exclude",
            )
        if (shift := describe_shift(part, finest)) is not None:
            shifted.setdefault(shift, []).append(name)
        if factor > 1:
            coarse.setdefault(name, (factor, part.path))
        readers.append((part.read, factor))
    told = [f"{Path(path).name}: {notice.removeprefix(f'{part.path.name}: ')}" for part in parts for notice in part.notices]
    told += [
        f"{Path(path).name}: channel{'s' * (len(beside) > 1)} {shortened(beside)} lie{'s' * (len(beside) == 1)} {shift} beside "
        f"channel {largest}, and {'is' if len(beside) == 1 else 'are'} read as if at its place (as up to half of one)"
        for shift, beside in shifted.items()
    ]
    waves = [part.wavelengths[0] for part in parts if part.wavelengths is not None]
    return ImageFile(
        Path(path),
        1,
        len(parts),
        finest.height,
        finest.width,
        np.result_type(*(part.dtype for part in parts)),
        partial(_read, tuple(readers)),
        names,
        tuple(waves) if len(waves) == len(parts) else None,
        georeference=finest.georeference,
        notices=tuple(dict.fromkeys(told)),
        whole=sum(part.whole for part in parts),
        guessed_axes=any(part.guessed_axes for part in parts),
        parts=tuple(part.path for part in parts),
    )


def _read(readers: tuple[tuple[Read, int], ...], index: int, window: Window | None) -> MultiChannelImage:
    found = [_read_repeated(read, factor, index, window) for read, factor in readers]
    pixels, valid = (np.concatenate([getattr(image, what) for image in found]) for what in ("pixels", "valid"))
    return MultiChannelImage(pixels, valid)


def _read_repeated(read: Read, factor: int, index: int, window: Window | None) -> MultiChannelImage:
    """A window of a file as if each of its pixels were factor × factor."""
    if factor == 1:
        return read(index, window)
    if window is None:
        image = read(index, None)
        rows = columns = slice(None)
    else:
        top, left = window.top // factor, window.left // factor
        height = -(-(window.top + window.height) // factor) - top
        width = -(-(window.left + window.width) // factor) - left
        image = read(index, Window(top, left, height, width))
        rows = slice(window.top - top * factor, window.top - top * factor + window.height)
        columns = slice(window.left - left * factor, window.left - left * factor + window.width)
    pixels, valid = (
        getattr(image, what).repeat(factor, axis=1).repeat(factor, axis=2)[:, rows, columns] for what in ("pixels", "valid")
    )
    return MultiChannelImage(np.ascontiguousarray(pixels), np.ascontiguousarray(valid))
