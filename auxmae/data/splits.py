"""Which images, or which blocks of a scene, are trained on, validated on, and tested on."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auxmae.data.collection import Collection
from auxmae.data.image import Window
from auxmae.errors import DataError, SettingsError


@dataclass(frozen=True)
class Part:
    """What one part holds: rectangles of items; a whole image is the rectangle of its size.

    Attributes:
        areas: (item, window) pairs.
        held_out: for scenes, the windows of each item that belong to other parts; crops never touch them.
    """

    areas: tuple[tuple[int, Window], ...]
    held_out: dict[int, tuple[Window, ...]]


@dataclass(frozen=True)
class Splits:
    """Train, validation and test; `digest` identifies who went where."""

    train: Part
    validation: Part
    test: Part
    method: str
    digest: str


def resolve_image_size(collection: Collection, requested: int | None, patch_size: int, limit: int = 64) -> int:
    """Side of the crops, px: as requested, or chosen so that the data holds enough of them.

    Images are taken whole up to `limit`; a scene gives at least three crops a side, so that parts can be held out.  The
    result is a multiple of the patch size where the data allows one.

    Raises:
        SettingsError: the request is smaller than a patch.
    """
    if requested is not None:
        if requested < patch_size:
            raise SettingsError(f"model.image_size ({requested} px) is smaller than model.patch_size ({patch_size} px)")
        return requested
    side = collection.smallest_side()
    if collection.layout == "scenes":
        side = max(side // 3, min(side, patch_size))
    side = min(side, max(limit, patch_size))
    return max(side // patch_size * patch_size, patch_size)


def split_collection(
    collection: Collection,
    *,
    method: str = "auto",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    image_size: int,
    block_size: int | None = None,
    group_pattern: str = "",
    seed: int = 0,
) -> Splits:
    """Splits a collection.

    Args:
        collection: what to split.
        method: "random" (stratified by class), "group" (by `group_pattern` on the path), "block" (squares of scenes), or
            "auto": block for scenes, random otherwise.
        validation_fraction, test_fraction: parts held out.
        image_size: side of the crops, px; a block holds at least one.
        block_size: side of a block, px; None for a fifth of the shorter side, at least `image_size`.
        group_pattern: regular expression whose first group names an image's group.
        seed: of the assignment.

    Raises:
        DataError: too few images or blocks; SettingsError: a pattern that does not fit.
    """
    if method == "auto":
        method = "block" if collection.layout == "scenes" else "random"
    fractions = (validation_fraction, test_fraction)
    generator = np.random.default_rng(seed)
    held: dict[int, tuple[Window, ...]] = {}
    if method == "block":
        units = [(item, block) for item in range(len(collection)) for block in _blocks(collection.size_of(item), image_size, block_size)]
        assignment = _assign_blocks(units, fractions, generator)
    else:
        units = [(item, Window(0, 0, *collection.size_of(item))) for item in range(len(collection))]
        if method == "group":
            keys = _groups(collection, group_pattern)
            assignment = _assign_groups(keys, fractions, generator)
        else:
            labels = np.zeros(len(collection), np.int64) if collection.labels is None else collection.labels
            assignment = _assign_random(labels, fractions, generator)
    if not (assignment == 0).any():
        raise DataError(f"{collection.source}: nothing is left to train on", hint="lower data.validation_fraction and data.test_fraction")
    parts = []
    for number in range(3):
        if method == "block":
            held = {}
            for (item, window), part in zip(units, assignment, strict=True):
                if part != number:
                    held[item] = (*held.get(item, ()), window)
        parts.append(Part(tuple(unit for unit, part in zip(units, assignment, strict=True) if part == number), held))
    digest = hashlib.sha256(repr([(unit, int(part)) for unit, part in zip(units, assignment, strict=True)]).encode()).hexdigest()
    if len(units) > 1:
        empty = [name for name, part, share in zip(("validation", "test"), parts[1:], fractions, strict=True) if share and not part.areas]
        if empty:
            collection.notices.append(f"too few images for a {' and a '.join(empty)} part: {'none is' if len(empty) == 1 else 'none are'} held out")
    else:
        collection.notices.append("only one image or block: it is trained on, and nothing is held out")
    return Splits(parts[0], parts[1], parts[2], method, digest[:16])


def _blocks(size: tuple[int, int], image_size: int, block_size: int | None) -> list[Window]:
    """Squares that cover the image; what is left over at the right and the bottom widens the last ones."""
    side = max(block_size or max(image_size, min(size) // 5), min(image_size, *size))
    edges = []
    for length in size:
        count = max(length // side, 1)
        edges.append([*(number * side for number in range(count)), length])
    rows, columns = edges
    return [
        Window(top, left, bottom - top, right - left)
        for top, bottom in zip(rows, rows[1:], strict=False)
        for left, right in zip(columns, columns[1:], strict=False)
    ]


def _counts(total: int, fractions: tuple[float, float]) -> tuple[int, int]:
    """How many of `total` are validated and tested on: at least one each where three or more are there."""
    validation, test = (max(round(total * fraction), 1) if fraction and total >= 3 else 0 for fraction in fractions)
    if total == 2 and fractions[1]:
        test = 1
    while validation + test >= max(total, 1):
        if test >= validation:
            test -= 1
        else:
            validation -= 1
    return validation, test


def _assign_random(labels: NDArray[np.int64], fractions: tuple[float, float], generator: np.random.Generator) -> NDArray[np.int64]:
    assignment = np.zeros(len(labels), np.int64)
    counts = np.unique(labels, return_counts=True)[1]
    # Classes too small to be split keep their proportions as well as they can: everything is drawn from one pot then.
    strata = labels if counts.min() >= 5 else np.zeros_like(labels)
    for value in np.unique(strata):
        members = generator.permutation(np.flatnonzero(strata == value))
        validation, test = _counts(len(members), fractions)
        assignment[members[:validation]] = 1
        assignment[members[validation : validation + test]] = 2
    return assignment


def _assign_blocks(
    units: list[tuple[int, Window]], fractions: tuple[float, float], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Blocks are drawn by place, so that images of one place (several dates) hold out the same ground."""
    places = sorted({(window.top, window.left, window.height, window.width) for _, window in units})
    order = generator.permutation(len(places))
    validation, test = _counts(len(places), fractions)
    rank = {places[index]: number for number, index in enumerate(order)}

    def part(window: Window) -> int:
        number = rank[(window.top, window.left, window.height, window.width)]
        return 1 if number < validation else 2 if number < validation + test else 0

    return np.array([part(window) for _, window in units], np.int64)


def _groups(collection: Collection, pattern: str) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"data.group_pattern is no regular expression: {error}") from error
    keys = []
    for item in range(len(collection)):
        found = expression.search(collection.relative_paths[int(collection.items[item][0])])
        if found is None:
            raise SettingsError(
                f"data.group_pattern finds no group in {collection.relative_paths[int(collection.items[item][0])]}", hint="every image's path must match the pattern"
            )
        keys.append(found.group(1) if expression.groups else found.group(0))
    return keys


def _assign_groups(keys: list[str], fractions: tuple[float, float], generator: np.random.Generator) -> NDArray[np.int64]:
    names = sorted(set(keys))
    validation, test = _counts(len(names), fractions)
    order = generator.permutation(len(names))
    part = {names[index]: 1 if number < validation else 2 if number < validation + test else 0 for number, index in enumerate(order)}
    return np.array([part[key] for key in keys], np.int64)
