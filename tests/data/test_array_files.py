"""HDF5, MATLAB, NumPy and Zarr files that are easily read wrong, written by another library."""

from __future__ import annotations

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from auxmae.data.image import ReadOptions, Window
from auxmae.data.opening import open_collection
from auxmae.data.readers import hdf5, list_arrays, open_image, read_array
from auxmae.data.readers.axes import guess_axes
from auxmae.data.readers.cache import DecodedCache
from auxmae.errors import DataError
from tests.data.reader_fixtures import CUBE, RNG, assert_reads, write_v73


def test_matlab_versions_read_equal(tmp_path: Path) -> None:
    last = np.moveaxis(CUBE, 0, 2)
    flat = CUBE.transpose(0, 2, 1).reshape(4, -1)
    scipy.io.savemat(tmp_path / "v5.mat", {"Y": last, "flat": flat})
    write_v73(tmp_path / "v73.mat", Y=last, flat=flat)
    assert list_arrays(tmp_path / "v73.mat") == list_arrays(tmp_path / "v5.mat")
    for name in ("v5.mat", "v73.mat"):
        assert_reads(tmp_path / name, CUBE, ReadOptions(key="Y"))
        assert_reads(tmp_path / name, CUBE, ReadOptions(key="Y", axes="HWC"))
        assert_reads(tmp_path / name, CUBE, ReadOptions(key="flat", axes="C(WH)", size=(17, 23)))
        assert np.array_equal(read_array(tmp_path / name, "flat"), flat)


def test_matlab_text_and_empty_variables_are_no_images(tmp_path: Path) -> None:
    path = write_v73(tmp_path / "a.mat", Y=np.moveaxis(CUBE, 0, 2))
    with h5py.File(path, "r+") as file:
        for name, kind in (("note", "char"), ("none", "double")):
            file[name] = np.ones((300, 400), np.uint16)
            file[name].attrs["MATLAB_class"] = np.bytes_(kind)
        file["none"].attrs["MATLAB_empty"] = np.uint8(1)
    assert_reads(path, CUBE)


def test_arrays_in_matlab_structs(tmp_path: Path) -> None:
    path, many = tmp_path / "a.mat", np.zeros((1, 3), dtype=[("x", object)])
    scipy.io.savemat(path, {"data": {"images": np.moveaxis(CUBE, 0, 2), "more": {"map": np.ones((5, 6))}}, "many": many})
    assert_reads(path, CUBE)
    assert_reads(path, CUBE, ReadOptions(key="data/images"))
    assert np.array_equal(read_array(path, "data/more/map"), np.ones((5, 6)))
    scipy.io.savemat(path, {"many": many})
    with pytest.raises(DataError, match=r"no array that can be an image; it holds many 1 × 3"):
        open_image(path)


@pytest.mark.parametrize(
    ("shape", "channels", "axes"),
    [
        ((13, 64, 64), None, "CHW"),
        ((64, 64, 13), None, "HWC"),
        ((100, 13, 64, 64), None, "NCHW"),
        ((100, 64, 64, 13), None, "NHWC"),
        ((13, 16, 16), None, "CHW"),
        ((90, 90, 64), None, "HWC"),
        ((5, 20, 30), None, "CHW"),
        ((12, 50, 20), None, None),
        ((12, 50, 20), 20, "HWC"),
        ((12, 50, 20), 50, "HCW"),
        ((12, 50, 20), 7, None),
        ((20, 50, 20), 20, None),
        ((64, 13, 64), None, None),
        ((32, 32, 3, 100), None, None),
        ((32, 32, 3, 100), 3, None),
        ((10, 28, 28, 20), 20, "NHWC"),
        ((10, 28, 30, 20), 20, None),
        ((9, 200, 32, 32), 200, "NCHW"),
    ],
)
def test_axes_are_guessed_only_where_clear(shape: tuple[int, ...], channels: int | None, axes: str | None) -> None:
    assert guess_axes(shape, channels) == axes


