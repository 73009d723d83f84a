"""Plates of OME-Zarr: their fields are images, named by their wells."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from auxmae.data.opening import open_collection
from auxmae.errors import DataError

RNG = np.random.default_rng(4)
WELLS = ("A/1", "A/2", "B/1")


def store_plate(path: Path, version: int) -> dict[str, np.ndarray]:
    """Three wells of two fields, two levels each → field → pixels of the full resolution."""
    zarr = pytest.importorskip("zarr")
    zarr.open_group(str(path), mode="w", zarr_format=version)

    def describe(place: str, **attributes: object) -> None:
        group = zarr.open_group(str(path / place), mode="a", zarr_format=version)
        group.attrs.update(attributes if version == 2 else {"ome": {"version": "0.5", **attributes}})

    describe("", plate={"wells": [{"path": well} for well in WELLS]})
    pixels = {}
    for well in WELLS:
        describe(well, well={"images": [{"path": "0"}, {"path": "1"}]})
        for field in (f"{well}/0", f"{well}/1"):
            levels = [{"path": "full"}, {"path": "half"}]
            describe(field, multiscales=[{"axes": [{"name": axis} for axis in "cyx"], "datasets": levels}])
            pixels[field] = RNG.integers(1, 5000, (2, 24, 20)).astype(np.uint16)
            group = zarr.open_group(str(path / field), mode="a")
            group.create_array("full", data=pixels[field])
            group.create_array("half", data=pixels[field][:, ::2, ::2])
    return pixels


@pytest.mark.parametrize("version", [2, 3])
def test_the_fields_of_plates_wells_and_patterns(tmp_path, version):
    pixels = store_plate(tmp_path / "p.zarr", version)
    for source, some in (
        ("p.zarr", [*pixels]),
        ("", [*pixels]),
        ("*.zarr", [*pixels]),
        ("p.zarr/**", [*pixels]),
        ("p.zarr/A/2", ["A/2/0", "A/2/1"]),
        ("p.zarr/B/1/1", ["B/1/1"]),
        ("p.zarr/A/*/1", ["A/1/1", "A/2/1"]),
    ):
        collection = open_collection(str(tmp_path / source), layout="images")
        assert collection.relative_paths == tuple(f"p.zarr/{field}" for field in some)
        assert all(np.array_equal(collection.read(item).pixels, pixels[field]) for item, field in enumerate(some))
        assert collection.labels is None
    notices = open_collection(str(tmp_path)).notices
    assert any("each of the 6 fields of 3 wells is an image" in notice for notice in notices)


def test_a_table_names_wells_and_not_fields_by_its_numbers(tmp_path):
    store_plate(tmp_path / "p.zarr", 2)
    (tmp_path / "wells.csv").write_text("dose,well,label\n0,A/1,ctrl\n1,A/2,drug\n1,B/1,drug\n")
    collection = open_collection(
        str(tmp_path / "p.zarr"),
        labels=str(tmp_path / "wells.csv"),
        layout="images",
        group_pattern=r"([^/]+/[^/]+)/[^/]+$",
    )
    assert collection.labels.tolist() == [0, 0, 1, 1, 1, 1]


def test_a_field_that_is_not_there(tmp_path):
    store_plate(tmp_path / "p.zarr", 3)
    shutil.rmtree(tmp_path / "p.zarr" / "A" / "2" / "1")
    with pytest.raises(DataError, match=r"A/2/1: there is no such file") as told:
        open_collection(str(tmp_path / "p.zarr"))
    pattern = re.search(r"data\.exclude = \['(.+)'\]", told.value.hint)[1]
    assert len(open_collection(str(tmp_path / "p.zarr"), layout="images", exclude=(pattern,))) == 5
    assert len(open_collection(str(tmp_path / "p.zarr"), layout="images", allow_broken=True)) == 5


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("source", ["A", "B", "?"])
def test_a_row_says_what_to_name(tmp_path, version, source):
    store_plate(tmp_path / "p.zarr", version)
    if source == "?":  # with metadata of its own, as most have
        pytest.importorskip("zarr").open_group(str(tmp_path / "p.zarr" / "A"), mode="a", zarr_format=version)
    with pytest.raises(DataError, match=r"p\.zarr/[AB]: is a row of a plate") as told:
        open_collection(str(tmp_path / "p.zarr" / source))
    for place in re.search(r"the plate, (.*), or the row's wells, (.*)", told.value.hint).groups():
        assert len(open_collection(place, layout="images")) in (2, 4, 6)


def store_series(path: Path, version: int, count: int) -> list[np.ndarray]:
    """As bioformats2raw lays a file of several images out: the series by their numbers, and their description beside them."""
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(path), mode="w", zarr_format=version)

    def describe(group, **attributes: object) -> None:
        group.attrs.update(attributes if version == 2 else {"ome": {"version": "0.5", **attributes}})

    describe(root, **{"bioformats2raw.layout": 3})
    describe(root.create_group("OME"), series=[str(number) for number in range(count)])
    (path / "OME" / "METADATA.ome.xml").write_text("<OME/>")
    images = [RNG.integers(1, 5000, (2, 24, 20)).astype(np.uint16) for _ in range(count)]
    for number, image in enumerate(images):
        group = root.create_group(str(number))
        for level, pixels in enumerate((image, image[:, ::2, ::2])):
            group.create_array(str(level), data=pixels[None, :, None])
        levels = [{"path": "0"}, {"path": "1"}]
        describe(group, multiscales=[{"axes": [{"name": axis} for axis in "tczyx"], "datasets": levels}])
    return images


def test_a_store_that_is_itself_an_image_has_levels_and_no_series(tmp_path):
    """What bioformats2raw writes with --scale-format-string '%2$d/'."""
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    image = RNG.integers(1, 5000, (2, 64, 60)).astype(np.uint16)
    for level, pixels in enumerate((image, image[:, ::2, ::2])):
        root.create_array(str(level), data=pixels[None, :, None])
    levels = [{"axes": [{"name": axis} for axis in "tczyx"], "datasets": [{"path": "0"}, {"path": "1"}]}]
    root.attrs.update({"bioformats2raw.layout": 3, "multiscales": levels})
    collection = open_collection(str(tmp_path / "a.zarr"), layout="images")
    assert len(collection) == 1
    assert np.array_equal(collection.read(0).pixels, image)


def test_series_are_those_that_are_named_beside_them(tmp_path):
    (image,) = store_series(tmp_path / "a.zarr", 2, 1)
    (tmp_path / "a.zarr" / "0").rename(tmp_path / "a.zarr" / "scan")
    (tmp_path / "a.zarr" / "OME" / ".zattrs").write_text('{"series": ["scan"]}')
    collection = open_collection(str(tmp_path / "a.zarr"), layout="images")
    assert collection.relative_paths == ("a.zarr/scan",)
    assert np.array_equal(collection.read(0).pixels, image)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("count", [1, 11])
def test_the_series_of_a_store_are_images(tmp_path, version, count):
    stores = {name: store_series(tmp_path / name, version, count) for name in ("a.zarr", "b.zarr")}
    for source, names in (("", stores), ("b.zarr", ["b.zarr"]), ("*.zarr", stores)):
        collection = open_collection(str(tmp_path / source), layout="images")
        assert collection.relative_paths == tuple(f"{name}/{number}" for name in names for number in range(count))
        images = [image for name in names for image in stores[name]]
        assert all(np.array_equal(collection.read(item).pixels, image) for item, image in enumerate(images))
        told = f"each of the {len(images)} series that bioformats2raw has numbered is an image"
        assert any(told in notice for notice in collection.notices) == (count > 1)
    collection = open_collection(str(tmp_path), layout="images", exclude=("a.zarr/0", "0"))
    assert collection.relative_paths[0] == ("b.zarr/0" if count == 1 else "a.zarr/1")
    with pytest.raises(DataError, match=r"data\.exclude"):
        open_collection(str(tmp_path), exclude=("*.zarr/*",))


@pytest.mark.parametrize("source", ["", "p.zarr", "p.zarr/*/*", "*/A/1"])
def test_fields_and_wells_are_left_out_by_their_paths(tmp_path, source):
    store_plate(tmp_path / "p.zarr", 2)
    everything = open_collection(str(tmp_path / source), layout="images").relative_paths
    for pattern, left_out in (
        ("A/1/0", {"A/1/0"}),
        ("p.zarr/A/*/0", {"A/1/0", "A/2/0"}),
        ("B/1", {"B/1/0", "B/1/1"}),
        ("B/?/*", {"B/1/0", "B/1/1"}),
        ("./", set()),
    ):
        collection = open_collection(str(tmp_path / source), layout="images", exclude=(pattern,))
        kept = tuple(path for path in everything if path.removeprefix("p.zarr/") not in left_out)
        assert collection.relative_paths == kept
        assert ("no file is called like" in " ".join(collection.notices)) == (kept == everything)
    if source in ("", "p.zarr"):
        # File name patterns do not mean the numbers that fields and wells are called by.
        assert open_collection(str(tmp_path / source), layout="images", exclude=("[0-9]*",)).relative_paths == everything
    with pytest.raises(DataError, match=r"data\.exclude"):
        open_collection(str(tmp_path / source), exclude=("p.zarr/?/*/*", "p.zarr/?/*"))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("left", "words"),
    [("nothing", "there is no such file"), ("no metadata", "is a folder, neither"), ("half of it", "cannot be read")],
)
def test_a_well_that_is_not_there(tmp_path, version, left, words):
    store_plate(tmp_path / "p.zarr", version)
    well = tmp_path / "p.zarr" / "A" / "2"
    if left == "nothing":
        shutil.rmtree(well)
    else:
        for path in [path for path in well.iterdir() if path.is_file()]:
            path.unlink() if left == "no metadata" else path.write_text("{")
    with pytest.raises(DataError, match=f"A/2: {words}"):
        open_collection(str(tmp_path / "p.zarr"))
    collection = open_collection(str(tmp_path / "p.zarr"), layout="images", allow_broken=True)
    assert collection.relative_paths == tuple(f"p.zarr/{field}" for field in ("A/1/0", "A/1/1", "B/1/0", "B/1/1"))
    assert any(f"A/2: {words}" in notice for notice in collection.notices)
    assert any("each of the 4 fields of 2 wells is an image" in notice for notice in collection.notices)
