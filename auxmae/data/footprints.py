"""Which pieces of images show the same ground, whatever grid of pixels and reference system each of them has.

Shape letters: N footprints, K pairs of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auxmae.data.georeference import reproject
from auxmae.data.image import ImageFile

_DEGREES = "EPSG:4326"
# Corners are upper left, upper right, lower left, lower right: in this order they go round.
_RING = (0, 1, 3, 2)
# Pairs that are looked at together, which bounds memory.
_TOGETHER = 2**18


class Footprints(NamedTuple):
    """Where pieces of images lie.

    Attributes:
        corners_N42: x and y of the upper left, upper right, lower left and lower right corner.
        sizes_N2: width and height, px.
        systems: N reference systems, in which the corners are.
    """

    corners_N42: NDArray[np.float64]
    sizes_N2: NDArray[np.int64]
    systems: NDArray[np.str_]

    @classmethod
    def of(cls, files: Sequence[ImageFile], boxes_N4: NDArray[np.int64]) -> Footprints:
        """Of boxes of (top, left, height, width) px in N files that have a georeference."""
        transform = np.array([_georeference(file)["transform"] for file in files], dtype=np.float64).reshape(-1, 2, 3)
        top, left, height, width = boxes_N4.T
        columns = np.stack([left, left + width, left, left + width], axis=1)
        rows = np.stack([top, top, top + height, top + height], axis=1)
        places_N43 = np.stack([columns, rows, np.ones_like(rows)], axis=2).astype(np.float64)
        systems = np.array([str(_georeference(file)["crs"]) for file in files], dtype=np.str_)
        return cls(places_N43 @ transform.transpose(0, 2, 1), boxes_N4[:, [3, 2]], systems)

    def select(self, chosen: NDArray[np.int64]) -> Footprints:
        """Some of them."""
        return Footprints(self.corners_N42[chosen], self.sizes_N2[chosen], self.systems[chosen])


def _georeference(file: ImageFile) -> dict[str, object]:
    assert file.georeference is not None
    return file.georeference


def connecting_pairs(files: Sequence[ImageFile]) -> NDArray[np.int64]:
    """(K, 2) pairs of files that overlap on the ground, as many as connect all that do so directly or by way of others.

    Files without a georeference overlap none.
    """
    placed = np.array([number for number, file in enumerate(files) if file.georeference is not None], dtype=np.int64)
    if len(placed) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    own = [files[number] for number in placed]
    found = Footprints.of(own, np.array([(0, 0, file.height, file.width) for file in own], dtype=np.int64))
    # Of many with one footprint, dates of one place, the first stands for all.
    system = np.unique(found.systems, return_inverse=True)[1].reshape(-1, 1)
    keys = np.concatenate([system, found.corners_N42.reshape(len(own), -1)], axis=1)
    _, first, same = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    stands = first[same.reshape(-1)]
    edges = [np.stack([stands, np.arange(len(own))], axis=1)[stands != np.arange(len(own))]]
    for pairs in overlapping_pairs(found.select(first)):
        edges.append(first[pairs])
        if sum(map(len, edges)) > 8 * _TOGETHER:
            edges = [_forest(edges, len(own))]
            if len(edges[0]) == len(own) - 1:
                break  # all of them are connected
    return placed[_forest(edges, len(own))]


def _forest(edges: Sequence[NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """(K, 2) of the edges, as many as connect the same nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    start, end = np.concatenate(edges).T
    tree = minimum_spanning_tree(coo_array((np.ones(len(start)), (start, end)), shape=(count, count)).tocsr())
    return np.stack(tree.nonzero(), axis=1).astype(np.int64)


def overlapping_pairs(footprints: Footprints) -> Iterator[NDArray[np.int64]]:
    """All pairs (K, 2) that share more than a pixel of the coarser one in every direction, piece by piece.

    Those of one reference system are compared in it, others in degrees, with straight lines between their corners.
    """
    names, system = np.unique(footprints.systems, return_inverse=True)
    for number in range(len(names)):
        members = np.flatnonzero(system == number)
        for pairs in _overlapping(footprints.corners_N42[members], footprints.sizes_N2[members]):
            yield members[pairs]
    if len(names) > 1:
        corners_N42 = _in_degrees(footprints)
        known = np.flatnonzero(np.isfinite(corners_N42).all(axis=(1, 2)))
        for pairs in _overlapping(corners_N42[known], footprints.sizes_N2[known]):
            pairs = known[pairs]
            yield pairs[system[pairs[:, 0]] != system[pairs[:, 1]]]