def test_ambiguous_axes_are_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((12, 50, 20)))
    with pytest.raises(DataError) as caught:
        open_image(tmp_path / "a.npy")
    assert caught.value.hint == 'set data.axes = "CHW" (12 channels of 50 × 20 px) or "HWC" (20 channels of 12 × 50 px)'
    assert open_image(tmp_path / "a.npy", ReadOptions(channels=20)).height == 12
    for shape, orders in (
        ((64, 13, 64), ("HCW", "CHW")),
        ((32, 32, 3, 100), ("HWCN", "NCHW")),
        ((500, 28, 29), ("HWC", "CHW", "NHW")),
        ((28, 28, 50), ("HWC", "CHW", "HWN")),
    ):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
        with pytest.raises(DataError) as caught:
            open_image(tmp_path / "a.npy")
        assert [word for word in (caught.value.hint or "").split('"') if word.isupper()] == list(orders)


def odd_npz(path: Path) -> None:
    np.savez_compressed(path, scene=CUBE, meta=np.array({"a": 1}, dtype=object), text="words", one=3.0, many=np.zeros((2,) * 6))


def odd_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["scene"], file["text"], file["one"], file["many"] = CUBE, "words", 3.0, np.zeros((2,) * 6)
        file["pairs"] = np.zeros((30, 40), dtype=[("a", "f4"), ("b", "f4")])
        file["nothing"] = h5py.Empty("f4")


def odd_mat(path: Path) -> None:
    cells = np.array([[1, "two"]], dtype=object)
    scipy.io.savemat(path, {"scene": np.moveaxis(CUBE, 0, 2), "cells": cells, "text": "words", "one": 3.0, "rec": {"a": 1}})


@pytest.mark.parametrize(("name", "write"), [("a.npz", odd_npz), ("a.h5", odd_h5), ("a.mat", odd_mat)])
def test_odd_members_do_not_hide_the_image(tmp_path: Path, name: str, write: object) -> None:
    write(tmp_path / name)  # type: ignore[operator]
    assert_reads(tmp_path / name, CUBE)


def test_candidates_are_named_and_others_are_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=CUBE, two=CUBE, odd=np.array([None]), text="words", number=3)
    with pytest.raises(DataError, match=r"holds one 4 × 17 × 23, two 4 × 17 × 23 \(set data.key = \"one\"\)"):
        open_image(tmp_path / "a.npz")


def test_one_question_names_every_setting(tmp_path: Path) -> None:
    scipy.io.savemat(
        tmp_path / "a.mat", {"Y": np.zeros((9, 300)), "map": np.zeros((15, 20, 4)), "A": np.zeros((4, 300)), "lines": 15}
    )
    with pytest.raises(DataError) as caught:
        open_image(tmp_path / "a.mat")
    assert "Y 9 × 300" in caught.value.message
    assert "lines" not in caught.value.message
    assert caught.value.hint is not None
    assert 'data.key = "Y", data.axes = "C(WH)"' in caught.value.hint
    assert "data.size = [15, 20]" in caught.value.hint
    file = open_image(tmp_path / "a.mat", ReadOptions(key="Y", axes="C(WH)", size=(15, 20)))
    assert (file.channels, file.height, file.width) == (9, 15, 20)
    with pytest.raises(DataError, match=r"data\.key = \"Y\" and data\.size = \[15, 20\]"):
        open_image(tmp_path / "a.mat", ReadOptions(axes="C(WH)"))


