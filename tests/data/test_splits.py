"""Images and groups drawn into parts, which never overlap; the same seed gives the same parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.data.splits import resolve_image_size, split_collection
from auxmae.errors import DataError, SettingsError
from tests.data.made_collections import make


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

    alone = replace(make([(16, 16)], "array"), items=np.stack([np.zeros(24, np.int64), np.arange(24)], axis=1))
    with pytest.raises(DataError, match="finds 1 group") as told:
        split_collection(alone, image_size=8, group_pattern="(.*)")
    assert "groups are of whole files" in told.value.hint
