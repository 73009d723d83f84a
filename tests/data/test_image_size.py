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
