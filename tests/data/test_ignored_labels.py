"""Which values of a label map mean "no label": by the format's convention, as the settings say, and told in either case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from scipy.io import savemat

from auxmae.data.collection import Collection
from auxmae.data.image import ReadOptions
from auxmae.data.opening import open_collection
from auxmae.errors import DataError

RNG = np.random.default_rng(5)
MAP = RNG.integers(0, 5, (24, 31)).astype(np.uint8)
AXES = ReadOptions(axes="CHW")


def scene(folder: Path, format: str, values: np.ndarray) -> tuple[str, str]:
    """A scene of four bands and its map of classes → (source, labels)."""
    folder.mkdir(exist_ok=True)
    cube = RNG.random((4, *values.shape)).astype(np.float32)
    if format == "mat":
        savemat(folder / "cube.mat", {"cube": cube})
        savemat(folder / "truth.mat", {"truth": values})
        return str(folder / "cube.mat"), str(folder / "truth.mat")
    np.save(folder / "cube.npy", cube)
    if format == "npy":
        np.save(folder / "truth.npy", values)
        return str(folder / "cube.npy"), str(folder / "truth.npy")
    driver, name = {"envi": ("ENVI", "truth.img"), "tif": ("GTiff", "truth.tif"), "plain envi": ("ENVI", "truth.img")}[format]
    height, width = values.shape
    with rasterio.open(folder / name, "w", driver=driver, count=1, height=height, width=width, dtype=values.dtype.name) as file:
        file.write(values[None])
    if format == "envi":
        header = (folder / "truth.hdr").read_text()
        assert "file type = ENVI Standard" in header
        (folder / "truth.hdr").write_text(header.replace("ENVI Standard", "ENVI Classification"))
    return str(folder / "cube.npy"), str(folder / name)


def opened(folder: Path, format: str, values: np.ndarray, ignored: tuple[int, ...] | None = None) -> Collection:
    source, labels = scene(folder, format, values)
    return open_collection(source, labels=labels, ignored_labels=ignored, options=AXES)


@pytest.mark.parametrize("format", ["mat", "envi"])
def test_zero_is_no_label_where_the_format_has_it_so(tmp_path: Path, format: str) -> None:
    collection = opened(tmp_path, format, MAP)
    assert collection.class_names == ("1", "2", "3", "4")
    assert (collection.read_labels(0) == MAP.astype(int) - 1).all()
    assert any("ignored_labels = []" in notice for notice in collection.notices)
    kept = opened(tmp_path / "kept", format, MAP, ())
    assert kept.class_names == ("0", "1", "2", "3", "4")
    assert (kept.read_labels(0) == MAP).all()
    assert not any("ignored_labels" in notice for notice in kept.notices)


@pytest.mark.parametrize("format", ["npy", "tif", "plain envi"])
def test_zero_is_a_class_elsewhere_and_the_notice_names_the_setting(tmp_path: Path, format: str) -> None:
    collection = opened(tmp_path, format, MAP)
    assert collection.class_names == ("0", "1", "2", "3", "4")
    assert any("ignored_labels = [0]" in notice for notice in collection.notices)
    told = opened(tmp_path / "told", format, MAP, (0, 3))
    assert told.class_names == ("1", "2", "4")
    assert (told.read_labels(0) == np.array([-1, 0, 1, -1, 2])[MAP]).all()
    assert not any("ignored_labels" in notice for notice in told.notices)


@pytest.mark.parametrize("format", ["mat", "envi", "tif"])
def test_both_values_of_a_mask_are_classes(tmp_path: Path, format: str) -> None:
    collection = opened(tmp_path, format, MAP % 2)
    assert collection.class_names == ("0", "1")
    # Where such files mostly have it otherwise, that is told.
    told = [notice for notice in collection.notices if "ignored_labels" in notice]
    expected = "labels: 0 and 1 are two classes (set data.ignored_labels = [0] if 0 means 'no label')"
    assert told == ([expected] if format in ("mat", "envi") else [])


def test_abundances_in_a_matlab_file_have_a_class_0(tmp_path: Path) -> None:
    abundances = RNG.random((24, 31, 4))
    savemat(tmp_path / "scene.mat", {"cube": RNG.random((4, 24, 31)), "share": abundances})
    collection = open_collection(str(tmp_path / "scene.mat"), labels=":share", options=ReadOptions(key="cube", axes="CHW"))
    assert (collection.read_labels(0) == abundances.argmax(axis=2)).all()


def test_labels_of_images_are_left_out_too(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", RNG.random((9, 3, 8, 8)))
    np.save(tmp_path / "labels.npy", np.arange(9) % 3)
    options = ReadOptions(axes="NCHW")
    source, labels = str(tmp_path / "images.npy"), str(tmp_path / "labels.npy")
    assert open_collection(source, labels=labels, options=options).class_names == ("0", "1", "2")
    collection = open_collection(source, labels=labels, ignored_labels=(1,), options=options)
    assert collection.class_names == ("0", "2")
    assert collection.labels is not None
    assert collection.labels.tolist() == [0, -1, 1] * 3
    np.savez(tmp_path / "both.npz", images=np.load(tmp_path / "images.npy"), labels=np.arange(9) % 3)
    inside = open_collection(str(tmp_path / "both.npz"), ignored_labels=(1,), options=ReadOptions(key="images", axes="NCHW"))
    assert inside.labels is not None
    assert inside.labels.tolist() == [0, -1, 1] * 3


@pytest.mark.parametrize("values", [MAP, np.arange(9) % 3])
def test_to_leave_out_every_label_is_an_error(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", RNG.random((4, *MAP.shape)) if values is MAP else RNG.random((9, 3, 8, 8)))
    np.save(tmp_path / "y.npy", values)
    options = ReadOptions(axes="CHW" if values is MAP else "NCHW")
    with pytest.raises(DataError, match=r"no (pixel|image) has a label.*ignored_labels"):
        open_collection(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"), ignored_labels=tuple(range(5)), options=options)


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("{Unclassified, Healthy grass, Road, Water, Tree}", ("Healthy grass", "Road", "Water", "Tree")),
        ("{Unclassified, Grass, Road}", ("1", "2", "3", "4")),
        ("{Unclassified, Road, Road, Water, Tree}", ("1", "2", "3", "4")),
    ],
    ids=["all", "too few", "one twice"],
)
def test_classes_are_called_as_an_envi_header_calls_them(tmp_path: Path, named: str, found: tuple[str, ...]) -> None:
    source, labels = scene(tmp_path, "envi", MAP)
    header = tmp_path / "truth.hdr"
    header.write_text(f"{header.read_text()}\nclass names = {named}\n")
    collection = open_collection(source, labels=labels, options=AXES)
    assert collection.class_names == found
    assert (collection.read_labels(0) == MAP.astype(int) - 1).all()
