"""Scenes cut into blocks: every pixel is in one part, whatever the sizes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.data.splits import resolve_image_size, split_collection
from tests.data.made_collections import make, painted


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


def test_many_small_scenes_without_a_place_have_all_parts() -> None:
    splits = split_collection(make([(80, 80)] * 200), image_size=48)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (140, 20, 40)