def _in_degrees(footprints: Footprints) -> NDArray[np.float64]:
    """(N, 4, 2) longitudes and latitudes of the corners; NaN where nothing is known of the reference system."""
    corners_N42 = np.full_like(footprints.corners_N42, np.nan)
    for system in np.unique(footprints.systems):
        chosen = footprints.systems == system
        degrees = reproject(footprints.corners_N42[chosen].reshape(-1, 2), str(system), _DEGREES)
        if degrees is not None:
            corners_N42[chosen] = degrees.reshape(-1, 4, 2)
    # What lies across the 180th meridian is of one piece east of it.
    longitude = corners_N42[..., 0]
    across = np.ptp(longitude, axis=1) > 180
    longitude[across] = longitude[across] % 360
    return corners_N42


def _overlapping(corners_N42: NDArray[np.float64], sizes_N2: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    ring_N42 = corners_N42[:, _RING]
    sides = np.linalg.norm(ring_N42 - np.roll(ring_N42, -1, axis=1), axis=2).reshape(-1, 2, 2).max(axis=1)
    pixel = (sides / sizes_N2).max(axis=1)
    for pairs in _boxes_that_meet(corners_N42.min(axis=1), corners_N42.max(axis=1)):
        one, other = pairs.T
        yield pairs[_share(ring_N42[one], ring_N42[other], np.maximum(pixel[one], pixel[other]))]


def _boxes_that_meet(low_N2: NDArray[np.float64], high_N2: NDArray[np.float64]) -> Iterator[NDArray[np.int64]]:
    """Pairs (K, 2) of boxes that overlap: a sweep along the axis on which fewer of them do."""
    sweeps = []
    for axis in (0, 1):
        order = np.argsort(low_N2[:, axis], kind="stable")
        # How many of those behind each one begin before it ends.
        met = np.searchsorted(low_N2[order, axis], high_N2[order, axis]) - np.arange(len(order)) - 1
        sweeps.append((order, met.clip(min=0), 1 - axis))
    order, met, across = min(sweeps, key=lambda sweep: int(sweep[1].sum()))
    total = np.concatenate([[0], np.cumsum(met)])
    edges = np.unique([*np.searchsorted(total, np.arange(0, total[-1], _TOGETHER)), len(order)])
    for begin, end in pairwise(edges.tolist()):
        left = np.repeat(np.arange(begin, end), met[begin:end])
        right = left + 1 + np.arange(len(left)) - (total[left] - total[begin])
        one, other = order[left], order[right]
        meet = (low_N2[one, across] < high_N2[other, across]) & (low_N2[other, across] < high_N2[one, across])
        yield np.stack([one[meet], other[meet]], axis=1)


def _share(one_K42: NDArray[np.float64], other_K42: NDArray[np.float64], least_K: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(K,) whether two convex quadrilaterals overlap by more than `least` along the normal of each of their sides.

    Two convex shapes are apart exactly where they are along one of these: the separating axis theorem.
    """
    shared = np.ones(len(least_K), dtype=bool)
    for ring_K42 in (one_K42, other_K42):
        edges_K42 = np.roll(ring_K42, -1, axis=1) - ring_K42
        for x, y in edges_K42.transpose(1, 2, 0):
            normal_K2 = np.stack([-y, x], axis=1) / np.maximum(np.hypot(x, y), np.finfo(np.float64).tiny)[:, None]
            a, b = (np.einsum("kcd,kd->kc", shape - one_K42[:, :1], normal_K2) for shape in (one_K42, other_K42))
            shared &= np.minimum(a.max(axis=1) - b.min(axis=1), b.max(axis=1) - a.min(axis=1)) > least_K
    return shared
