"""How channels are called, chosen and ordered, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from auxmae.data.channels import nearest_name
from auxmae.data.opening import open_collection
from auxmae.errors import DataError, SettingsError
from tests.data.small_files import pixels, placed, write


def test_channels_select_and_reorder(tmp_path: Path) -> None:
    array = pixels()
    path = write(tmp_path / "a.tif", array, ("red", "green", "blue"))
    collection = open_collection(str(path), channels=("blue", "red"))
    assert collection.channel_names == ("blue", "red")
    assert (collection.read(0).pixels == array[[2, 0]]).all()
    with pytest.raises(SettingsError, match=r"gren.*green"):
        open_collection(str(path), channels=("gren",))


def test_names_given_to_all_channels_stand_in_place_of_the_files_own(tmp_path: Path) -> None:
    array = pixels()
    write(tmp_path / "a.tif", array, ("b1", "b2", "b3"))
    write(tmp_path / "b.tif", array + 1)
    names = ("B01", "B02", "B03")
    collection = open_collection(str(tmp_path), channel_names=names)
    assert collection.channel_names == names
    assert "a.tif calls its channels b1, b2, b3: by data.channel_names they are B01, B02, B03" in " ".join(collection.notices)
    chosen = open_collection(str(tmp_path), channel_names=names, channels=("B03", "B01"), wavelengths=(440.0, 490.0, 560.0))
    assert (chosen.channel_names, chosen.wavelengths) == (("B03", "B01"), (560.0, 440.0))
    assert (chosen.read(1).pixels == (array + 1)[[2, 0]]).all()
    with pytest.raises(SettingsError, match=r"data.channel_names has 2 names; .*a\.tif has 3 channels"):
        open_collection(str(tmp_path), channel_names=names[:2])
    for number, other in enumerate([("b3", "b2", "b1"), names[::-1]]):
        folder = tmp_path / f"orders{number}"
        write(folder / "a.tif", array, other[::-1])
        write(folder / "b.tif", array, ("r", "g", "b"))
        write(folder / "c.tif", array[::-1], other)
        with pytest.raises(DataError, match=r"names channels by order, and .*a\.tif and .*c\.tif have them in different orders"):
            open_collection(str(folder), channel_names=names)


def test_names_given_to_the_channels_of_an_array_tell_its_axes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(4 * 5 * 5).reshape(4, 5, 5))
    names = tuple("abcd")
    assert open_collection(str(tmp_path / "a.npy"), channel_names=names, channels=("b",)).channel_names == ("b",)
    synthetic = open_collection("synthetic", channel_names=tuple("abcdefghijklm"), synthetic_images=20, channels=("m",))
    assert synthetic.channel_names == ("m",)


@pytest.mark.parametrize(
    ("name", "names", "nearest"),
    [
        ("C5", [f"C{number:03}" for number in range(1, 201)], "C005"),
        ("1500", ["410.0 nm", "1501.8 nm", "1530.6 nm"], "1501.8 nm"),
        ("1500 nm", ["410.0 nm", "1501.8 nm", "1530.6 nm"], "1501.8 nm"),
        ("1500 nm", ["1500 cm", "1490 nm"], "1490 nm"),
        ("B8", ["B02", "B08", "B8A"], "B08"),
        ("gren", ["red", "green"], "green"),
        ("near infrared", ["B1", "B2"], None),
    ],
)
def test_the_nearest_name_of_numbered_channels_is_that_of_the_nearest_number(
    name: str, names: list[str], nearest: str | None
) -> None:
    assert nearest_name(name, names) == nearest


def test_files_that_name_channels_in_another_order(tmp_path: Path) -> None:
    array = pixels()
    write(tmp_path / "a.tif", array, ("red", "green", "blue"))
    write(tmp_path / "b.tif", array[::-1], ("blue", "green", "red"))
    collection = open_collection(str(tmp_path))
    assert (collection.read(0).pixels == collection.read(1).pixels).all()


@pytest.mark.parametrize("kind", ["geotiff", "ome.tif", "zarr"])
def test_channels_that_share_a_name_are_numbered(tmp_path: Path, kind: str) -> None:
    array, names = pixels(4), ("DNA", "Blank", "Blank", "Blank_1")
    for file, order in (("a", [0, 1, 2, 3]), ("b", [1, 3, 2, 0])):
        stored, named = array[order], tuple(names[place] for place in order)
        if kind == "geotiff":
            write(tmp_path / f"{file}.tif", stored, named)
        elif kind == "ome.tif":
            tifffile.imwrite(tmp_path / f"{file}.ome.tif", stored, metadata={"axes": "CYX", "Channel": {"Name": named}})
        else:
            zarr = pytest.importorskip("zarr")
            group = zarr.open_group(str(tmp_path / f"{file}.zarr"), mode="w", zarr_format=2)
            group.create_array("0", data=stored)
            group.attrs["multiscales"] = [{"axes": [{"name": axis} for axis in "cyx"], "datasets": [{"path": "0"}]}]
            group.attrs["omero"] = {"channels": [{"label": name} for name in named]}
    collection = open_collection(str(tmp_path))
    assert collection.channel_names == ("DNA", "Blank_2", "Blank_3", "Blank_1")
    assert (collection.read(0).pixels == array).all()
    assert (collection.read(1).pixels == array).all()
    assert sum("share a name" in notice and "Blank_2, Blank_3" in notice for notice in collection.notices) == 1
    chosen = open_collection(str(tmp_path), channels=("Blank_3", "DNA"))
    assert (chosen.read(1).pixels == array[[2, 0]]).all()


def test_channels_name_the_unnamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels())
    assert open_collection(str(path), channels=("x", "y", "z"), wavelengths=(1.0, 2.0, 3.0)).channel_names == ("x", "y", "z")
    with pytest.raises(SettingsError, match="2 names"):
        open_collection(str(path), channels=("x", "y"))
    with pytest.raises(SettingsError, match="wavelengths"):
        open_collection(str(path), wavelengths=(1.0,))


def test_unequal_channel_counts(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", pixels(3))
    write(tmp_path / "b.tif", pixels(4))
    with pytest.raises(DataError, match=r"a\.tif has 3 channels.*b\.tif has 4.*data\.exclude"):
        open_collection(str(tmp_path))
    assert len(open_collection(str(tmp_path), exclude=("b*",))) == 1


def test_channels_without_names_can_be_left_out(tmp_path):
    array = pixels(5)
    np.save(tmp_path / "a.npy", array)
    collection = open_collection(str(tmp_path), channels=("C4", "C1"))
    assert collection.channel_names == ("C4", "C1")
    assert np.array_equal(collection.read(0).pixels, array[[3, 0]])
    with pytest.raises(SettingsError, match=r"2 names; .* has 5 channels without names") as told:
        open_collection(str(tmp_path), channels=("C4", "C6"))
    assert "choose among C1" in told.value.hint


def test_names_that_are_given_are_told(tmp_path):
    np.save(tmp_path / "a.npy", pixels(3))
    collection = open_collection(str(tmp_path), channels=("DAPI", "CD3", "CD8"))
    assert "the files carry no channel names: DAPI, CD3, CD8 are taken to be theirs, in this order" in collection.notices


def test_channels_of_one_image_lie_at_one_place(tmp_path):
    placed(tmp_path / "x_B1.tif", pixels(1, 90, 90), 400_000)
    placed(tmp_path / "x_B2.tif", pixels(1, 45, 45), 400_000)
    with pytest.raises(DataError, match=r"x_B2\.tif lies elsewhere than x_B1\.tif of the same image: their lower right corners"):
        open_collection(str(tmp_path), channel_pattern=r"_(B\d)\.tif$")
    placed(tmp_path / "x_B2.tif", pixels(1, 90, 90), 490_000)
    with pytest.raises(DataError, match="their upper left corners"):
        open_collection(str(tmp_path), channel_pattern=r"_(B\d)\.tif$")
    placed(tmp_path / "x_B2.tif", pixels(1, 90, 90), 400_000)
    assert open_collection(str(tmp_path), channel_pattern=r"_(B\d)\.tif$").channel_names == ("B1", "B2")
