"""Which files of a source are taken for images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from auxmae.data.opening import open_collection
from auxmae.data.splits import split_collection
from auxmae.errors import DataError
from tests.data.reader_fixtures import write_raster
from tests.data.small_files import cubes, pixels, write


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_collection(str(tmp_path / "missing"))
    with pytest.raises(DataError, match=r"empty.*\.tif"):
        open_collection(str(tmp_path))
    (tmp_path / "notes.docx").write_text("no image")
    for exclude in ((), ("*.png",)):
        with pytest.raises(DataError, match=r"no supported file.*\.tif"):
            open_collection(str(tmp_path), exclude=exclude)
    with pytest.raises(DataError, match="matches"):
        open_collection(str(tmp_path / "*.tif"))


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("s3://bucket/tiles", "no such file or folder"),
        ("s3://bucket/tiles/*.tif", "no file matches this pattern"),
        ("file:///data/tiles", "no such file or folder"),
        ("https://example.org/a.tif", "no such file or folder"),
        ("https://example.org/a.tif?token=x", "no file matches this pattern"),
        ("/vsis3/bucket/a.tif", "no such file or folder"),
    ],
)
def test_an_address_is_told_from_a_path(address: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        open_collection(address)
    assert str(raised.value).startswith(f"{address}: {what} (addresses are not read: copy or mount the files")
    np.save(tmp_path / "x.npy", np.zeros((4, 16, 16), np.float32))
    with pytest.raises(DataError) as raised:
        open_collection(str(tmp_path), labels=address)
    assert str(raised.value).startswith(f"{address}: no such label file (addresses are not read: copy or mount the files")


def test_the_folder_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        np.save(f"{index}.npy", np.zeros((5, 16, 16), np.float32))
    Path("scene").mkdir()
    np.save("scene/3.npy", np.zeros((5, 16, 16), np.float32))
    Path("scene.hdr").write_text("ENVI")
    collection = open_collection(".", exclude=("*.hdr",))
    assert collection.relative_paths == ("0.npy", "1.npy", "2.npy", "scene/3.npy")
    assert open_collection("scene").relative_paths == ("3.npy",)
    assert [notice for notice in collection.notices if "is read as" in notice] == [
        "0.npy: its array of 5 × 16 × 16 is read as CHW; set data.axes if that is wrong (4 files)"
    ]


@pytest.mark.parametrize("source", [".", "**/*.png"])
def test_the_figures_of_runs_are_no_images(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "runs/first/figures", "runs/second/figures"):
        Path(folder).mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(f"{folder}/picture.png")
    for run in ("first", "second"):
        Path(f"runs/{run}/checkpoints").mkdir()
        Path(f"runs/{run}/settings.toml").touch()
    collection = open_collection(source)
    assert collection.relative_paths == ("mine/picture.png",)
    assert f"{source}: run folders of AuxMAE in it are left out: 2" in collection.notices
    # Who names one means it.
    assert len(open_collection("runs/first/figures").files) == len(open_collection("runs/first").files) == 1
    shutil.rmtree("mine")
    with pytest.raises(DataError, match="no supported file outside of run folders"):
        open_collection(source)


def test_linked_folders_and_links_to_nothing(tmp_path):
    elsewhere = cubes(tmp_path / "elsewhere", "b1", "b2")
    data = cubes(tmp_path / "data" / "A", "a1", "a2").parent
    (data / "B").symlink_to(elsewhere)
    (data / "A" / "up").symlink_to(data)
    (data / "gone.npy").symlink_to(tmp_path / "nowhere.npy")
    collection = open_collection(str(data))
    assert collection.relative_paths == ("A/a1.npy", "A/a2.npy", "B/b1.npy", "B/b2.npy")
    assert collection.class_names == ("A", "B")
    assert f"left out: {data / 'gone.npy'} is a link to nothing" in collection.notices


def test_what_lies_beside_an_envi_header_is_a_file_of_its_own(tmp_path):
    array = pixels(5, 16, 16)
    for name, data in (("a.hdr", "a.raw"), ("b.img.hdr", "b.img")):
        (tmp_path / name).write_text(
            "ENVI\nsamples = 16\nlines = 16\nbands = 5\ndata type = 12\ninterleave = bsq\nbyte order = 0\nheader offset = 0\n"
        )
        array.tofile(tmp_path / data)
    write(tmp_path / "a.tif", array)
    collection = open_collection(str(tmp_path))
    assert collection.relative_paths == ("a.raw", "a.tif", "b.img")
    for item in range(3):
        assert np.array_equal(collection.read(item).pixels, array)


@pytest.mark.parametrize("pattern", ["bad.img", "bad*.hdr"])
@pytest.mark.parametrize("header", ["bad.hdr", "bad.img.hdr"])
@pytest.mark.parametrize("source", ["", "*.img", "*.hdr"])
def test_an_envi_image_is_left_out_by_either_of_its_names(tmp_path, pattern, header, source):
    for name in ("bad", "good"):
        write_raster(tmp_path / f"{name}.img", pixels(5), "ENVI")
    (tmp_path / "bad.hdr").rename(tmp_path / header)
    collection = open_collection(str(tmp_path / source), exclude=(pattern,))
    assert collection.relative_paths == ("good.img",)
    assert not any("no file is called like" in notice for notice in collection.notices)


@pytest.mark.parametrize("labels", ["", "scene_mask.hdr", "scene_mask.img"])
def test_masks_beside_envi_scenes(tmp_path, labels):
    array, classes = pixels(5), np.arange(256, dtype=np.uint8).reshape(1, 16, 16) % 3
    write_raster(tmp_path / "scene.img", array, "ENVI")
    write_raster(tmp_path / "scene_mask.img", classes, "ENVI")
    collection = open_collection(str(tmp_path), labels=str(tmp_path / labels))
    assert collection.relative_paths == ("scene.img",)
    assert np.array_equal(collection.read_labels(0), classes[0])


@pytest.mark.skipif(os.name != "posix", reason="file names are text elsewhere")
def test_file_names_that_are_no_text(tmp_path):
    data = cubes(tmp_path / "data", "a", "b", "c")
    os.rename(os.fsencode(data / "a.npy"), os.fsencode(data) + b"/im_\xe9.npy")
    collection = open_collection(str(data))
    assert collection.relative_paths == ("b.npy", "c.npy", "im_\\xe9.npy")
    assert len(split_collection(collection, image_size=16).digest) == 16


def test_a_folder_that_cannot_be_looked_into(tmp_path, monkeypatch):
    """As lost+found; the tests may run as root, whom no permission stops."""
    data = cubes(tmp_path / "data", "a", "b")
    (data / "lost+found").mkdir()
    scan = os.scandir

    def refuse(path):
        if Path(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = data / "lost+found"
    collection = open_collection(str(data))
    assert len(collection) == 2
    assert f"left out: {refused} cannot be looked into: Permission denied" in collection.notices
    refused = data
    with pytest.raises(PermissionError):
        open_collection(str(data))


def test_patterns_that_leave_nothing_out_and_shapes_are_told(tmp_path):
    write(tmp_path / "a.tif", pixels(3, 48, 48))
    collection = open_collection(str(tmp_path), exclude=("*_qa.tif", "*.TIF"))
    assert "data.exclude: no file is called like *_qa.tif, *.TIF" in collection.notices
    with pytest.raises(DataError, match=r"every supported file is excluded.*check data\.exclude"):
        open_collection(str(tmp_path), exclude=("*.tif",))
    (tmp_path / "shapes.geojson").write_text("{}")
    with pytest.raises(DataError, match="gdal_rasterize"):
        open_collection(str(tmp_path / "a.tif"), labels=str(tmp_path / "shapes.geojson"))


def test_images_that_no_reader_is_for_are_told(tmp_path):
    folder = cubes(tmp_path, "a", "b")
    for name in ("c.BMP", "sub/d.bmp", "e.nii.gz", "f.json", "g.csv.gz", "a.npy.aux.xml", ".h.bmp"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    told = [notice for notice in open_collection(str(folder)).notices if "left out" in notice]
    assert told == ["left out: 3 files of kinds that no reader is for (.bmp, .gz), c.BMP the first"]
    told = open_collection(str(folder), exclude=["*.nii.gz", "*.bmp", "*.BMP"]).notices
    assert not any("left out" in notice or "data.exclude" in notice for notice in told)


def test_of_a_microscopes_own_format_is_said_what_to_save_it_as(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.CZI").write_bytes(b"ZISRAWFILE")
    for source in (folder, folder / "a.CZI"):
        with pytest.raises(DataError) as told:
            open_collection(str(source))
        assert "save .czi as OME-TIFF first" in str(told.value.hint)
