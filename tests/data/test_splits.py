"""Parts never overlap, whatever the sizes; the same seed gives the same parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.data.collection import Collection, memory_file
from auxmae.data.splits import Part, resolve_image_size, split_collection
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