def test_pixels_by_bands(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", CUBE.reshape(4, -1).T)
    with pytest.raises(DataError, match=r"\"\(HW\)C\""):
        open_image(tmp_path / "a.npy")
    assert_reads(tmp_path / "a.npy", CUBE, ReadOptions(axes="(HW)C", size=(17, 23)))


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<i8", "u8", "f2", "?"])
def test_types_and_orders_of_npy(tmp_path: Path, dtype: str) -> None:
    stored = (CUBE % 2000).astype(dtype)
    np.save(tmp_path / "c.npy", stored)
    np.save(tmp_path / "f.npy", np.asfortranarray(stored[:, ::-1])[:, ::-1])
    for name in ("c.npy", "f.npy"):
        assert_reads(tmp_path / name, stored)


def test_zipped_and_grouped_zarr(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    group.create_array("deep/scene", data=CUBE)
    group.create_array("text", data=np.array(["a", "b"]))
    assert_reads(tmp_path / "a.zarr", CUBE)
    with zipfile.ZipFile(tmp_path / "b.zarr.zip", "w") as archive:
        for entry in sorted((tmp_path / "a.zarr").rglob("*")):
            if entry.is_file():
                archive.write(entry, entry.relative_to(tmp_path / "a.zarr"))
    assert_reads(tmp_path / "b.zarr.zip", CUBE)


def test_axes_of_length_one_need_no_letter(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.moveaxis(CUBE, 0, 2)[None])
    for axes in ("HWC", "NHWC"):
        assert_reads(tmp_path / "a.npy", CUBE, ReadOptions(axes=axes))


def test_more_than_four_axes_of_which_some_are_of_length_one(tmp_path: Path) -> None:
    write = {"a.npy": lambda path, array: np.save(path, array), "a.h5": write_h5}
    for name, stored in ((name, CUBE[None, :, None]) for name in write):
        write[name](tmp_path / name, stored)
        assert_reads(tmp_path / name, CUBE)
        assert any("1 × 4 × 1 × 17 × 23 is read as CHW; set data.axes" in text for text in open_image(tmp_path / name).notices)
        assert_reads(tmp_path / name, CUBE, ReadOptions(axes="CHW"))
        write[name](tmp_path / name, np.zeros((1, 12, 1, 20, 30)))
        with pytest.raises(DataError, match=r'of 1 × 12 × 1 × 20 × 30 holds .*set data\.axes = "CHW" \(12 channels of 20 × 30'):
            open_image(tmp_path / name)
        write[name](tmp_path / name, np.zeros((1, 1, 1, 20, 30)))
        with pytest.raises(DataError, match=r'data\.axes = "HW" for one channel'):
            open_image(tmp_path / name)
        with pytest.raises(DataError, match=r"data\.axes = 'NCHW' fits none of its arrays.*each that is longer than one"):
            open_image(tmp_path / name, ReadOptions(axes="NCHW"))
        write[name](tmp_path / name, np.zeros((2, 2, 2, 20, 30)))
        for key in (None, "array" if name == "a.npy" else "x"):
            with pytest.raises(DataError, match="2 to 4 axes longer than one") as caught:
                open_image(tmp_path / name, ReadOptions(key=key))
            assert "data.key" not in str(caught.value)


def write_h5(path: Path, array: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = array


def test_links_of_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["d"] = CUBE
        file["deep/d"] = CUBE[:1]
        file["back"] = h5py.ExternalLink("a.h5", "/")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["scan/data"] = CUBE + 1
        file["entry/data"] = h5py.SoftLink("/scan/data")
        file["again"] = h5py.SoftLink("/")
        file["broken"] = h5py.SoftLink("/nothing")
        file["gone"] = h5py.ExternalLink("gone.h5", "/d")
        file["itself"], file["to"], file["fro"] = (h5py.SoftLink(target) for target in ("/itself", "/fro", "/to"))
    # The same by two names is one.
    assert list(list_arrays(tmp_path / "a.h5")) == ["scan/data"]
    for key in (None, "scan/data", "entry/data", "/entry/data", "again/entry/data"):
        assert_reads(tmp_path / "a.h5", CUBE + 1, ReadOptions(key=key))
    assert np.array_equal(read_array(tmp_path / "a.h5", "entry/data"), CUBE + 1)
    with pytest.raises(DataError, match="no array 'broken'; it holds scan/data 4"):
        open_image(tmp_path / "a.h5", ReadOptions(key="broken"))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["entry/raw"] = h5py.ExternalLink("raw.h5", "/d")
        file["entry/all"] = h5py.ExternalLink("raw.h5", "/")
    assert set(list_arrays(tmp_path / "a.h5")) == {"scan/data", "entry/all/d", "entry/all/deep/d"}
    with pytest.raises(DataError, match="which array is the image"):
        open_image(tmp_path / "a.h5")
    assert open_image(tmp_path / "a.h5", ReadOptions(key="scan/data")).paths == (tmp_path / "a.h5", tmp_path / "raw.h5")
    assert_reads(tmp_path / "a.h5", CUBE, ReadOptions(key="entry/raw"))
    assert_reads(tmp_path / "a.h5", CUBE, ReadOptions(key="entry/all/d"))


def test_many_data_sets_are_not_held_open(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(300):
            file[f"{number}/x"] = np.zeros((2, 3))
        file["again"] = h5py.SoftLink("/0")
    held = []
    with h5py.File(tmp_path / "a.h5", "r") as file:
        hdf5._visit_once(file, (), lambda name, node: held.append(h5py.h5f.get_obj_count(file.id, h5py.h5f.OBJ_ALL)))
    assert max(held) < 20


def test_what_lies_beside_an_array_is_found_by_either_form_of_its_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["e/x"], file["e/labels"], file["o/labels"] = RNG.random((5, 4, 20, 20)), np.arange(5), np.arange(5)
        file["o/q"] = np.zeros(3)
    for key in ("e/x", "/e/x"):
        assert open_image(tmp_path / "a.h5", ReadOptions(key=key)).labels[0] == "e/labels"


def test_coordinates_and_flags_are_not_what_a_question_recommends(tmp_path: Path) -> None:
    places, stored = RNG.random((2, 40, 50)), RNG.random((2, 37, 40, 50)).astype(np.float32)
    for name, arrays, key in (
        ("swath", {"latitude": places[0], "longitude": places[1], "qc": np.ones((40, 50), np.int8), "sst": places[1]}, "sst"),
        ("cubes", {"qc": np.ones(stored[0].shape, np.int8), "sst": stored[0]}, "sst"),
        ("x", {"x": stored, "y": RNG.random((2, 37, 20, 25))}, "x"),
        ("places", {"lat": places[0], "lon": places[1]}, "lat"),
        ("canopy", {"height": places[0], "mask": np.ones((40, 50), np.uint8)}, "height"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(DataError, match=rf'set data\.key = "{key}"'):
            open_image(tmp_path / f"{name}.npz")


def test_decoded_arrays_are_kept_up_to_a_size() -> None:
    cache, decoded = DecodedCache(budget=250), []

    def get(key: str, size: int) -> None:
        cache.get(key, lambda: decoded.append(key) or {"x": np.zeros(size, np.uint8)})

    for key, size in (("a", 100), ("b", 100), ("a", 100), ("c", 100), ("a", 100), ("b", 100)):
        get(key, size)
    assert decoded == ["a", "b", "c", "b"]
    assert cache.bytes == 200
    get("large", 1000)
    get("large", 1000)
    assert decoded[4:] == ["large"]
    assert cache.bytes == 1000


@pytest.mark.parametrize("name", ["a.npz", "a.mat"])
def test_compressed_arrays_are_decoded_once(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for module, function in ((np, "load"), (scipy.io, "loadmat")):
        original = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *a, original=original, **k: calls.append(1) or original(*a, **k))

    def write(cube: np.ndarray) -> None:
        if name == "a.npz":
            np.savez_compressed(tmp_path / name, x=cube)
        else:
            scipy.io.savemat(tmp_path / name, {"x": np.moveaxis(cube, 0, 2)}, do_compression=True)

    write(CUBE)
    file = open_image(tmp_path / name)
    for top in range(8):
        assert np.array_equal(file.read(0, Window(top, 0, 2, 2)).pixels, CUBE[:, top : top + 2, :2])
    assert len(calls) == 1
    write(CUBE[::-1])
    assert np.array_equal(file.read(0, None).pixels, CUBE[::-1])


@pytest.mark.parametrize(
    ("shape", "plane", "axes"),
    [
        ((45, 45, 60), (45, 45), "HWC"),
        ((60, 45, 45), (45, 45), "CHW"),
        ((61, 34, 20), (61, 34), "HWC"),
        ((34, 61, 50), (34, 50), "HCW"),
        ((15, 100, 64), (15, 100), "HWC"),
        ((60, 70, 70), (60, 70), "HWC"),
    ],
)
@pytest.mark.parametrize("where", ["beside", "within"])
def test_the_label_map_tells_the_channels(tmp_path, shape, plane, axes, where):
    """As the public hyperspectral scenes have them: a cube of more bands than rows, and its ground truth."""
    cube, truth = RNG.integers(1, 9000, shape).astype(np.uint16), RNG.integers(0, 5, plane).astype(np.uint8)
    path = tmp_path / "scene.mat"
    if where == "beside":
        scipy.io.savemat(path, {"cube": cube})
        scipy.io.savemat(tmp_path / "truth.mat", {"gt": truth})
        if guess_axes(shape) is None:
            with pytest.raises(DataError, match="which axis of"):
                open_collection(str(path))
        collection = open_collection(str(path), labels=str(tmp_path / "truth.mat"))
    else:
        scipy.io.savemat(path, {"cube": cube, "gt": truth})
        collection = open_collection(str(path), labels=":gt")
    assert np.array_equal(collection.read(0).pixels, np.moveaxis(cube, axes.index("C"), 0))
    assert any(f"is read as {axes}" in notice for notice in collection.notices)
    assert np.array_equal(collection.read_labels(0) + 1, truth)


def test_labels_that_are_missing_or_of_another_size_are_named_where_the_axes_are_asked_for(tmp_path):
    scipy.io.savemat(tmp_path / "scene.mat", {"cube": np.ones((45, 45, 60), np.uint16)})
    scipy.io.savemat(tmp_path / "truth.mat", {"gt": RNG.integers(0, 5, (44, 45))})
    with pytest.raises(DataError, match=r"its labels are 44 × 45 px: none leaves such an image"):
        open_collection(str(tmp_path / "scene.mat"), labels=str(tmp_path / "truth.mat"))
    for name in ("thruth.mat", "thruth.mat:gt"):
        with pytest.raises(DataError, match=r"thruth.mat: no such label file"):
            open_collection(str(tmp_path / "scene.mat"), labels=str(tmp_path / name))


def test_a_label_map_that_fits_two_ways_tells_nothing(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((30, 30, 30), np.float32))
    np.save(tmp_path / "y.npy", RNG.integers(0, 5, (30, 30)))
    with pytest.raises(DataError, match="which axis of 30 × 30 × 30"):
        open_collection(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 32, 32), np.complex64), r"of complex64 \(.*abs\(\).*real and imaginary"),
        (np.zeros((4, 32, 32), "datetime64[s]"), r"of datetime64\[s\] \(store real numbers"),
        (np.full((4, 32, 32), "word"), r"of <U4 \(store real numbers"),
        (np.zeros((4, 32, 32), [("a", "f4")]), r"of (void|\|V4).* \(store real numbers"),
        (np.zeros((0, 3, 32, 32)), r"an axis is 0 \(0 × 3 × 32 × 32\)"),
        (np.zeros((0, 32)), r"an axis of its array is 0 \(0 × 32\)"),
    ],
)
def test_an_array_that_is_no_image_says_its_type_or_its_empty_axis(tmp_path, array, said):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=said) as caught:
        open_collection(str(tmp_path / "a.npy"))
    assert "data.exclude" not in str(caught.value)
