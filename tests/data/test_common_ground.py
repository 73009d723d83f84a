"""What shows the same ground is held out together: overlapping scenes, other pixels and zones, chips, dates."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.data.collection import Collection
from auxmae.data.opening import open_collection
from auxmae.data.splits import Part, scene_groups, split_collection
from tests.data.made_collections import georeferenced, make, painted, placed


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


def test_small_scenes_within_one_in_degrees_follow_it() -> None:
    """A degree counts as the metres that it has: by numbers alone the large scene would be the smallest."""
    large = (300, 300, "EPSG:4326", [0.001, 0, 15.0, 0, -0.001, 52.0])
    small = [
        (100, 100, "EPSG:32633", [20.0, 0, 5e5 + 2500 * column, 0, -20.0, 5.757e6 - 2500 * row])
        for row in range(6)
        for column in range(6)
    ]
    splits = split_collection(placed([large, *small]), image_size=24)
    parts = (splits.train, splits.validation, splits.test)
    assert sum(painted(part, [large[:2]] * 37)[0] for part in parts).min() == 1  # nothing of the large one is left out


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


def test_many_scenes_of_few_blocks_hold_out_no_more_than_was_asked_for() -> None:
    for count, side in ((16, 96), (12, 100), (40, 128)):
        splits = split_collection(georeferenced([(0, 500 * number, side, side) for number in range(count)]), image_size=48)
        shares = [len(part.blocks) / (4 * count) for part in (splits.train, splits.validation, splits.test)]
        assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    # Of few scenes, and of such as have blocks enough, each is tested.
    for count, side in ((4, 96), (16, 192)):
        splits = split_collection(georeferenced([(0, 500 * number, side, side) for number in range(count)]), image_size=48)
        assert set(splits.test.blocks[:, 0].tolist()) == set(range(count))


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


def test_classes_that_are_places_and_so_never_trained_on_are_a_warning() -> None:
    """Folders of dates of one place, taken for classes: each lies in one part, so that every probe is wrong."""
    sites = replace(chips(48, 100, 4, np.arange(48) // 4), class_names=tuple(f"site_{number:02d}" for number in range(12)))
    splits = split_collection(sites, image_size=32)
    tested = sorted({int(item) // 4 for item in splits.test.items})
    assert 1 < len(tested) <= 4
    (warning,) = sites.warnings
    assert warning.startswith(
        f"{len(tested)} of {len(tested)} classes of the test part have no image in the training part (site_"
    )
    assert all(f"site_{number:02d}" in warning for number in tested)
    split_collection(sites, image_size=32)
    assert len(sites.warnings) == 1
    both = chips(48, 100, 4, np.arange(48) % 4)
    split_collection(both, image_size=32)
    assert not both.warnings


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
    assert "data.layout = 'scenes' holds the same ground out of all, without what lies across the borders" in told
    (told,) = split_collection(chips(50, 16, labels=np.arange(50) % 2), image_size=32).notices
    assert "images of different parts overlap" in told
    assert "data.layout" not in told  # it would not take labels of whole images
    scenes = replace(chips(50, 16), layout="scenes")
    assert not any("overlap on the ground" in told for told in split_collection(scenes, image_size=16).notices)


def test_a_large_place_does_not_leave_too_little_to_train_on() -> None:
    for seed in range(10):
        collection = chips(100, 32)
        collection.files = (collection.files[0],) * 50 + collection.files[50:]
        splits = split_collection(collection, image_size=32, seed=seed)
        parts = (splits.train, splits.validation, splits.test)
        assert [len(set(part.items.tolist()) & set(range(50))) for part in parts] == [50, 0, 0]
        assert min(len(splits.validation) / 10, len(splits.test) / 20) >= 0.5


def test_scenes_of_one_ground_or_one_group_belong_together() -> None:
    grid = georeferenced([(0, 0, 60, 60), (200, 0, 60, 60), (30, 30, 60, 60)], ["EPSG:32633"] * 3)
    first, other, shifted = scene_groups(grid).tolist()
    assert first == shifted != other
    plain = replace(grid, files=tuple(replace(file, georeference=None) for file in grid.files))
    assert len(set(scene_groups(plain).tolist())) == 3
    named = replace(plain, relative_paths=("a/1.tif", "b/1.tif", "b/2.tif"))
    one, two, three = scene_groups(named, r"^(\w)/").tolist()
    assert one != two == three
    # Years of two places: held out by years, the places still stay whole.
    years = replace(
        georeferenced([(0, 0, 60, 60), (0, 0, 60, 60), (200, 0, 60, 60)], ["EPSG:32633"] * 3),
        relative_paths=("2020/a.tif", "2021/a.tif", "2021/b.tif"),
    )
    assert len(set(scene_groups(years, r"^(\d+)/").tolist())) == 1
    assert len(set(scene_groups(years, r"/(\w)\.").tolist())) == 2


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
