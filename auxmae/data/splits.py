"""Training, validation and test parts: at random, by group, or by spatial block, none overlapping another.

Neighbouring pixels of one scene are alike, so scenes are held out by blocks by default: a crop lies in the blocks of one
part only.  Scenes that overlap on the ground are held out at the same ground, to a pixel where their grids differ; without a
georeference, scenes of equal size at the same blocks: they may be dates of one place.  Images that overlap on the ground are
held out together where that leaves parts of about the sizes asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auxmae.data.blocks import FEWEST_BLOCKS, LEFT_OUT, cut_scenes, follow_ground
from auxmae.data.collection import Collection
from auxmae.data.footprints import connected, connecting_pairs
from auxmae.data.group_names import suggest_groups
from auxmae.errors import DataError, SettingsError

TRAIN, VALIDATION, TEST = 0, 1, 2
_NAMES = ("train", "validation", "test")
# Draws among which parts of about the sizes asked for are looked for, where images are held out together.
_DRAWS = 20
# From this number of scenes on, blocks are drawn from all together where each scene by itself would hold out so much more.
_MANY_PLACES = 10
_MORE = 0.1


@dataclass(frozen=True)
class Part:
    """What one part holds.

    Attributes:
        name: "train", "validation" or "test".
        items: (n,) int64 images of the collection (empty where the part holds blocks).
        blocks: (n, 5) int64: scene, top, left, height, width of every block, px.
        groups: (n,) int64 number of what each image or block belongs to and is alike with: a group of `data.group_pattern`, the
            same ground of several scenes or images; None: each stands for itself.
    """

    name: str
    items: NDArray[np.int64]
    blocks: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.items) + len(self.blocks)


@dataclass(frozen=True)
class Splits:
    """The three parts, how they were drawn, and a digest of which image or block went where."""

    train: Part
    validation: Part
    test: Part
    method: str
    digest: str
    notices: tuple[str, ...] = ()


def resolve_image_size(collection: Collection, requested: int | None, patch_size: int, limit: int = 64) -> int:
    """The side of a crop, px.

    Args:
        collection: the images.
        requested: the setting, cut down, with a notice, to the patches that the largest image has; None to choose: images:
            their smallest side, scenes: a third of it (so that even a small scene has three blocks a side), both at most
            `limit`, a multiple of `patch_size`, and two patches at least, where an image has them.  Where it is half or less of
            what the median image alone would have, a notice names the smallest one.
        patch_size: side of a patch, px.
        limit: the largest side chosen, px.

    Raises:
        SettingsError: the setting is smaller than a patch.
    """
    if requested is not None:
        if requested < patch_size:
            raise SettingsError(f"model.image_size ({requested} px) is smaller than model.patch_size ({patch_size} px)")
        longest = int(collection.sides().max())
        useful = -(-longest // patch_size) * patch_size
        if useful < requested:
            collection.notices.append(f"crops of {useful} px in place of {requested}: no image is longer than {longest} px")
        return min(requested, useful)

    def of_side(side: int) -> int:
        wanted = min(limit, side // 3 if collection.layout == "scenes" else side)
        # Of one patch nothing could be hidden.
        least = min(2, max(side // patch_size, 1)) * patch_size
        return max(wanted // patch_size * patch_size, least)

    shorter = collection.sides().min(axis=1)
    size, usual = of_side(int(shorter.min())), of_side(int(np.median(shorter)))
    if 2 * size <= usual:
        number = int(np.unique(collection.items[:, 0])[shorter.argmin()])
        file = collection.files[number]
        collection.notices.append(
            f"crops of {size} px, since {collection.relative_paths[number]} is of {file.height}×{file.width} px; by most images "
            f"they would be of {usual} px: leave the smallest ones out with data.exclude, or set model.image_size = {usual}, for "
            "which these are padded"
        )
    return size


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
    """Assigns every image, or every block of every scene, to one part.

    Args:
        collection: the images.
        method: "random" (stratified by class), "group", "block", or "auto": group where there is a pattern for it, block for
            scenes, random otherwise, where images that overlap on the ground fall into one part.
        validation_fraction, test_fraction: share of images or blocks.
        image_size: side of a crop, px: a block is at least as wide.
        block_size: side of a block, px; None: about an eighth of the scene.
        group_pattern: regular expression on the relative path; its first group names the group.
        seed: of the draw.

    Raises:
        DataError: a path has no group, or there are too few groups.
        SettingsError: the method does not fit the layout.
    """
    scenes, automatic = collection.layout == "scenes", method == "auto"
    if automatic:
        method = "group" if group_pattern else "block" if scenes else "random"
    if method == "block" and not scenes:
        raise SettingsError(
            f"data.split = 'block' cuts scenes, and {collection.source} is read as {collection.layout}",
            hint="set data.layout = 'scenes' or data.split = 'random'",
        )
    random = np.random.default_rng(seed)
    fractions = (validation_fraction, test_fraction)
    notices: list[str] = []
    blocks = np.zeros((0, 5), dtype=np.int64)
    together: NDArray[np.int64] | None = None
    overlaps = np.zeros((0, 2), dtype=np.int64)
    if method == "block":
        blocks, places, together = cut_scenes(collection, image_size, block_size, notices)
        assigned = _assign_blocks(places, together, fractions, random)
        assigned = follow_ground(collection, blocks, places, together, assigned, notices)
        kept = assigned != LEFT_OUT
        blocks, assigned, together = blocks[kept], assigned[kept], together[kept]
    else:
        overlaps = connecting_pairs([collection.file_of(item) for item in range(len(collection))])
        if scenes:
            sizes = np.array([collection.size_of(item) for item in range(len(collection))], dtype=np.int64)
            numbers = np.arange(len(collection), dtype=np.int64)[:, None]
            blocks = np.concatenate([numbers, np.zeros((len(numbers), 2), dtype=np.int64), sizes], axis=1)
    if method == "group":
        names = _groups(collection, group_pattern)
        assigned = _assign_groups(names, len(np.unique(collection.items[:, 0])), fractions, random, notices)
        together = np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)
    elif method == "random":
        labels = collection.labels if collection.labels is not None else np.zeros(len(collection), dtype=np.int64)
        drawn = None
        if automatic and len(overlaps):
            together = connected(overlaps, len(collection))
            drawn = _assign_together(labels, together, fractions, random)
        if together is not None and drawn is not None:
            assigned = drawn
            alike = np.bincount(together)[together] > 1
            notices.append(
                f"{alike.sum()} of {len(collection)} images overlap others on the ground, such as "
                f"{collection.names_of(overlaps[0])}: those that do are held out together "
                "(data.split = 'random' draws each alone)"
            )
        else:
            assigned, together = _assign_stratified(labels, fractions, random), None
            if automatic:
                _warn_of_sets(collection)
    files = np.unique(collection.items[:, 0])
    if method == "random" and not scenes and 1 < len(files) < len(collection):
        notices.append(
            "images of one file fall into different parts; where they show the same thing, as points in time or slices do, hold "
            "out whole files with data.group_pattern = '(.*)'"
        )
    apart = overlaps[assigned[overlaps[:, 0]] != assigned[overlaps[:, 1]]]
    if len(apart):
        way = ""
        if scenes:
            way = "data.split = 'block' holds the same ground out of all, and "
        elif automatic and method == "random" and collection.labels is None:
            # Chips that all overlap are of no groups; labels of whole images do not go with scenes.
            way = "data.layout = 'scenes' holds the same ground out of all, without what lies across the borders, and "
        notices.append(
            ("scenes" if scenes else "images")
            + f" of different parts overlap on the ground, such as {collection.names_of(apart[0])}; "
            + f"{way}data.group_pattern holds out together what it names"
        )
    noun = "block" if method == "block" else "group" if method == "group" else "image"
    for number, fraction in ((VALIDATION, validation_fraction), (TEST, test_fraction)):
        if fraction > 0 and not (assigned == number).any():
            counted = f"1 {noun} is" if len(assigned) == 1 else f"{len(assigned)} {noun}s are"
            notices.append(f"the {_NAMES[number]} part is empty: {counted} too few")
    if not (assigned == TRAIN).any():
        raise DataError(f"{collection.source}: nothing is left to train on", hint="lower data.test_fraction")

    if not scenes:
        _warn_of_classes(collection, assigned)

    def part(number: int) -> Part:
        chosen = assigned == number
        own = None if together is None else together[chosen]
        if scenes:
            return Part(_NAMES[number], np.zeros(0, dtype=np.int64), blocks[chosen], own)
        return Part(_NAMES[number], np.flatnonzero(chosen).astype(np.int64), np.zeros((0, 5), dtype=np.int64), own)

    collection.notices.extend(notice for notice in notices if notice not in collection.notices)
    digest = _digest(collection, assigned, blocks)
    return Splits(part(TRAIN), part(VALIDATION), part(TEST), method, digest, tuple(notices))


def _warn_of_sets(collection: Collection) -> None:
    """Says that images which are held out each alone look, by their names, like several of one thing."""
    paths = [collection.relative_paths[number] for number in np.unique(collection.items[:, 0]).tolist()]
    found = suggest_groups(paths, len(collection.class_names))
    if found is None:
        return
    warning = (
        f"images such as {found.example[0]} and {found.example[1]} look like several of one thing ({found.number} sets), "
        f"and each is held out alone: --set data.group_pattern='{found.pattern}' keeps a set's together, --set "
        "data.split=random says that they are independent"
    )
    collection.warnings.extend([warning] if warning not in collection.warnings else [])


def _warn_of_classes(collection: Collection, assigned: NDArray[np.int64]) -> None:
    """Says which classes lie in the test part and not in the training part, as all do that name places held out whole."""
    if collection.labels is None:
        return
    tested = np.unique(collection.labels[assigned == TEST])
    unseen = np.setdiff1d(tested[tested >= 0], collection.labels[assigned == TRAIN])
    if not len(unseen):
        return
    known = dict(enumerate(collection.class_names))
    names = ", ".join(known.get(number, str(number)) for number in unseen[:4].tolist()) + (", …" if len(unseen) > 4 else "")
    warning = (
        f"{len(unseen)} of {(tested >= 0).sum()} classes of the test part have no image in the training part ({names}), so that "
        "no probe can find them: where they name places, not classes, set data.labels"
    )
    collection.warnings.extend([warning] if warning not in collection.warnings else [])


def how_to_hold_out(collection: Collection, *, crop: int | None = None) -> str:
    """What to set where a part is empty, for people.

    Args:
        collection: what nothing is held out of.
        crop: side of a trained model's crops, px, which no setting changes; None: nothing is trained yet.
    """
    if collection.layout == "scenes" and crop is not None:
        return (
            f"blocks are no smaller than the model's crops of {crop} px: name a larger scene, or several files, of which whole "
            "ones are held out with data.layout = 'images'"
        )
    if collection.layout == "scenes":
        return "cut smaller blocks (data.block_size, model.image_size), or hold out whole files (data.layout = 'images')"
    return "raise data.test_fraction"


def _digest(collection: Collection, assigned: NDArray[np.int64], blocks: NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for number in np.unique(collection.items[:, 0]):
        path = collection.relative_paths[number] if collection.relative_paths else str(number)
        digest.update(path.encode() + b"\0")
    for array in (collection.items, assigned, blocks):
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]


def _counts(total: int, fractions: tuple[float, float]) -> tuple[int, int]:
    """(validation, test) counts of `total`: at least one each where there are three or more; of two, one is tested."""
    validation, test = (round(fraction * total) for fraction in fractions)
    if total >= 2 and fractions[1] > 0:
        test = max(test, 1)
    if total >= 3 and fractions[0] > 0:
        validation = max(validation, 1)
    while validation + test >= total > 0 and validation + test > 0:
        if test > validation:
            test -= 1
        else:
            validation -= 1
    return validation, test


def _draw(total: int, fractions: tuple[float, float], random: np.random.Generator) -> NDArray[np.int64]:
    validation, test = _counts(total, fractions)
    assigned = np.full(total, TRAIN, dtype=np.int64)
    order = random.permutation(total)
    assigned[order[:test]] = TEST
    assigned[order[test : test + validation]] = VALIDATION
    return assigned


def _assign_stratified(
    labels: NDArray[np.int64], fractions: tuple[float, float], random: np.random.Generator
) -> NDArray[np.int64]:
    """Exact counts overall, and the same shares in every class as nearly as they go."""
    total = len(labels)
    validation, test = _counts(total, fractions)
    shuffled = random.permutation(total)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Place of each image in its class, as a share with a random offset: the smallest shares are the test part.
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(total) - np.repeat(starts, sizes)
    share = (rank + np.repeat(random.random(len(sizes)), sizes)) / np.repeat(sizes, sizes)
    order = by_class[np.argsort(share, kind="stable")]
    assigned = np.full(total, TRAIN, dtype=np.int64)
    assigned[order[:test]] = TEST
    assigned[order[test : test + validation]] = VALIDATION
    return assigned


def _assign_together(
    labels: NDArray[np.int64], units: NDArray[np.int64], fractions: tuple[float, float], random: np.random.Generator
) -> NDArray[np.int64] | None:
    """Units of images drawn as images are, each by the class of its first; None where a part has not half of its share."""
    first = np.unique(units, return_index=True)[1]
    wanted = _wanted(len(units), fractions)
    draws = [_assign_stratified(labels[first], fractions, random)[units] for _ in range(_DRAWS)]
    best = min(draws, key=lambda assigned: float(np.abs(_sizes(assigned) - wanted).sum()))
    return best if _has_half(best, wanted) else None


def _sizes(assigned: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(assigned, minlength=len(_NAMES))


def _wanted(total: int, fractions: tuple[float, float]) -> NDArray[np.float64]:
    """How many of `total` images each part is to have."""
    return np.array((1 - sum(fractions), *fractions)) * total


def _has_half(assigned: NDArray[np.int64], wanted: NDArray[np.float64]) -> bool:
    return bool((_sizes(assigned) >= (wanted / 2).astype(np.int64)).all())


def _groups(collection: Collection, pattern: str) -> list[str]:
    if not pattern:
        raise SettingsError("data.split = 'group' needs data.group_pattern")
    expression = re.compile(pattern)
    names = []
    for file in collection.items[:, 0].tolist():
        path = collection.relative_paths[file]
        match = expression.search(path)
        if match is None or match.group(1) is None:
            raise DataError(f"{path}: data.group_pattern {pattern!r} finds no group in this path", hint="correct the pattern")
        names.append(match.group(1))
    return names


def _assign_groups(
    names: Sequence[str], files: int, fractions: tuple[float, float], random: np.random.Generator, notices: list[str]
) -> NDArray[np.int64]:
    """Whole groups of so many files drawn; where no draw leaves each part half of its share, the best, which is told."""
    groups, member, sizes = np.unique(np.array(names), return_inverse=True, return_counts=True)
    needed = 1 + sum(fraction > 0 for fraction in fractions)
    if len(groups) < needed:
        raise DataError(
            f"data.group_pattern finds {len(groups)} group{'' if len(groups) == 1 else 's'}, and {needed} parts need one each",
            hint=("change data.group_pattern" if files >= needed else "groups are of whole files: store each in its own")
            + ", or set data.validation_fraction or data.test_fraction to 0",
        )
    wanted = _wanted(len(names), fractions)
    draws: list[NDArray[np.int64]] = []
    while len(draws) < _DRAWS:
        draws.append(_draw_groups(sizes, fractions, random)[member])
        if _has_half(draws[-1], wanted):
            return draws[-1]
    draws.append(_balance_groups(sizes, wanted, random)[member])
    shared = wanted > 0
    # That with the most for the part that has the least of its share, then for the next one.
    best = max(draws, key=lambda assigned: sorted((_sizes(assigned)[shared] / wanted[shared]).tolist()))
    if not _has_half(best, wanted):
        found, asked = ([f"{share:.0%}" for share in counts / len(names)] for counts in (_sizes(best), wanted))
        notices.append(
            f"data.group_pattern leaves {found[TRAIN]} of the images for training, {found[VALIDATION]} for validation and "
            f"{found[TEST]} for testing, in place of {asked[TRAIN]}, {asked[VALIDATION]} and {asked[TEST]}: it finds "
            f"{len(groups)} groups, the largest of {sizes.max()} of {len(names)} images"
        )
    return best


def _draw_groups(sizes: NDArray[np.int64], fractions: tuple[float, float], random: np.random.Generator) -> NDArray[np.int64]:
    """Groups held out as they are drawn, until the parts have their shares."""
    of_group = np.full(len(sizes), TRAIN, dtype=np.int64)
    left = list(random.permutation(len(sizes)))
    waiting = 1 + (fractions[0] > 0)  # parts that still need a group
    for part, fraction in ((TEST, fractions[1]), (VALIDATION, fractions[0])):
        if fraction == 0:
            continue
        held, wanted = 0, fraction * int(sizes.sum())
        # The next group goes in while it brings the part closer to its share.
        while len(left) > waiting and (held == 0 or held + sizes[left[-1]] / 2 <= wanted):
            group = left.pop()
            of_group[group] = part
            held += int(sizes[group])
        if held == 0:
            of_group[left.pop()] = part
        waiting = 1
    return of_group


def _balance_groups(sizes: NDArray[np.int64], wanted: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Groups from the largest on, each to the part that it fills least: longest processing time first on unequal machines.

    Source: Gonzalez, Ibarra & Sahni 1977, Bounds for LPT schedules on uniform processors.
    """
    parts = np.flatnonzero(wanted > 0)
    of_group = np.full(len(sizes), TRAIN, dtype=np.int64)
    held = np.zeros(len(_NAMES))
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    for rank, group in enumerate(order.tolist()):
        empty = parts[held[parts] == 0]
        open_to = empty if len(empty) == len(order) - rank else parts  # no part stays empty
        part = open_to[np.argmin((held[open_to] + sizes[group]) / wanted[open_to])]
        of_group[group] = part
        held[part] += sizes[group]
    return of_group


