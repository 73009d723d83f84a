"""Labels of whole images in arrays, which name none: which images they are of, and that no scene is labelled by them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from auxmae.data.opening import open_collection
from auxmae.errors import DataError
from tests.data.small_files import RNG, pixels

HASHES = sorted({f"{number:04x}" for number in np.random.default_rng(7).integers(16**4, size=300)})


def pictures(folder: Path, *names: str, size: int = 160) -> str:
    folder.mkdir()
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(1, 255, (size, size, 3), dtype=np.uint8)).save(path)
    return str(folder)


def array(path: Path, count: int, key: str = "") -> str:
    values = np.arange(count) % 3
    np.savez(path, **{key: values}) if key else np.save(path, values)
    return f"{path}:{key}" if key else str(path)


def shard(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


@pytest.mark.parametrize(("name", "key"), [("y.npy", ""), ("y.npz", "y")])
def test_labelled_images_are_no_scenes(tmp_path: Path, name: str, key: str) -> None:
    source = pictures(tmp_path / "images", *"abcdefghijkl")
    labels = array(tmp_path / name, 12, key)
    assert open_collection(source).layout == "scenes"
    collection = open_collection(source, labels=labels)
    assert collection.layout == "images"
    assert collection.labels is not None
    assert collection.labels.tolist() == [0, 1, 2] * 4
    with pytest.raises(DataError, match="its labels are of whole images") as told:
        open_collection(source, labels=labels, layout="scenes")
    assert told.value.hint == "set data.layout = 'images'"
    with pytest.raises(DataError, match="11 labels for 12 images"):
        open_collection(source, labels=array(tmp_path / name, 11, key))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["b", "a"], "a.png, b.png"),
        (["a1", "a2", "b"], "a1.png, a2.png, b.png"),
        # No number tells these apart.
        (["a.b", "a", "a1", "A"], "A.png, a.b.png, …, a1.png"),
        # Of hashes digits are no numbers, though many short ones are the same but for them.
        (HASHES, f"{HASHES[0]}.png, {HASHES[1]}.png, …, {HASHES[-1]}.png"),
        (["a3f9", "a12b", "c7"], "a12b.png, a3f9.png, c7.png"),
        ([f"img_{number:02}" for number in range(12)], "img_00.png, img_01.png, …, img_11.png"),
    ],
)
def test_the_order_of_entries_is_told(tmp_path: Path, names: list[str], order: str) -> None:
    labels = array(tmp_path / "y.npy", len(names))
    collection = open_collection(pictures(tmp_path / "images", *names, size=24), labels=labels)
    assert f"labels: the entries of {labels} are taken for the images in this order: {order}" in collection.notices


@pytest.mark.parametrize(
    "names",
    [
        [f"img_{number}" for number in range(1, 301)],
        [*(f"img_{number}" for number in range(1, 31)), "overview"],
        [f"{animal}/{number}" for animal in ("cat", "dog") for number in range(1, 11)],
    ],
    ids=["many", "and another", "in folders"],
)
def test_numbered_images_are_told_from_hashes(tmp_path: Path, names: list[str]) -> None:
    source = pictures(tmp_path / "images", *names, size=24)
    with pytest.raises(DataError, match="which image is each entry of"):
        open_collection(source, labels=array(tmp_path / "y.npy", len(names)))


def test_entries_of_numbered_images_are_asked_about(tmp_path: Path) -> None:
    source = pictures(tmp_path / "images", *(f"img_{number}" for number in range(11)), size=24)
    with pytest.raises(DataError, match=r"By name img_10\.png comes before img_2\.png, by number behind it") as told:
        open_collection(source, labels=array(tmp_path / "y.npy", 11))
    assert "CSV" in str(told.value.hint)
    for number in range(11):
        shard(tmp_path / f"shards/shard_{number}.npz", x=np.stack([pixels(3, 24, 24)] * 2))
    with pytest.raises(DataError, match=r"shard_10\.npz comes before shard_2\.npz, by number behind it") as told:
        open_collection(str(tmp_path / "shards"), labels=array(tmp_path / "y.npy", 22))
    # A table names files, not the images in them.
    assert "leading zeros" in str(told.value.hint)
    # One entry too few says nothing of the order.
    with pytest.raises(DataError, match="10 labels for 11 images"):
        open_collection(source, labels=array(tmp_path / "y.npy", 10))


def test_the_labels_of_an_array_are_of_images_and_not_of_scenes(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.stack([pixels(3, 48, 48)] * 4), y=np.arange(4) % 2)
    assert open_collection(str(path)).class_names == ("0", "1")
    scenes = open_collection(str(path), layout="scenes")
    assert scenes.labels is None
    assert sum("not taken for scenes" in notice for notice in scenes.notices) == 1


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_a_file_of_one_image_has_its_label(tmp_path: Path, suffix: str) -> None:
    for name, count in (("a", 3), ("b", 3), ("c", 1)):
        shard(tmp_path / f"{name}.{suffix}", x=np.stack([pixels(3, 24, 24)] * count), labels=np.arange(count) % 2)
    collection = open_collection(str(tmp_path))
    assert collection.labels is not None
    assert collection.labels.tolist() == [0, 1, 0, 0, 1, 0, 0]
    # An image that is not one of N has no label by an array of one number.
    shard(tmp_path / f"d.{suffix}", x=pixels(3, 24, 24), labels=np.zeros(1, np.int64))
    without = open_collection(str(tmp_path))
    assert without.labels is None
    assert any("an array labels, and the images along an axis N, of length 1 for one image" in one for one in without.notices)
    shard(tmp_path / f"d.{suffix}", x=pixels(3, 24, 24)[None], labels=np.zeros(1, np.int64))
    assert len(open_collection(str(tmp_path)).labels) == 8


def test_files_without_labels_beside_others_are_told(tmp_path: Path) -> None:
    for name in "abcde":
        labels = {"labels": np.arange(3)} if name < "c" else {}
        shard(tmp_path / f"{name}.npz", x=np.stack([pixels(3, 24, 24)] * 3), **labels)
    collection = open_collection(str(tmp_path))
    assert collection.labels is None
    [told] = [notice for notice in collection.notices if notice.startswith("labels: ")]
    assert told.startswith("labels: 2 of 5 files hold a label for each of their images, 3 do not (c.npz, d.npz, e.npz)")
    assert open_collection(str(tmp_path), exclude=["[c-e].npz"]).class_names == ("0", "1", "2")
    for name in "ab":
        (tmp_path / f"{name}.npz").unlink()
    assert not any("labels: " in notice for notice in open_collection(str(tmp_path)).notices)
