"""Parts never overlap, whatever the sizes; the same seed gives the same parts."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.data.collection import Collection, memory_file
from auxmae.data.opening import open_collection
from auxmae.data.splits import Part, resolve_image_size, scene_groups, split_collection
from auxmae.errors import DataError, SettingsError


def make(sizes: list[tuple[int, int]], layout: str = "scenes", labels: np.ndarray | None = None) -> Collection:
    """A collection in memory: one image of 2 channels for each size."""
    files = tuple(memory_file(np.ones((1, 2, h, w), np.uint8), Path(f"p{i // 2}/{i}.tif")) for i, (h, w) in enumerate(sizes))
    items = np.array([(i, 0) for i in range(len(files))], dtype=np.int64)
    paths = tuple(file.path.as_posix() for file in files)
    return Collection(
        "memory",
        layout,
        ("a", "b"),
        None,
        (),
        files,
        [],
        items,
        (None,) * len(files),
        labels,
        (),
        paths,  # type: ignore[arg-type]
    )


def painted(part: Part, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """How often each pixel is in the part."""
    maps = [np.zeros(size, int) for size in sizes]
    for scene, top, left, height, width in part.blocks.tolist():
        maps[scene][top : top + height, left : left + width] += 1
    return maps


@given(
    sizes=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 150)), min_size=1, max_size=4),
    image_size=st.integers(1, 64),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_blocks_tile_every_scene_once(sizes: list[tuple[int, int]], image_size: int, seed: int) -> None:
    splits = split_collection(make(sizes), image_size=image_size, seed=seed)
    parts = (splits.train, splits.validation, splits.test)
    assert len(splits.train) > 0
    for maps in zip(*(painted(part, sizes) for part in parts), strict=True):
        assert (sum(maps) == 1).all()
    for part in parts:
        for scene, _, _, height, width in part.blocks.tolist():
            assert height >= min(image_size, sizes[scene][0])
            assert width >= min(image_size, sizes[scene][1])


@pytest.mark.parametrize("side", [90, 101, 264, 1000])
def test_small_scenes_have_all_parts(side: int) -> None:
    collection = make([(side, side)])
    size = resolve_image_size(collection, None, 8)
    splits = split_collection(collection, image_size=size)
    assert size % 8 == 0
    assert min(len(splits.train), len(splits.validation), len(splits.test)) >= 1
    assert splits.method == "block"


def test_dates_of_one_place_hold_out_the_same_blocks() -> None:
    sizes = [(100, 101)] * 3
    maps = painted(split_collection(make(sizes), image_size=32).test, sizes)
    assert (maps[0] == maps[1]).all()
    assert (maps[0] == maps[2]).all()
    assert maps[0].any()


def georeferenced(boxes: list[tuple[int, int, int, int]], systems: list[str] | None = None) -> Collection:
    """Scenes of (top, left, height, width) on one grid of 10 m pixels."""
    collection = make([box[2:] for box in boxes])
    collection.files = tuple(
        replace(file, georeference={"crs": system, "transform": [10.0, 0, 5e5 + 10 * left, 0, -10.0, 6e6 - 10 * top]})
        for file, (top, left, _, _), system in zip(collection.files, boxes, systems or ["EPSG:32633"] * len(boxes), strict=True)
    )
    return collection


def on_ground(part: Part, boxes: list[tuple[int, int, int, int]]) -> set[tuple[int, int]]:
    found = set()
    for scene, top, left, height, width in part.blocks.tolist():
        y, x = boxes[scene][0] + top, boxes[scene][1] + left
        found |= {(row, column) for row in range(y, y + height) for column in range(x, x + width)}
    return found


@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(40, 120), st.integers(40, 120)), min_size=2, max_size=4
    ),
    image_size=st.integers(4, 24),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_scenes_that_overlap_hold_out_the_same_ground(boxes: list[tuple[int, int, int, int]], image_size: int, seed: int) -> None:
    splits = split_collection(georeferenced(boxes), image_size=image_size, seed=seed)
    train, validation, test = (on_ground(part, boxes) for part in (splits.train, splits.validation, splits.test))
    assert not train & test
    assert not train & validation
    assert not validation & test
    for part in (splits.train, splits.validation, splits.test):
        for scene, _, _, height, width in part.blocks.tolist():
            assert height >= min(image_size, boxes[scene][2])
            assert width >= min(image_size, boxes[scene][3])


def test_shifted_dates_are_told_and_every_one_is_held_out_of() -> None:
    boxes = [(0, 0, 300, 310), (20, 24, 305, 300), (0, 0, 300, 310)]
    splits = split_collection(georeferenced(boxes), image_size=32)
    assert any("overlap are held out at the same ground" in notice for notice in splits.notices)
    assert set(splits.test.blocks[:, 0]) == {0, 1, 2}
    kept = sum(len(on_ground(part, boxes)) for part in (splits.train, splits.validation, splits.test))
    assert kept > 0.8 * len({(r, c) for top, left, h, w in boxes for r in range(top, top + h) for c in range(left, left + w)})


@pytest.mark.parametrize("size", [(100, 131), (300, 411)])
@pytest.mark.parametrize("dates", [1, 3])
def test_dates_on_one_grid_are_held_out_as_without_a_georeference(size: tuple[int, int], dates: int) -> None:
    placed = split_collection(georeferenced([(7, 3, *size)] * dates), image_size=24)
    plain = split_collection(make([size] * dates), image_size=24)
    assert placed.digest == plain.digest


@pytest.mark.parametrize("size", [(100, 131), (300, 411)])
def test_scenes_side_by_side_are_cut_as_without_a_georeference(size: tuple[int, int]) -> None:
    beside = split_collection(georeferenced([(0, 0, *size), (0, size[1], *size)]), image_size=24)
    alone = split_collection(make([size]), image_size=24)
    for scene in (0, 1):
        found, expected = (
            np.concatenate([part.blocks[part.blocks[:, 0] == number, 1:] for part in (s.train, s.validation, s.test)])
            for s, number in ((beside, scene), (alone, 0))
        )
        assert np.array_equal(np.unique(found, axis=0), np.unique(expected, axis=0))
        assert (beside.test.blocks[:, 0] == scene).sum() == len(alone.test)


def test_scenes_that_overlap_are_cut_as_finely_as_one_alone() -> None:
    mosaic = split_collection(
        georeferenced([(280 * row, 280 * column, 300, 300) for row in (0, 1) for column in (0, 1, 2)]), image_size=24
    )
    alone = split_collection(make([(300, 300)]), image_size=24)
    largest, expected = (
        max(int(part.blocks[:, 3:].max()) for part in (splits.train, splits.validation, splits.test))
        for splits in (mosaic, alone)
    )
    assert expected <= largest <= expected + 2


def test_a_mosaic_of_many_scenes_is_cut_within_seconds() -> None:
    boxes = [(600 * row, 600 * column, 640, 640) for row in range(40) for column in range(25)]
    before = time.process_time()
    splits = split_collection(georeferenced(boxes), image_size=64)
    assert time.process_time() - before < 8  # a walk over all of the mosaic for each scene takes a minute
    assert set(splits.test.blocks[:, 0]) == set(range(1000))


def test_the_same_numbers_in_two_zones_are_two_places() -> None:
    boxes = [(0, 0, 90, 90)] * 2
    splits = split_collection(georeferenced(boxes, ["EPSG:32633", "EPSG:32634"]), image_size=24, seed=3)
    assert not any("same" in notice for notice in splits.notices)
    assert set(splits.test.blocks[:, 0]) == {0, 1}


def placed(files: list[tuple[int, int, str, list[float]]], layout: str = "scenes") -> Collection:
    """Images of (height, width, reference system, the six numbers of the transform)."""
    collection = make([file[:2] for file in files], layout)
    collection.files = tuple(
        replace(file, georeference={"crs": system, "transform": transform})
        for file, (_, _, system, transform) in zip(collection.files, files, strict=True)
    )
    return collection


def pixel_centres(collection: Collection, part: Part, scene: int) -> np.ndarray:
    """(n, 2) x and y of every pixel that a part has of a scene."""
    matrix = np.array(collection.file_of(scene).georeference["transform"]).reshape(2, 3)
    found = [np.zeros((0, 2))]
    for top, left, height, width in part.blocks[part.blocks[:, 0] == scene, 1:].tolist():
        rows, columns = np.mgrid[top : top + height, left : left + width] + 0.5
        found.append(np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)], axis=1) @ matrix.T)
    return np.concatenate(found)


def deep_inside(collection: Collection, part: Part, scene: int, points: np.ndarray, margin: float) -> np.ndarray:
    """Which points, in the scene's reference system, lie in a part's blocks of it, by more than a margin from their edges."""
    matrix = np.array(collection.file_of(scene).georeference["transform"]).reshape(2, 3)
    columns, rows = np.linalg.solve(matrix[:, :2], (points - matrix[:, 2]).T)
    margin /= abs(matrix[0, 0])
    inside = np.zeros(len(points), dtype=bool)
    for top, left, height, width in part.blocks[part.blocks[:, 0] == scene, 1:].tolist():
        inside |= (
            (columns > left + margin) & (columns < left + width - margin) & (rows > top + margin) & (rows < top + height - margin)
        )
    return inside


@given(
    scenes=st.lists(
        st.tuples(*[st.integers(50, 120)] * 2, st.sampled_from([10.0, 20.0, 25.0, 30.0]), *[st.integers(0, 900)] * 2),
        min_size=2,
        max_size=3,
    ),
    image_size=st.integers(4, 24),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_other_pixels_hold_out_the_same_ground(scenes: list[tuple], image_size: int, seed: int) -> None:
    files = [(h, w, "EPSG:32633", [size, 0, 5e5 + x, 0, -size, 6e6 - y]) for h, w, size, x, y in scenes]
    collection = placed(files)
    splits = split_collection(collection, image_size=image_size, seed=seed)
    for one, other in itertools.permutations(range(len(files)), 2):
        coarser = max(scenes[one][2], scenes[other][2])
        for part, held in ((splits.train, splits.test), (splits.train, splits.validation), (splits.validation, splits.test)):
            for a, b in ((part, held), (held, part)):
                assert not deep_inside(collection, b, other, pixel_centres(collection, a, one), coarser).any()


def test_a_scene_and_its_coarser_copy_lose_nothing() -> None:
    files = [(240, 300, "EPSG:32633", [10.0, 0, 5e5, 0, -10.0, 6e6]), (120, 150, "EPSG:32633", [20.0, 0, 5e5, 0, -20.0, 6e6])]
    collection = placed(files)
    splits = split_collection(collection, image_size=12)
    for maps in zip(
        *(painted(p, [file[:2] for file in files]) for p in (splits.train, splits.validation, splits.test)), strict=True
    ):
        assert (sum(maps) == 1).all()
    assert {0, 1} == set(splits.test.blocks[:, 0]) == set(splits.train.blocks[:, 0])
    (told,) = (notice for notice in splits.notices if "different pixels" in notice)
    assert "p0/0.tif and p0/1.tif" in told or "p0/1.tif and p0/0.tif" in told
    assert "data.group_pattern" in told


def test_blocks_of_the_smaller_area_follow_those_of_the_larger_however_long_they_are() -> None:
    square = (400, 400, "EPSG:32633", [20.0, 0, 5e5, 0, -20.0, 6e6])  # blocks of 1000 m by 1000 m
    strip = (30, 3000, "EPSG:32633", [10.0, 0, 5e5, 0, -10.0, 6e6 - 4e3])  # of 100 m by 3750 m
    splits = split_collection(placed([square, strip]), image_size=10)
    sizes = [square[:2], strip[:2]]
    maps = [painted(part, sizes) for part in (splits.train, splits.validation, splits.test)]
    assert (sum(of_part[0] for of_part in maps) == 1).all()
    assert not (sum(of_part[1] for of_part in maps) == 1).all()


def test_scenes_of_two_zones_hold_out_the_same_ground() -> None:
    """Beside the meridian that parts UTM zones 33 and 34, where their grids are at an angle of five degrees."""
    from rasterio.warp import transform

    def to(system: str, other: str, points: np.ndarray) -> np.ndarray:
        return np.stack(transform(system, other, *points.T)[:2], axis=1)

    zones = ("EPSG:32633", "EPSG:32634")
    corners = [to("EPSG:4326", zone, np.array([[18.0, 52.0]]))[0] for zone in zones]
    collection = placed([(300, 300, zone, [10.0, 0, x, 0, -10.0, y]) for zone, (x, y) in zip(zones, corners, strict=True)])
    splits = split_collection(collection, image_size=24, seed=1)
    checked = 0
    for one, other in ((0, 1), (1, 0)):
        for part, held in itertools.permutations((splits.train, splits.validation, splits.test), 2):
            points = to(zones[one], zones[other], pixel_centres(collection, part, one))
            assert not deep_inside(collection, held, other, points, 10.0).any()
            checked += len(points)
    assert checked > 10_000
    assert any("left out" in notice for notice in splits.notices)


def test_groups_of_one_ground_in_different_parts_are_told() -> None:
    collection = georeferenced([(0, 0, 60, 60)] * 10)
    splits = split_collection(collection, method="group", group_pattern=r"(\d+)\.tif", image_size=16)
    assert any("overlap on the ground" in notice for notice in splits.notices)
    apart = georeferenced([(0, 100 * number, 60, 60) for number in range(10)])
    assert not split_collection(apart, method="group", group_pattern=r"(\d+)\.tif", image_size=16).notices


def chips(count: int, stride: float, dates: int = 1, labels: np.ndarray | None = None) -> Collection:
    """Georeferenced images of 32 px in a row, `stride` px apart, each `dates` times."""
    files = [(32, 32, "EPSG:32633", [10.0, 0, 5e5 + 10 * stride * (i // dates), 0, -10.0, 6e6]) for i in range(count)]
    return replace(placed(files, "images"), labels=labels)


def test_images_of_one_ground_are_held_out_together() -> None:
    labels = np.arange(120) // 3 % 4
    splits = split_collection(chips(120, 32, 3, labels), image_size=32, seed=2)
    parts = [{item // 3 for item in part.items.tolist()} for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [28, 4, 8]
    assert len(set.union(*parts)) == 40
    assert np.bincount(labels[splits.test.items], minlength=4).min() >= 3
    assert len(set(splits.test.groups.tolist())) == 8
    (told,) = splits.notices
    assert told.startswith("120 of 120 images overlap others on the ground, such as p0/0.tif and p0/1.tif")
    alone = split_collection(chips(120, 32, 3, labels), method="random", image_size=32, seed=2)
    assert len({item // 3 for item in alone.test.items.tolist()}) > 8
    (told,) = alone.notices
    assert "images of different parts overlap on the ground, such as p" in told
    assert "data.group_pattern" in told


def test_images_side_by_side_are_drawn_as_without_a_georeference() -> None:
    for stride in (32, 33, 31.5):
        beside = split_collection(chips(50, stride), image_size=32)
        plain = split_collection(make([(32, 32)] * 50, "images"), image_size=32)
        assert beside.digest == plain.digest
        assert beside.notices == ()


def test_images_that_all_overlap_are_told() -> None:
    splits = split_collection(chips(50, 16), image_size=32)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (35, 5, 10)
    assert splits.test.groups is None
    (told,) = splits.notices
    assert "images of different parts overlap" in told


def test_a_large_place_does_not_leave_too_little_to_train_on() -> None:
    for seed in range(10):
        collection = chips(100, 32)
        collection.files = (collection.files[0],) * 50 + collection.files[50:]
        splits = split_collection(collection, image_size=32, seed=seed)
        parts = (splits.train, splits.validation, splits.test)
        assert [len(set(part.items.tolist()) & set(range(50))) for part in parts] == [50, 0, 0]
        assert min(len(splits.validation) / 10, len(splits.test) / 20) >= 0.5


def test_many_small_scenes_without_a_place_have_all_parts() -> None:
    splits = split_collection(make([(80, 80)] * 200), image_size=48)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (140, 20, 40)


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    fractions=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_random_split_is_stratified(counts: list[int], fractions: tuple[float, float], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    collection = make([(8, 8)] * len(labels), "images", labels)
    validation, test = fractions
    splits = split_collection(collection, validation_fraction=validation, test_fraction=test, image_size=8, seed=seed)
    together = np.concatenate([splits.train.items, splits.validation.items, splits.test.items])
    assert sorted(together) == list(range(len(labels)))
    assert len(splits.train) >= 1
    if len(labels) >= 20:
        for number, count in enumerate(counts):
            held = (labels[splits.test.items] == number).sum()
            assert abs(held - test * count) <= 2 + len(counts) * 0.5


@pytest.mark.parametrize(("count", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (10, (7, 1, 2))])
def test_tiny_sets(count: int, expected: tuple[int, int, int]) -> None:
    splits = split_collection(make([(8, 8)] * count, "images"), image_size=8)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == expected
    assert bool(splits.notices) == (0 in expected)


def test_groups_stay_together() -> None:
    collection = make([(8, 8)] * 40, "images")
    splits = split_collection(collection, method="group", group_pattern=r"^p(\d+)/", image_size=8)
    groups = [{int(item) // 2 for item in part.items} for part in (splits.train, splits.validation, splits.test)]
    assert all(groups)
    assert sum(map(len, groups)) == len(set().union(*groups))
    with pytest.raises(DataError, match="no group"):
        split_collection(collection, method="group", group_pattern=r"^q(\d+)/", image_size=8)
    with pytest.raises(DataError, match="1 group"):
        split_collection(collection, method="group", group_pattern=r"^(p)", image_size=8)


@pytest.mark.parametrize(
    ("sizes", "least"),
    [
        ([900, 50, 50], (900, 50, 50)),
        ([900, *[1] * 100], (900, 25, 50)),
        ([500, *range(20, 45)], (500, 40, 80)),
        ([300, 100, 100], (300, 100, 100)),
    ],
)
def test_a_large_group_is_trained_on(sizes: list[int], least: tuple[int, int, int]) -> None:
    names = tuple(f"{group}/{i}.tif" for group, size in enumerate(sizes) for i in range(size))
    half = [share * len(names) // 20 for share in (7, 1, 2)]
    for seed in range(10):
        collection = replace(make([(8, 8)] * len(names), "images"), relative_paths=names)
        splits = split_collection(collection, group_pattern=r"(\d+)/", image_size=8, seed=seed)
        counts = [len(part) for part in (splits.train, splits.validation, splits.test)]
        assert all(count >= expected for count, expected in zip(counts, least, strict=True)), counts
        told = f"leaves {counts[0] / len(names):.0%} of the images for training"
        assert any(told in notice for notice in splits.notices) == any(n < m for n, m in zip(counts, half, strict=True))


def test_what_belongs_together_is_numbered() -> None:
    grouped = split_collection(make([(8, 8)] * 20, "images"), image_size=8, group_pattern=r"(p\d+)/")
    for part in (grouped.train, grouped.validation, grouped.test):
        assert part.groups is not None
        assert len({(int(item) // 2, int(group)) for item, group in zip(part.items, part.groups, strict=True)}) == len(part) // 2
    dates = split_collection(make([(100, 100)] * 2), image_size=24)
    for part in (dates.train, dates.test):
        assert part.groups is not None
        assert sorted(part.groups[part.blocks[:, 0] == 0]) == sorted(part.groups[part.blocks[:, 0] == 1])
        assert len(set(part.groups.tolist())) == len(part) // 2
    assert split_collection(make([(8, 8)] * 20, "images"), image_size=8).train.groups is None


def test_same_seed_same_digest() -> None:
    collection = make([(100, 100)])
    digests = [split_collection(collection, image_size=16, seed=seed).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_wrong_requests() -> None:
    with pytest.raises(SettingsError, match="cuts scenes"):
        split_collection(make([(8, 8)] * 5, "images"), method="block", image_size=8)
    with pytest.raises(SettingsError, match="smaller than a crop"):
        split_collection(make([(90, 90)]), image_size=32, block_size=16)
    with pytest.raises(SettingsError, match="patch_size"):
        resolve_image_size(make([(90, 90)]), 4, 8)


@pytest.mark.parametrize(
    ("side", "layout", "patch", "expected"),
    [
        (90, "scenes", 8, 24),
        (264, "scenes", 8, 64),
        (20, "scenes", 8, 16),
        (15, "scenes", 8, 8),
        (64, "images", 16, 64),
        (30, "images", 8, 24),
        (1, "images", 8, 8),
    ],
)
def test_image_size(side: int, layout: str, patch: int, expected: int) -> None:
    assert resolve_image_size(make([(side, side + 5)], layout), None, patch) == expected


@pytest.mark.parametrize(("asked", "expected"), [(48, 40), (40, 40), (32, 32), (33, 33)])
def test_no_crop_is_larger_than_the_largest_image(asked: int, expected: int) -> None:
    collection = make([(20, 30), (35, 9)], "images")
    assert resolve_image_size(collection, asked, 8) == expected
    assert collection.notices == (["crops of 40 px in place of 48: no image is longer than 35 px"] if asked == 48 else [])


def test_a_pattern_asks_for_groups_and_entries_of_one_file_are_told() -> None:
    names = tuple(f"well{number // 4}/{number}.npy" for number in range(24))
    collection = replace(make([(16, 16)] * 24, "images"), relative_paths=names)
    splits = split_collection(collection, image_size=8, group_pattern=r"^(well\d+)/")
    assert splits.method == "group"
    wells = [{item // 4 for item in part.items.tolist()} for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, wells)) == len(set.union(*wells)) == 6

    items = np.stack([np.arange(24) // 4, np.arange(24) % 4], axis=1)
    stacks = replace(make([(16, 16)] * 6, "array"), items=items, relative_paths=tuple(f"{file}.tif" for file in range(6)))
    splits = split_collection(stacks, image_size=8)
    assert any("images of one file fall into different parts" in notice for notice in splits.notices)
    splits = split_collection(stacks, image_size=8, group_pattern="(.*)")
    assert not any("one file" in notice for notice in splits.notices)
    files = [{item // 4 for item in part.items.tolist()} for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, files)) == 6


def test_scenes_of_one_ground_or_one_group_belong_together() -> None:
    grid = georeferenced([(0, 0, 60, 60), (200, 0, 60, 60), (30, 30, 60, 60)], ["EPSG:32633"] * 3)
    first, other, shifted = scene_groups(grid).tolist()
    assert first == shifted != other
    plain = replace(grid, files=tuple(replace(file, georeference=None) for file in grid.files))
    assert len(set(scene_groups(plain).tolist())) == 3
    named = replace(plain, relative_paths=("a/1.tif", "b/1.tif", "b/2.tif"))
    one, two, three = scene_groups(named, r"^(\w)/").tolist()
    assert one != two == three


def test_scenes_that_share_a_label_map_belong_together(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, side in (("may", 40), ("july", 40), ("other", 44)):
        np.save(tmp_path / f"{name}.npy", random.random((5, side, side)).astype(np.float32))
    np.save(tmp_path / "map.npy", random.integers(1, 4, (40, 40)))
    for labels, expected in ((str(tmp_path / "map.npy"), 2), ("none", 3)):
        collection = open_collection(str(tmp_path), labels=labels, layout="scenes", exclude=("map.npy",))
        of = dict(zip(collection.relative_paths, scene_groups(collection).tolist(), strict=True))
        assert len(set(of.values())) == expected
        assert (of["may.npy"] == of["july.npy"]) == (expected == 2)
