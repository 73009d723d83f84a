"""Footprints overlap where boxes compared one by one do, in whatever reference systems they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.data import footprints
from auxmae.data.footprints import Footprints, connecting_pairs, overlapping_pairs
from auxmae.data.georeference import same_place
from auxmae.data.image import ImageFile


def image(height: int, width: int, transform: list[float], system: str = "EPSG:32633") -> ImageFile:
    georeference = {"crs": system, "transform": transform}
    return ImageFile(Path("a.tif"), 1, 3, height, width, np.dtype(np.uint8), lambda *_: None, georeference=georeference)


def found_pairs(files: list[ImageFile]) -> set[tuple[int, ...]]:
    boxes = np.array([(0, 0, file.height, file.width) for file in files])
    pairs = np.concatenate([np.zeros((0, 2), int), *overlapping_pairs(Footprints.of(files, boxes))])
    assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == len(pairs)
    return {tuple(sorted(pair)) for pair in pairs.tolist()}


def groups(pairs: set[tuple[int, ...]], count: int) -> set[frozenset[int]]:
    of = {number: frozenset([number]) for number in range(count)}
    for one, other in pairs:
        for member in of[one] | of[other]:
            of[member] = of[one] | of[other] | of[member]
        for member in of[one]:
            of[member] = of[one]
    return set(of.values())


@given(
    boxes=st.lists(
        st.tuples(*[st.integers(2, 40)] * 2, st.sampled_from([10, 20, 30]), *[st.integers(0, 120)] * 2), min_size=2, max_size=14
    ),
    together=st.integers(1, 9),
)
@settings(max_examples=150, deadline=None)
def test_pairs_are_those_of_all_boxes_compared(boxes: list[tuple[int, ...]], together: int) -> None:
    files = [image(h, w, [size, 0, 10 * x, 0, -size, -10 * y]) for h, w, size, x, y in boxes]
    expected = set()
    for (i, (h, w, size, x, y)), (j, (h2, w2, size2, x2, y2)) in itertools.combinations(enumerate(boxes), 2):
        across = min(10 * x + size * w - 10 * x2, 10 * x2 + size2 * w2 - 10 * x)
        down = min(10 * y + size * h - 10 * y2, 10 * y2 + size2 * h2 - 10 * y)
        if min(across, down) > max(size, size2):
            expected.add((i, j))
    # The first of those that are the same stands for all.
    first = [boxes.index(box) for box in boxes]
    stands = {(first[i], j) if first[i] == first[j] else tuple(sorted((first[i], first[j]))) for i, j in expected}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprints, "_TOGETHER", together)
        patch.setattr(footprints, "_MOST_PAIRS", 2 * together)
        assert found_pairs(files) == stands
        connecting = {tuple(sorted(pair)) for pair in connecting_pairs(files).tolist()}
    assert connecting <= stands
    assert groups(connecting, len(files)) == groups(expected, len(files))


def test_turned_images_overlap_as_their_outlines_do() -> None:
    turned = image(100, 100, [7.0, 7.0, 0.0, 7.0, -7.0, 0.0])  # a diamond about (700, 0)
    corner = image(20, 20, [10.0, 0, 0.0, 0, -10.0, 700.0])  # within the diamond's box, and beside the diamond
    middle = image(20, 20, [10.0, 0, 600.0, 0, -10.0, 100.0])
    assert found_pairs([turned, corner, middle]) == {(0, 2)}


def test_dates_of_one_place_are_not_paired_with_one_another() -> None:
    files = [image(64, 64, [10.0, 0, 320.0 * (number % 3), 0, -10.0, 0.0]) for number in range(3000)]
    pairs = found_pairs(files)  # a million and a half if all were
    assert pairs == {(number % 3, number) for number in range(3, 3000)} | {(0, 1), (1, 2)}


def test_across_the_last_meridian_and_in_unknown_systems() -> None:
    degree = 1 / 100
    around = image(50, 200, [degree, 0, 179.0, 0, -degree, 10.0], "EPSG:4326")
    zone = image(50, 50, [1000.0, 0, 790_000.0, 0, -1000.0, 1_100_000.0], "EPSG:32660")  # 179.6 degrees east, 9.9 north
    far = image(50, 50, [degree, 0, 10.0, 0, -degree, 10.0], "EPSG:4326")
    unknown = image(50, 50, [degree, 0, 10.0, 0, -degree, 10.0], 'LOCAL_CS["garden",UNIT["metre",1]]')
    plain = ImageFile(Path("b.tif"), 1, 3, 50, 50, np.dtype(np.uint8), lambda *_: None)
    assert found_pairs([around, zone, far, unknown]) == {(0, 1)}
    assert connecting_pairs([plain, around, plain, far, zone]).tolist() in ([[1, 4]], [[4, 1]])
    assert connecting_pairs([plain, plain]).shape == (0, 2)
    assert same_place(unknown, far)  # as far as both say
