"""Scenes cut into blocks: those that overlap along the same lines of the ground, to a pixel where their grids differ."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auxmae.data.collection import Collection
from auxmae.data.footprints import Footprints, connected, overlapping_pairs
from auxmae.data.georeference import pixel_area, transform_of
from auxmae.data.image import ImageFile
from auxmae.errors import SettingsError

# Blocks a side of a large scene: enough to spread each part over it, few enough to leave room for crops.
MAX_BLOCKS = 8
# As many as there are parts.
FEWEST_BLOCKS = 3
# Of no part: a block on ground that several parts hold.
LEFT_OUT = -1


def cut_scenes(
    collection: Collection, image_size: int, block_size: int | None, notices: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cuts scenes into blocks, those that overlap on one grid of pixels along the same lines of it.

    Args:
        collection: the scenes.
        image_size: side of a crop, px: no block is narrower, unless the whole scene is.
        block_size: side of a block, px; None: about an eighth of the scene.
        notices: told what was done.

    Returns:
        (n, 5) scene, top, left, height, width of every block, px; (n,) the number of its place, which scenes on one grid of
        pixels share where they overlap; and (n,) the number of its ground: blocks of one number show the same, or may.

    Raises:
        SettingsError: a block would be smaller than a crop.
    """
    if block_size is not None and block_size < image_size:
        raise SettingsError(
            f"data.block_size ({block_size} px) is smaller than a crop ({image_size} px)", hint="raise data.block_size"
        )
    blocks: list[tuple[int, int, int, int, int]] = []
    keys: list[tuple[object, int]] = []
    most = None if block_size else MAX_BLOCKS
    spots, mosaics = find_mosaics([collection.file_of(item) for item in range(len(collection))])
    shared: dict[object, int] = {}
    shifted = False
    # Scenes that overlap on the ground are cut along the same lines of it.
    lines = [_common_edges(mosaic, block_size or image_size, most) for mosaic in mosaics]
    for item in range(len(collection)):
        height, width = collection.size_of(item)
        spot = spots[item]
        if spot is None:
            rows, columns = (_edges(side, block_size or image_size, most) for side in (height, width))
            key: tuple[object, ...] = (height, width)
            if (len(rows) - 1) * (len(columns) - 1) < FEWEST_BLOCKS:
                # Nothing says that they show one place, and held out together they would leave a part empty.
                key = (*key, item)
            cells = _cells(rows, columns, 0, 0, height, width, 1)
        else:
            key = ("ground", spot.place)
            shifted |= mosaics[spot.place].footprints > 1
            cells = _cells(*lines[spot.place], spot.top, spot.left, height, width, image_size)
        shared[key] = shared.get(key, 0) + 1
        for number, box in cells:
            blocks.append((item, *box))
            keys.append((key, number))
    if shifted:
        lost = len(collection) - len({block[0] for block in blocks})
        notices.append(
            "scenes that overlap are held out at the same ground; strips narrower than a crop at their edges are left out"
            + (f", and {lost} of {len(collection)} scenes, which are nothing but such strips" if lost else "")
        )
    elif any(count > 1 for count in shared.values()):
        notices.append("scenes of the same size and place are held out at the same blocks, as they may show the same place")
    return np.array(blocks, dtype=np.int64).reshape(-1, 5), _numbers([place for place, _ in keys]), _numbers(keys)


def _numbers(keys: Sequence[object]) -> NDArray[np.int64]:
    """0, 1, … for keys as each appears first."""
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([number_of[key] for key in keys], dtype=np.int64)