def _assign_blocks(
    places: NDArray[np.int64], units: NDArray[np.int64], fractions: tuple[float, float], random: np.random.Generator
) -> NDArray[np.int64]:
    """Units of blocks drawn, whose numbers are as they appear."""
    place_of = places[np.unique(units, return_index=True)[1]]
    order = np.argsort(place_of, kind="stable")
    # Each place has its own held-out blocks where it has enough of them, so that every scene is tested.
    pools = np.split(order, np.flatnonzero(np.diff(place_of[order])) + 1)
    whole = [np.arange(len(place_of))]
    if any(len(pool) < FEWEST_BLOCKS for pool in pools):
        pools = whole
    elif len(pools) >= _MANY_PLACES:
        # One of four blocks is more than was asked for, and of many small scenes not each has to be tested.
        held = sum(sum(_counts(len(pool), fractions)) for pool in pools)
        pools = whole if held > (sum(fractions) + _MORE) * len(place_of) else pools
    of_unit = np.zeros(len(place_of), dtype=np.int64)
    for pool in pools:
        of_unit[pool] = _draw(len(pool), fractions, random)
    return of_unit[units]


def scene_groups(collection: Collection, group_pattern: str = "") -> NDArray[np.int64]:
    """(items,) number of each image's group: of those that share ground or a label map, or that the pattern, if any, joins.

    Unlike in blocks, equal size alone makes no group: of scenes without a georeference it would leave nothing to measure.

    Raises:
        DataError: a path has no group.
    """
    files = [collection.file_of(item) for item in range(len(collection))]
    first: dict[object, int] = {}
    alike = [(first.setdefault(key, item), item) for item in range(len(collection)) if (key := collection.label_map_of(item))]
    if group_pattern:
        alike += [(first.setdefault(name, item), item) for item, name in enumerate(_groups(collection, group_pattern))]
    return connected(np.concatenate([connecting_pairs(files), np.array(alike, dtype=np.int64).reshape(-1, 2)]), len(files))
