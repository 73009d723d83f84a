"""Samples hold the right pixels, scaled, and no training crop touches a held-out pixel."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.data.collection import Collection, memory_file
from auxmae.data.dataset import ImageDataset
from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.label_rasters import LabelRaster
from auxmae.data.loading import Loader
from auxmae.data.opening import open_collection
from auxmae.data.splits import Part, split_collection
from auxmae.data.statistics import Scaling, compute_statistics
from auxmae.errors import DataError


def scenes(arrays: list[np.ndarray], layout: str = "scenes") -> Collection:
    files = tuple(memory_file(array[None], Path(f"{i}.tif")) for i, array in enumerate(arrays))
    items = np.array([(i, 0) for i in range(len(files))], dtype=np.int64)
    names = tuple("abcdefgh"[: arrays[0].shape[0]])
    paths = tuple(file.path.name for file in files)
    return Collection(
        "memory",
        layout,
        names,
        None,
        (),
        files,
        [],
        items,
        (None,) * len(files),
        None,
        (),
        paths,  # type: ignore[arg-type]
    )


@given(
    sizes=st.lists(st.tuples(st.integers(5, 120), st.integers(5, 120)), min_size=1, max_size=3),
    image_size=st.integers(4, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_no_training_crop_touches_a_held_out_pixel(sizes: list[tuple[int, int]], image_size: int, seed: int) -> None:
    blank = scenes([np.ones((1, h, w), np.float32) for h, w in sizes])
    splits = split_collection(blank, image_size=image_size, seed=seed)
    marked = [np.ones((1, h, w), np.float32) for h, w in sizes]
    for part in (splits.validation, splits.test):
        for scene, top, left, height, width in part.blocks.tolist():
            marked[scene][:, top : top + height, left : left + width] = 99
    collection = scenes(marked)
    for augment in (True, False):
        dataset = ImageDataset(collection, splits.train, image_size=image_size, augment=augment, seed=seed)
        for epoch in range(4):
            dataset.set_epoch(epoch)
            image, valid, *_ = dataset.fetch(range(len(dataset)))
            assert (image[valid] == 1).all()
            assert valid.any(dim=(1, 2, 3)).all()
    for part in (splits.validation, splits.test):
        if len(part):
            held = ImageDataset(collection, part, image_size=image_size, augment=True, seed=seed)
            image, valid, *_ = held.fetch(range(len(held)))
            assert (image[valid] == 99).all()


def test_crops_cross_blocks_of_the_same_part() -> None:
    collection = scenes([np.ones((1, 80, 80), np.float32)])
    splits = split_collection(collection, image_size=16, block_size=20)
    dataset = ImageDataset(collection, splits.train, image_size=16, augment=True)
    crossed = 0
    for epoch in range(20):
        dataset.set_epoch(epoch)
        windows = [dataset.place(index)[1] for index in range(len(dataset))]
        crossed += sum(window.left // 20 != (window.left + 15) // 20 for window in windows)
    assert crossed > 0


def test_evaluation_is_the_pixels_themselves() -> None:
    array = np.random.default_rng(0).random((3, 70, 90)).astype(np.float32)
    collection = scenes([array])
    splits = split_collection(collection, image_size=16)
    dataset = ImageDataset(collection, splits.test, image_size=16)
    for index in range(len(dataset)):
        _, window = dataset.place(index)
        sample = dataset[index]
        rows, columns = slice(window.top, window.top + 16), slice(window.left, window.left + 16)
        assert (sample.image.numpy() == array[:, rows, columns]).all()
        assert sample.label == -1
        assert sample.label_map is None


@given(side=st.tuples(st.integers(3, 70), st.integers(3, 70)), image_size=st.integers(2, 24), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_windows_that_cover_blocks_show_every_pixel_and_each_label_once(
    side: tuple[int, int], image_size: int, seed: int
) -> None:
    height, width = side
    numbers = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    collection = scenes([numbers])
    classes = memory_file(numbers[None], Path("labels.tif"))
    collection = replace(collection, label_rasters=(LabelRaster(classes, tuple(range(height * width))),))
    splits = split_collection(collection, image_size=image_size, seed=seed)
    for part in (splits.train, splits.test):
        inside = np.zeros((height, width), dtype=bool)
        for _, top, left, h, w in part.blocks.tolist():
            inside[top : top + h, left : left + w] = True
        dataset = ImageDataset(collection, part, image_size=image_size, cover=True)
        if not len(dataset):
            continue
        image, valid, _, labels = dataset.fetch(range(len(dataset)))
        expected = numbers[0][inside]
        assert np.unique(image[valid]).tolist() == expected.tolist()
        assert labels is not None
        # In its own place, once.
        assert torch.equal(labels[labels >= 0].float(), image[:, 0][labels >= 0])
        assert sorted(labels[labels >= 0].tolist()) == expected.tolist()
        # Each block by as few windows as reach over it.
        fewest = sum(-(-h // min(image_size, h)) * -(-w // min(image_size, w)) for *_, h, w in part.blocks.tolist())
        assert len(dataset) == fewest


def test_large_images_are_looked_at_from_edge_to_edge() -> None:
    arrays = [np.arange(h * w, dtype=np.float32).reshape(1, h, w) for h, w in ((40, 100), (16, 16), (9, 33), (1000, 20))]
    collection = scenes(arrays, "images")
    part = Part("test", np.arange(4), np.zeros((0, 5), dtype=np.int64))
    dataset = ImageDataset(collection, part, image_size=16)
    assert dataset.images == 4
    assert dataset.in_parts
    places = [dataset.place(index) for index in range(len(dataset))]
    assert [item for item, _ in places] == [0] * 12 + [1] + [2] * 2 + [3] * 4
    first = [window for item, window in places if item == 0]
    assert {(window.top, window.left) for window in first} == {(top, left) for top in (0, 12, 24) for left in (0, 28, 56, 84)}
    assert {(window.left, window.height, window.width) for item, window in places if item == 2} == {(0, 9, 16), (17, 9, 16)}
    assert [window.top for item, window in places if item == 3] == [0, 328, 656, 984]
    image, valid, *_ = dataset.fetch(range(len(dataset)))
    for (item, window), pixels, ok in zip(places, image, valid, strict=True):
        rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
        assert (pixels[ok].numpy() == arrays[item][:, rows, columns].reshape(-1)).all()
    assert dataset.items([0, 12, 13]).tolist() == [0, 1, 2]
    assert len(ImageDataset(collection, part, image_size=16, augment=True)) == 4
    assert not ImageDataset(
        scenes([np.ones((1, 20, 20), np.float32)] * 2, "images"), Part("test", np.arange(2), part.blocks), image_size=16
    ).in_parts


@pytest.mark.parametrize(
    ("side", "starts"),
    [
        (120, (0, 56)),
        (96, (0, 32)),
        (95, (15,)),
        (64, (0,)),
        (63, (0,)),
        (160, (0, 48, 96)),
        (159, (0, 95)),
        (1000, (0, 312, 624, 936)),
    ],
)
def test_windows_are_as_many_as_crops_go_into_an_image(side: int, starts: tuple[int, ...]) -> None:
    numbers = np.arange(side * side, dtype=np.float32).reshape(1, side, side)
    collection = scenes([numbers], "images")
    classes = memory_file(numbers[None], Path("labels.tif"))
    collection = replace(collection, label_rasters=(LabelRaster(classes, tuple(range(side * side))),))
    dataset = ImageDataset(collection, Part("test", np.arange(1), np.zeros((0, 5), dtype=np.int64)), image_size=64)
    windows = [dataset.place(index)[1] for index in range(len(dataset))]
    assert [(window.top, window.left) for window in windows] == [(top, left) for top in starts for left in starts]
    image, valid, _, labels = dataset.fetch(range(len(dataset)))
    assert labels is not None
    # In its own place, and once for every pixel that is seen.
    assert torch.equal(labels[labels >= 0].float(), image[:, 0][labels >= 0])
    assert sorted(labels[labels >= 0].tolist()) == np.unique(image[valid]).astype(int).tolist()


def on_disk(item: int, height: int, width: int, reads: list[tuple[int, bool]]) -> ImageFile:
    """A file whose pixel (r, c) is item + r / 2**13, as if stored; `reads` is told of each read, and whether it is whole."""
    rows_1HW = np.broadcast_to(item + np.arange(height, dtype=np.float32)[:, None] / 2**13, (1, height, width))

    def read(index: int, window: Window | None) -> MultiChannelImage:
        reads.append((item, window is None))
        pixels = rows_1HW
        if window is not None:
            pixels = pixels[:, window.top : window.top + window.height, window.left : window.left + window.width]
        return MultiChannelImage(pixels, np.broadcast_to(True, pixels.shape))

    return ImageFile(Path(f"{item}.tif"), 1, 1, height, width, np.dtype(np.float32), read)


@pytest.mark.parametrize(
    ("side", "first", "second"),
    [
        (200, 3, 0),  # all fit into memory: each is read once
        (5000, 3, 3),  # one at a time does: each is read once a pass
        (8000, 48, 48),  # not even one: each of 16 windows is read alone
    ],
)
def test_images_on_disk_are_read_as_seldom_as_memory_allows(side: int, first: int, second: int) -> None:
    reads: list[tuple[int, bool]] = []
    files = tuple(on_disk(item, side, side, reads) for item in range(3))
    collection = replace(scenes([np.ones((1, 1, 1), np.float32)] * 3, "images"), files=files)
    dataset = ImageDataset(collection, Part("test", np.arange(3), np.zeros((0, 5), dtype=np.int64)), image_size=16)
    for expected in (first, second):
        reads.clear()
        image, *_ = dataset.fetch(range(len(dataset)))
        places = [dataset.place(index) for index in range(len(dataset))]
        assert [float(x[0, 0, 0]) for x in image] == [item + window.top / 2**13 for item, window in places]
        assert len(reads) == expected
        assert all(whole == (side < 8000) for _, whole in reads)


def test_images_in_memory_are_not_kept_a_second_time() -> None:
    array = np.zeros((1, 40, 40), np.float32)
    dataset = ImageDataset(scenes([array], "images"), Part("test", np.arange(1), np.zeros((0, 5), dtype=np.int64)), image_size=16)
    assert (dataset.fetch(range(len(dataset)))[0] == 0).all()
    array += 7
    assert (dataset.fetch(range(len(dataset)))[0] == 7).all()


def test_batches_say_which_image_a_window_is_of() -> None:
    collection = scenes([np.ones((1, 36, 20), np.float32)] * 3, "images")
    part = Part("test", np.array([0, 2]), np.zeros((0, 5), dtype=np.int64))
    batches = list(Loader(ImageDataset(collection, part, image_size=16), 3, shuffle=False))
    assert [batch.image_number.tolist() for batch in batches] == [[0, 0, 2], [2]]
    assert [batch.group.tolist() for batch in batches] == [[0, 0, 1], [1]]
    donors = ImageDataset(collection, replace(part, groups=np.array([7, 7])), image_size=16)
    assert donors.groups([0, 3]).tolist() == [7, 7]
    whole = ImageDataset(scenes([np.ones((1, 16, 16), np.float32)] * 3, "images"), part, image_size=16)
    assert next(iter(Loader(whole, 3, shuffle=False))).image_number is None


def test_padding_and_nan_are_not_valid_and_zero() -> None:
    array = np.full((2, 5, 7), 50.0, np.float32)
    array[1, 2, 3] = np.nan
    collection = scenes([array], "images")
    scaling = Scaling("standard", "none", 1.0, False, ("a", "b"), (10.0, 10.0), (4.0, 8.0))
    splits = split_collection(collection, image_size=8)
    sample = ImageDataset(collection, splits.train, image_size=8, scaling=scaling)[0]
    expected = torch.zeros(2, 8, 8, dtype=torch.bool)
    expected[:, :5, :7] = True
    expected[1, 2, 3] = False
    assert (sample.valid == expected).all()
    assert (sample.image[0, :5, :7] == 10).all()
    assert (sample.image[~expected] == 0).all()


def test_one_pixel_image_is_padded() -> None:
    collection = scenes([np.full((2, 1, 1), 3, np.uint8)], "images")
    splits = split_collection(collection, image_size=8)
    sample = ImageDataset(collection, splits.train, image_size=8, augment=True)[0]
    assert sample.image.shape == (2, 8, 8)
    assert int(sample.valid.sum()) == 2


def test_a_pixel_that_no_channel_has_is_of_no_class() -> None:
    array = np.random.default_rng(2).random((2, 40, 50)).astype(np.float32)
    array[:, :20] = np.nan
    array[0, 20:30] = np.nan
    collection = scenes([array])
    classes = memory_file(np.ones((1, 1, 40, 50), np.uint8), Path("labels.tif"))
    collection = replace(collection, label_rasters=(LabelRaster(classes, (0, 1)),))
    part = Part("test", np.zeros(0, dtype=np.int64), np.array([[0, 0, 0, 40, 50]]))
    dataset = ImageDataset(collection, part, image_size=16, cover=True)
    _, valid, _, labels = dataset.fetch(range(len(dataset)))
    assert labels is not None
    assert int((labels >= 0).sum()) == 20 * 50
    assert valid.any(1)[labels >= 0].all()


def test_flips_move_image_and_labels_together() -> None:
    array = np.arange(40 * 50, dtype=np.float32).reshape(1, 40, 50)
    collection = scenes([array])
    classes = memory_file(array[None] % 5, Path("labels.tif"))
    collection = replace(collection, label_rasters=(LabelRaster(classes, (0, 1, 2, 3, 4)),))
    dataset = ImageDataset(collection, split_collection(collection, image_size=8).train, image_size=8, augment=True)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.label_map is not None
        assert (sample.label_map == sample.image[0].long() % 5).all()


def test_augmentation_follows_seed_epoch_and_index_alone() -> None:
    array = np.random.default_rng(1).random((2, 60, 60)).astype(np.float32)
    collection = scenes([array])
    part = split_collection(collection, image_size=16).train
    first, second = (ImageDataset(collection, part, image_size=16, augment=True, seed=5) for _ in range(2))
    first.set_epoch(3)
    second.set_epoch(3)
    forward = [first[index].image for index in range(len(first))]
    backward = [second[index].image for index in reversed(range(len(second)))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    second.set_epoch(4)
    assert any(not torch.equal(a, second[index].image) for index, a in enumerate(forward))


@pytest.mark.parametrize(("far", "told"), [(3e38, "up to 3e+38"), (np.finfo(np.float32).min, "down to -3.4e+38")])
def test_a_value_beyond_computing_is_an_error_that_names_file_image_and_channel(tmp_path: Path, far: float, told: str) -> None:
    images = np.random.default_rng(5).random((6, 3, 16, 16)).astype(np.float32)
    images[4, 1, 5, 5] = far
    np.save(tmp_path / "images.npy", images)
    collection = open_collection(str(tmp_path / "images.npy"), options=ReadOptions(axes="NCHW"))
    (warning,) = collection.warnings
    assert f"image 4: values {told}, " in warning
    part = Part("all", np.arange(6), np.zeros((0, 5), dtype=np.int64))
    plain = ImageDataset(collection, part, image_size=16)
    others = ImageDataset(collection, Part("others", np.arange(4), part.blocks), image_size=16)
    scaling = Scaling.fit(compute_statistics(others))
    dataset = ImageDataset(collection, part, image_size=16, scaling=scaling)
    assert torch.isfinite(dataset.fetch([0, 5])[0]).all()
    assert plain.fetch([4])[0].abs().max() == np.float32(abs(far))
    with pytest.raises(DataError, match=rf"images\.npy, image 4: channel C2 holds {re.escape(told.split()[-1])}") as caught:
        dataset.fetch([3, 4])
    assert "data.exclude" in str(caught.value)
    for hint in (str(caught.value), warning):
        assert "where it has no scale and offset" in hint
        value = float(re.findall(r"data\.nodata = (\S+?)\)?$", hint)[0])
        mended = open_collection(str(tmp_path / "images.npy"), options=ReadOptions(axes="NCHW", nodata=value))
        assert ImageDataset(mended, part, image_size=16, scaling=scaling).fetch([4])[1].sum() == 3 * 256 - 1
        assert not mended.warnings