def _common_edges(mosaic: Mosaic, block: int, most: int | None) -> tuple[list[int], list[int]]:
    """Rows and columns at which the scenes of one place are cut, px from its corner."""
    if mosaic.footprints > 1 and most is not None:
        # As wide as those of its smallest scene alone.
        block, most = max(block, mosaic.shortest // most), None
    return _edges(mosaic.height, block, most), _edges(mosaic.width, block, most)


def _cells(
    rows: list[int], columns: list[int], top: int, left: int, height: int, width: int, least: int
) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """(number of the cell, (top, left, height, width) within a scene) of what a scene at (top, left) has of each cell.

    Of that nothing narrower than `least` px counts, unless the whole scene is.
    """
    # Of a mosaic of many scenes only the cells that this one touches are walked over.
    for row in range(bisect_right(rows, top) - 1, bisect_left(rows, top + height)):
        y, lower = max(rows[row], top), min(rows[row + 1], top + height)
        for column in range(bisect_right(columns, left) - 1, bisect_left(columns, left + width)):
            x, far = max(columns[column], left), min(columns[column + 1], left + width)
            h, w = lower - y, far - x
            if h >= min(least, height) and w >= min(least, width):
                yield row * len(columns) + column, (y - top, x - left, h, w)


def _edges(side: int, block: int, most: int | None) -> list[int]:
    """Edges that cut a side into equal blocks, each at least `block` wide (or the whole side)."""
    count = max(side // block, 1)
    if most is not None:
        count = min(count, most)
    return [side * number // count for number in range(count + 1)]


def follow_ground(
    collection: Collection,
    blocks: NDArray[np.int64],
    places: NDArray[np.int64],
    units: NDArray[np.int64],
    assigned: NDArray[np.int64],
    notices: list[str],
) -> NDArray[np.int64]:
    """Holds ground out of scenes on other grids too: a block there takes over the part of the blocks that it overlaps.

    Args:
        collection: the scenes.
        blocks, places, units: from `cut_scenes`.
        assigned: (n,) part of each.
        notices: told what was done.

    Returns:
        (n,) part of each; a block that overlaps blocks of several parts is of none, `LEFT_OUT`.
    """
    placed = np.flatnonzero([collection.file_of(scene).georeference is not None for scene in blocks[:, 0].tolist()])
    if len(np.unique(places[placed])) < 2:
        return assigned
    files = [collection.file_of(scene) for scene in blocks[placed, 0].tolist()]
    footprints = Footprints.of(files, blocks[placed, 1:])
    pairs_K2 = placed[np.concatenate(list(overlapping_pairs(footprints)))]
    pairs_K2 = pairs_K2[places[pairs_K2[:, 0]] != places[pairs_K2[:, 1]]]
    if not len(pairs_K2):
        return assigned
    # Small blocks take over from large ones, within which they may lie.
    largest = np.zeros(places.max() + 1)
    scenes, which = np.unique(blocks[placed, 0], return_inverse=True)
    area = np.array([pixel_area(collection.file_of(scene)) for scene in scenes.tolist()])[which.reshape(-1)]
    np.maximum.at(largest, places[placed], area * footprints.pixels)
    rank = np.argsort(np.argsort(-largest, kind="stable"))
    part_of, rank_of = (np.zeros(units.max() + 1, dtype=np.int64) for _ in range(2))
    part_of[units], rank_of[units] = assigned, rank[places]
    above: dict[int, set[int]] = {}
    for one, other in np.unique(units[pairs_K2], axis=0).tolist():
        upper, lower = sorted((one, other), key=rank_of.__getitem__)
        above.setdefault(lower, set()).add(upper)
    for unit in sorted(above, key=rank_of.__getitem__):
        parts = set(part_of[list(above[unit])].tolist()) - {LEFT_OUT}
        if parts:
            part_of[unit] = parts.pop() if len(parts) == 1 else LEFT_OUT
    followed = part_of[units]
    lost = int((followed == LEFT_OUT).sum())
    notices.append(
        f"scenes of different pixels or reference systems overlap, such as {collection.names_of(blocks[pairs_K2[0], 0])}: their "
        "blocks are held out at the same ground, to a pixel"
        + (f", and {lost} of {len(blocks)} blocks, which lie on ground of several parts, are left out" if lost else "")
        + "; data.exclude leaves scenes out, data.group_pattern holds out whole ones"
    )
    return followed


class Spot(NamedTuple):
    """Where an image lies among those that it overlaps.

    Attributes:
        place: number of these images together.
        top, left: px from the corner of their common extent.
    """

    place: int
    top: int
    left: int


class Mosaic(NamedTuple):
    """Images that overlap on one grid: an extent of height × width px, their shortest side, and how many footprints differ."""

    height: int
    width: int
    shortest: int
    footprints: int


def find_mosaics(files: Sequence[ImageFile]) -> tuple[list[Spot | None], list[Mosaic]]:
    """Which images show overlapping ground on one grid of pixels: each one's spot (None: no georeference), and their extents.

    Images of other pixels or another reference system are places of their own.  A shift by part of a pixel is none.
    """
    spots: list[Spot | None] = [None] * len(files)
    mosaics: list[Mosaic] = []
    by_grid: dict[tuple[object, ...], list[int]] = {}
    for number, file in enumerate(files):
        if file.georeference is not None:
            matrix = transform_of(file)
            by_grid.setdefault((str(file.georeference["crs"]), *np.round(matrix[:, :2].ravel(), 9).tolist()), []).append(number)
    for members in by_grid.values():
        step = transform_of(files[members[0]])[:, :2]
        origin = np.array([transform_of(files[number])[:, 2] for number in members])
        if not np.linalg.det(step):
            continue
        # (n, 2) columns and rows from the first one's corner.
        shift = np.round((origin - origin[0]) @ np.linalg.inv(step).T).astype(np.int64)
        size = np.array([(files[number].width, files[number].height) for number in members], dtype=np.int64)
        for chosen in _touching(shift, shift + size):
            first, last = shift[chosen].min(axis=0), (shift + size)[chosen].max(axis=0)
            boxes = {(*start, *side) for start, side in zip(shift[chosen].tolist(), size[chosen].tolist(), strict=True)}
            width, height = (last - first).tolist()
            for index in chosen.tolist():
                left, top = (shift[index] - first).tolist()
                spots[members[index]] = Spot(len(mosaics), top, left)
            mosaics.append(Mosaic(height, width, int(size[chosen].min()), len(boxes)))
    return spots, mosaics


def _touching(start: NDArray[np.int64], end: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of boxes (n, 2) that overlap, directly or by way of others, together."""
    from shapely import STRtree, box

    distinct, which = np.unique(np.concatenate([start, end], axis=1), axis=0, return_inverse=True)
    # Less a quarter of a pixel at each side: what lies side by side does not overlap.
    boxes = box(*(distinct + np.array([0.25, 0.25, -0.25, -0.25])).T)
    group = connected(STRtree(boxes).query(boxes).T, len(boxes))[which.reshape(-1)]
    return np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
