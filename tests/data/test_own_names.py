"""Labels of images, and names of channels, in the file that holds the images, as each format stores them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from auxmae.data.image import ReadOptions
from auxmae.data.opening import open_collection
from auxmae.errors import DataError
from tests.data.reader_fixtures import write_v73

RNG = np.random.default_rng(8)
IMAGES = RNG.integers(1, 5000, (4, 3, 16, 16)).astype(np.uint16)
NUMBERS = np.array([2.0, 10.0, 10.0, 2.0])
TEXTS = ["drug b", "ctrl", "ctrl", "drug b"]


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path.with_suffix(".npz"), images=IMAGES, **arrays)
    return path.with_suffix(".npz")


def hdf5(path: Path, **arrays: object) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        for name, array in {"images": IMAGES, **arrays}.items():
            file[name] = array
    return path.with_suffix(".h5")


def matlab(path: Path, **arrays: object) -> Path:
    scipy.io.savemat(path.with_suffix(".mat"), {"images": IMAGES.transpose(2, 3, 1, 0), **arrays})
    return path.with_suffix(".mat")


def matlab_v73(path: Path, **arrays: object) -> Path:
    return write_v73(path.with_suffix(".mat"), images=IMAGES.transpose(2, 3, 1, 0), **arrays)


def zarr_group(path: Path, version: int, **arrays: object) -> Path:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path.with_suffix(".zarr")), mode="w", zarr_format=version)
    group.create_array("images", data=IMAGES)
    for name, array in arrays.items():
        group.create_array(name, shape=(len(array),), dtype="str" if isinstance(array, list) else "float64")[...] = np.array(
            array
        )
    return path.with_suffix(".zarr")


@pytest.mark.filterwarnings("ignore:.*Zarr V3 specification")
@pytest.mark.parametrize(
    ("write", "labels"),
    [
        (npz, NUMBERS),
        (npz, np.array(TEXTS)),
        (npz, np.array(TEXTS, dtype="S")),
        (hdf5, NUMBERS[:, None]),
        (hdf5, TEXTS),
        (hdf5, np.array(TEXTS, dtype="S")),
        (matlab, NUMBERS),
        (matlab, np.array(TEXTS)),
        (matlab, np.array(TEXTS, dtype=object)),
        (matlab_v73, NUMBERS[None]),
        (matlab_v73, np.array(TEXTS)),
        (matlab_v73, TEXTS),
        (lambda path, labels: zarr_group(path, 2, labels=labels), TEXTS),
        (lambda path, labels: zarr_group(path, 3, labels=labels), TEXTS),
        (lambda path, labels: zarr_group(path, 3, labels=labels), NUMBERS),
    ],
)
def test_numbers_and_text_however_they_are_stored(tmp_path, write, labels):
    path = write(tmp_path / "a", labels=labels)
    axes = {"axes": "HWCN"} if path.suffix == ".mat" else {"axes": "NCHW"}
    numbers = np.asarray(labels).dtype.kind == "f"
    for given in ("auto", ":labels"):
        collection = open_images(path, labels=given, **axes)
        assert collection.class_names == (("2", "10") if numbers else ("ctrl", "drug b"))
        assert collection.labels.tolist() == ([0, 1, 1, 0] if numbers else [1, 0, 0, 1])
        told = [notice for notice in collection.notices if notice.startswith("labels: 2 classes by array labels of a.")]
        assert len(told) == (given == "auto")
    assert open_images(path, labels="none", **axes).labels is None


def open_images(path: Path, labels: str, axes: str):
    return open_collection(str(path), labels=labels, options=ReadOptions(key="images", axes=axes))


def test_labels_that_are_missing(tmp_path):
    for labels in (np.array([3, np.nan, -1, 3]), np.array(["3", "", "NA", "3"]), np.array(["3", "", "-1", "3"])):
        collection = open_images(npz(tmp_path / "a", y=labels), "auto", "NCHW")
        assert (collection.class_names, collection.labels.tolist()) == (("3",), [0, -1, -1, 0])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0.5, 1, 2, 3]), "no whole numbers"),
        (np.array([0.0, 1, 2]), "3 labels for 4 images|labels has 3 entries, for 4 images"),
        (np.array(["a", "b", "c"]), "3 labels for 4 images|labels has 3 entries, for 4 images"),
        (np.array(["a", 1, "b", 2], dtype=object), r"an array of Python objects \(store it as numbers, or as text"),
        (np.array([["a", "b"]] * 4), "text of 2 axes"),
    ],
    ids=["fractions", "few", "few texts", "objects", "two axes"],
)
def test_why_labels_are_not_taken(tmp_path, labels, words):
    path = npz(tmp_path / "a", labels=labels)
    with pytest.raises(DataError, match=words):
        open_images(path, ":labels", "NCHW")
    collection = open_images(path, "auto", "NCHW")
    assert collection.labels is None
    assert any("not taken" in notice for notice in collection.notices) == (labels.ndim == 1)


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_images_of_several_sizes_in_one_array_are_told_what_to_do(tmp_path, kind):
    ragged = np.empty(3, dtype=object)
    ragged[:] = [RNG.random((5, side, 20)) for side in (20, 21, 22)]
    path = tmp_path / f"cells.{kind}"
    np.savez(path, images=ragged, labels=np.arange(3)) if kind == "npz" else np.save(path, ragged, allow_pickle=True)
    with pytest.raises(DataError, match=r"Python objects|no array that can be an image") as told:
        open_collection(str(path))
    assert "images of several sizes each in a file of its own" in told.value.hint


@pytest.mark.parametrize("write", [scipy.io.savemat, lambda path, arrays: write_v73(path, **arrays)], ids=["v5", "v7.3"])
def test_a_map_of_labels_beside_a_scene_is_told_with_what_uses_it(tmp_path, write):
    truth = RNG.integers(0, 4, (24, 30), dtype=np.uint16)
    path = tmp_path / "scene.mat"
    write(path, {"data": RNG.integers(1, 4000, (24, 30, 60), dtype=np.uint16), "labels": truth, "target": truth[:20]})
    collection = open_collection(str(path))
    assert not collection.has_label_maps
    (told,) = (notice for notice in collection.notices if "--labels" in notice)
    assert told == "scene.mat: array labels may hold labels of the pixels: --labels :labels uses it"
    used = open_collection(str(path), labels=told.split("--labels ")[1].split()[0])
    assert np.array_equal(used.read_labels(0), truth.astype(int) - 1)
    assert not any("--labels" in notice for notice in used.notices)
    assert not any("--labels" in notice for notice in open_collection(str(path), labels="none").notices)


def test_maps_of_labels_beside_an_array_of_images_are_told(tmp_path):
    path = npz(tmp_path / "a", y=RNG.integers(0, 3, (4, 16, 16)), labels=NUMBERS)
    (told,) = (notice for notice in open_images(path, "auto", "NCHW").notices if "--labels" in notice)
    assert told.startswith("a.npz: array y may hold labels of the pixels")
    assert open_images(path, ":y", "NCHW").has_label_maps


def test_the_labels_of_the_group_that_the_images_are_in(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for part, labels in (("train", TEXTS), ("test", TEXTS[::-1])):
            file[f"{part}/images"], file[f"{part}/labels"] = IMAGES, labels
        file["train/y"] = np.arange(4)
    options = ReadOptions(key="test/images", axes="NCHW")
    assert open_collection(str(path), options=options).labels.tolist() == [1, 0, 0, 1]
    twice = open_collection(str(path), options=ReadOptions(key="train/images", axes="NCHW"))
    assert twice.labels is None
    assert any("train/labels and train/y" in notice for notice in twice.notices)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_objects_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = npz(tmp_path / "a", labels=np.array([Harmful()] * 4, dtype=object))
    with pytest.raises(DataError, match=r"a\.npz:labels: an array of Python objects"):
        open_images(path, ":labels", "NCHW")
    assert open_images(path, "auto", "NCHW").labels is None
    assert not (tmp_path / "harmed").exists()


def test_labels_in_a_file_of_their_own(tmp_path):
    np.save(tmp_path / "texts.npy", np.array(TEXTS))
    path = npz(tmp_path / "a")
    assert open_images(path, str(tmp_path / "texts.npy"), "NCHW").labels.tolist() == [1, 0, 0, 1]


CHANNELS = ["DNA", "ER", "ER"]


def attributed(path: Path, where: str, version: int | None = None) -> Path:
    """HDF5 or, of a version, Zarr, with an attribute of the array or of the file."""
    if version is None:
        path = hdf5(path)
        with h5py.File(path, "r+") as file:
            (file[where] if where else file).attrs["channel_names"] = CHANNELS
    else:
        path = zarr_group(path, version)
        node = pytest.importorskip("zarr").open_group(str(path), mode="a")
        (node[where] if where else node).attrs["channel_names"] = CHANNELS
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda path: npz(path, channel_names=np.array(CHANNELS)),
        lambda path: npz(path, channels=np.array(CHANNELS, dtype="S")),
        lambda path: hdf5(path, channel_names=CHANNELS),
        lambda path: matlab(path, channel_names=np.array(CHANNELS, dtype=object)),
        lambda path: matlab_v73(path, channel_names=CHANNELS),
        lambda path: zarr_group(path, 3, channel_names=CHANNELS),
        lambda path: attributed(path, "images"),
        lambda path: attributed(path, ""),
        lambda path: attributed(path, "images", 2),
        lambda path: attributed(path, "", 3),
    ],
)
def test_names_of_channels_however_they_are_stored(tmp_path, write):
    path = write(tmp_path / "a")
    collection = open_images(path, "auto", "HWCN" if path.suffix == ".mat" else "NCHW")
    assert collection.channel_names == ("DNA", "ER_1", "ER_2")
    assert collection.files[0].channel_names == tuple(CHANNELS)
    assert np.array_equal(collection.read(2).pixels, IMAGES[2])
    pickle.loads(pickle.dumps(collection))


def test_names_that_do_not_fit_are_told(tmp_path):
    collection = open_images(npz(tmp_path / "a", channel_names=np.array(["DNA", "ER"])), "auto", "NCHW")
    assert collection.channel_names == ("C1", "C2", "C3")
    assert "a.npz: channel_names has 2 entries, for 3 channels: not taken" in collection.notices
    assert open_images(npz(tmp_path / "a", channel_names=np.array(["DNA", "", "ER"])), "auto", "NCHW").channel_names[0] == "C1"
    assert open_images(npz(tmp_path / "a", channels=np.array([1, 2, 3])), "auto", "NCHW").channel_names[0] == "C1"
