"""Which pieces of images show the same ground, whatever grid of pixels and reference system each of them has.

Shape letters: N footprints, K pairs of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auxmae.data.georeference import reproject, transform_of
from auxmae.data.image import ImageFile

_DEGREES = "EPSG:4326"
# Footprints looked up together, and pairs kept before those that connect nothing new are dropped: both bound memory.
_TOGETHER = 256
_MOST_PAIRS = 2**21


class Footprints(NamedTuple):
    """Where pieces of images lie.

    Attributes:
        rings_N242: x and y of four corners, in the order that goes round: first of the piece, less a hair, so that pieces that
            only touch share nothing; then of its core, which lacks its outermost pixels (of one or two a sliver is left).
        pixels: (N,) how many each has.
        systems: (N,) reference system of the corners.
    """

    rings_N242: NDArray[np.float64]
    pixels: NDArray[np.int64]
    systems: NDArray[np.str_]

    @classmethod
    def of(cls, files: Sequence[ImageFile], boxes_N4: NDArray[np.int64]) -> Footprints:
        """Of boxes of (top, left, height, width) px in N files that have a georeference."""
        matrix_N23 = np.array([transform_of(file) for file in files])
        rings = []
        for margin in (1e-3, 1):
            down, across = np.minimum(margin, boxes_N4[:, 2:] / 2 - 1e-6).T
            top, left, height, width = boxes_N4.T
            columns = np.stack([left + across, left + width - across], axis=1)[:, [0, 1, 1, 0]]
            rows = np.stack([top + down, top + height - down], axis=1)[:, [0, 0, 1, 1]]
            rings.append(np.stack([columns, rows, np.ones_like(rows)], axis=2) @ matrix_N23.transpose(0, 2, 1))
        systems = np.array([str(file.georeference["crs"]) for file in files if file.georeference], dtype=np.str_)
        return cls(np.stack(rings, axis=1), boxes_N4[:, 2:].prod(axis=1), systems)


def connecting_pairs(files: Sequence[ImageFile]) -> NDArray[np.int64]:
    """(K, 2) pairs of files that overlap on the ground, as many as connect all that do so directly or by way of others.

    Files without a georeference overlap none.
    """
    placed = np.array([number for number, file in enumerate(files) if file.georeference is not None], dtype=np.int64)
    if len(placed) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    own = [files[number] for number in placed]
    footprints = Footprints.of(own, np.array([(0, 0, file.height, file.width) for file in own], dtype=np.int64))
    edges = np.zeros((0, 2), dtype=np.int64)
    for pairs in overlapping_pairs(footprints):
        edges = np.concatenate([edges, pairs])
        if len(edges) > _MOST_PAIRS:
            edges = _forest(edges, len(own))
            if len(edges) == len(own) - 1:
                break  # all of them are connected
    return placed[_forest(edges, len(own))]


def _forest(edges: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(K, 2) of the edges, as many as connect the same nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    tree = minimum_spanning_tree(coo_array((np.ones(len(edges)), tuple(edges.T)), shape=(count, count)).tocsr())
    return np.stack(tree.nonzero(), axis=1).astype(np.int64)


def connected(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count,) the number of the images that each is connected with by pairs (K, 2), itself among them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def overlapping_pairs(footprints: Footprints) -> Iterator[NDArray[np.int64]]:
    """Pairs (K, 2) that share more than a pixel of the coarser one in every direction, piece by piece.

    Those of one reference system are compared in it, others in degrees, with straight lines between their corners.  Of many with
    one footprint, as dates of one place have, the first stands for all, and is paired with each.
    """
    names, system = np.unique(footprints.systems, return_inverse=True)
    keys = np.concatenate([system[:, None], footprints.rings_N242.reshape(len(system), -1)], axis=1)
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    same = np.stack([first[which.reshape(-1)], np.arange(len(system))], axis=1)
    yield same[same[:, 0] != same[:, 1]]
    degrees_N242 = np.full_like(footprints.rings_N242, np.nan)
    for number, name in enumerate(names):
        members = first[system[first] == number]
        yield from _overlapping(footprints.rings_N242, footprints.pixels, members)
        own = footprints.rings_N242[members].reshape(-1, 2)
        if len(names) > 1 and (degrees := reproject(own, str(name), _DEGREES)) is not None:
            degrees_N242[members] = np.where(np.isfinite(degrees), degrees, np.nan).reshape(-1, 2, 4, 2)
    # What lies across the 180th meridian is of one piece east of it.
    degrees_N242[np.ptp(degrees_N242[..., 0], axis=(1, 2)) > 180, ..., 0] %= 360
    for pairs in _overlapping(degrees_N242, footprints.pixels, first):
        yield pairs[system[pairs[:, 0]] != system[pairs[:, 1]]]


def _overlapping(
    rings_N242: NDArray[np.float64], pixels: NDArray[np.int64], chosen: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Of the chosen ones, those aside whose place is not known."""
    from shapely import STRtree, area, polygons

    chosen = chosen[np.isfinite(rings_N242[chosen]).all(axis=(1, 2, 3))]
    pieces, cores = polygons(rings_N242[chosen].swapaxes(0, 1))
    pixel_area = area(pieces) / pixels[chosen]
    tree = STRtree(pieces)
    for begin in range(0, len(cores), _TOGETHER):
        one, other = tree.query(cores[begin : begin + _TOGETHER], predicate="intersects")
        one += begin
        # The core is to be the coarser one's: of two that are as coarse the first one's.
        kept = (pixel_area[one] > pixel_area[other]) | ((pixel_area[one] == pixel_area[other]) & (one < other))
        yield chosen[np.stack([one, other], axis=1)[kept]]
