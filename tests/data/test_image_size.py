"""The side of crops that is taken where none is asked for, or too large a one."""

from __future__ import annotations

import pytest

from auxmae.data.splits import resolve_image_size
from tests.data.made_collections import make


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


@pytest.mark.parametrize(("layout", "small", "crop"), [("images", 20, 16), ("scenes", 60, 16)])
def test_one_small_image_that_sets_the_crops_of_all_is_told(layout: str, small: int, crop: int) -> None:
    collection = make([(256, 256)] * 5 + [(small, small + 4)], layout)
    assert resolve_image_size(collection, None, 8) == crop
    told = f"crops of {crop} px, since p2/5.tif is of {small}×{small + 4} px; by most images they would be of 64 px"
    [notice] = collection.notices
    assert notice.startswith(told)
    assert "data.exclude, or set model.image_size = 64" in notice


@pytest.mark.parametrize(("small", "asked"), [(40, None), (20, 64)])
def test_crops_that_are_asked_for_or_hardly_smaller_are_not_told(small: int, asked: int | None) -> None:
    collection = make([(256, 256)] * 5 + [(small, small)], "images")
    resolve_image_size(collection, asked, 8)
    assert collection.notices == []
