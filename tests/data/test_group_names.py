"""Names that look like several images of one thing, and those that do not."""

from __future__ import annotations

import re

import pytest

from auxmae.data.group_names import suggest_groups

WELLS = [f"{row}{column:02d}" for row in "ABC" for column in range(1, 5)]


@pytest.mark.parametrize(
    ("name", "sets", "counts"),
    [
        ("plate1_{set}_f{count}.tif", WELLS, range(1, 5)),
        ("plate1/{set}_s{count}.ome.tif", WELLS, range(9)),
        ("r0{set}c02f0{count}.tif", range(6), range(1, 3)),
        ("exp-{set}-T{count}.png", WELLS, range(3)),
        ("movie{set}_s1_t{count:03d}.tif", range(12), range(10)),
        ("{set}_{count}.tif", WELLS, range(3)),
        ("donor{set}_{count}.png", range(12), range(1, 4)),
        # As data.channel_pattern leaves names of Opera, ImageXpress, ArrayScan and CellVoyager.
        ("Images/r0{set}c02f0{count}p01sk1fk1fl1.tiff", range(6), range(1, 3)),
        ("Images/r0{set}c02f0{count}p01-chsk1fk1fl1.tiff", range(6), range(1, 3)),
        ("Week1_22123/Week1_22123_{set}_s{count}_w.tif", WELLS, range(1, 5)),
        ("MFGTMP_140826180002_{set}f0{count}d.tif", WELLS, range(4)),
        ("Plate_{set}_T0001F00{count}L01Z01.tif", WELLS, range(1, 4)),
    ],
)
def test_sets_are_found_and_kept_together(name: str, sets: list, counts: range) -> None:
    paths = [name.format(set=one, count=count) for one in sets for count in counts]
    found = suggest_groups(paths)
    assert found is not None
    assert found.number == len(sets)
    assert found.example == (paths[0], paths[1])
    matches = [re.search(found.pattern, path) for path in paths]
    groups = [match.group(1) for match in matches if match]
    assert len(groups) == len(paths)
    for index, group in enumerate(groups):
        first = index // len(counts) * len(counts)
        assert groups.index(group) == first


@pytest.mark.parametrize(
    "paths",
    [
        [f"Forest_{number}.tif" for number in range(200)],
        [f"tile_{number}.tif" for number in range(20)],
        [f"{number}.tif" for number in range(50)],
        [f"t{number:03d}.tif" for number in range(50)],
        [f"LC08_{number}.tif" for number in range(50)],
        [f"tile_{row}_{column}.tif" for row in range(10) for column in range(10)],
        [f"cam{camera}_{number}.png" for camera in range(8) for number in range(50)],
        [f"{name}/{name}_{number}.tif" for name in ("Forest", "River", "Sea", "Lake", "Town", "Road") for number in range(8)],
        [f"2020-{month:02d}-{day:02d}.tif" for month in range(1, 12) for day in range(5)],
        [*(f"{well}_f{field}.tif" for well in WELLS for field in range(3)), "overview.tif"],
        [],
    ],
)
def test_plain_numbers_are_no_sets(paths: list[str]) -> None:
    assert suggest_groups(paths) is None


def test_classes_are_no_sets() -> None:
    paths = [f"class{c}/class{c}_{number}.tif" for c in range(8) for number in range(8)]
    assert suggest_groups(paths, classes=8) is None
