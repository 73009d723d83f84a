"""Where images lie on the earth, as far as their files say so: on one grid, on overlapping ones, or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile


def transform_of(file: ImageFile) -> NDArray[np.float64]:
    """(2, 3): x, y of a column and row are the matrix times (column, row, 1), of a file that has a georeference."""
    assert file.georeference is not None
    return np.array(file.georeference["transform"], dtype=np.float64).reshape(2, 3)


def corners_of(file: ImageFile, system: str | None = None) -> NDArray[np.float64]:
    """(4, 2) x and y of the upper left, upper right, lower left and lower right corner.

    Args:
        file: with a georeference.
        system: reference system in place of the file's own, where both are known to it; numbers of unknown ones stay.
    """
    assert file.georeference is not None
    places = [(0, 0, 1), (file.width, 0, 1), (0, file.height, 1), (file.width, file.height, 1)]
    corners: NDArray[np.float64] = np.array(places, dtype=np.float64) @ transform_of(file).T
    own = str(file.georeference["crs"])
    if system is None or system == own:
        return corners
    moved = reproject(corners, own, system)
    return corners if moved is None else moved


def reproject(points: NDArray[np.float64], own: str, system: str) -> NDArray[np.float64] | None:
    """Points (n, 2) of one reference system in another; None where nothing leads from the one to the other."""
    from rasterio.warp import transform

    try:
        return np.stack(transform(own, system, *points.T.tolist())[:2], axis=1)
    except Exception:  # what GDAL says of a local system arrives as a private class of rasterio's
        return None


def same_place(one: ImageFile, other: ImageFile) -> bool:
    """Whether the corners of two files are the same, to half a pixel of the coarser, as far as both say where they lie."""
    if one.georeference is None or other.georeference is None:
        return True
    apart = np.abs(corners_of(one, str(other.georeference["crs"])) - corners_of(other))
    return bool((apart <= _pixel(one, other) / 2).all())


def describe_difference(one: ImageFile, other: ImageFile) -> str:
    """In what two files that lie elsewhere differ, for people."""
    systems = [str(file.georeference["crs"]) for file in (one, other) if file.georeference is not None]
    both = [corners_of(one, systems[1]), corners_of(other)]
    which, name = (0, "upper left") if (np.abs(both[0][0] - both[1][0]) > _pixel(one, other) / 2).any() else (3, "lower right")
    text = f"their {name} corners are " + " and ".join("({:.10g}, {:.10g})".format(*corners[which]) for corners in both)
    return text if systems[0] == systems[1] else f"{text} in {systems[1]} (the former is in {systems[0]})"


def _pixel(one: ImageFile, other: ImageFile) -> float:
    """The coarser one's side of a pixel, of one system; the second one's where they are in two, of other units maybe."""
    assert one.georeference is not None
    assert other.georeference is not None
    files = (one, other) if one.georeference["crs"] == other.georeference["crs"] else (other,)
    return float(max(np.abs(transform_of(file)[:, :2]).max() for file in files))


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
    group = np.arange(len(start))
    for index in range(1, len(start)):
        met = np.flatnonzero(((start[:index] < end[index]) & (start[index] < end[:index])).all(axis=1))
        for old in np.unique(group[met]):
            group[group == old] = index
    return [np.flatnonzero(group == number) for number in np.unique(group)]
