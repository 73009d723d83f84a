"""Arrays whose files name their axes: netCDF's dimensions, Zarr's, and those of OME-Zarr."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from auxmae.data.image import ReadOptions
from auxmae.data.opening import open_collection
from auxmae.data.readers import open_image
from auxmae.errors import DataError
from tests.data.reader_fixtures import CUBE, RNG, assert_reads


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr_says_what_its_axes_are(tmp_path: Path, version: int) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=version)
    stored = np.stack([CUBE, CUBE + 1])
    group.create_array("0", data=stored[:, :, None])
    group.create_array("1", data=stored[:, :, None, ::2, ::2])
    described = {
        "multiscales": [{"axes": [{"name": axis} for axis in "tczyx"], "datasets": [{"path": "0"}, {"path": "1"}]}],
        "omero": {"channels": [{"label": label} for label in "abcd"]},
    }
    group.attrs.update(described if version == 2 else {"ome": described})
    assert_reads(tmp_path / "a.zarr", stored[1], index=1)
    file = open_image(tmp_path / "a.zarr")
    assert file.channel_names == tuple("abcd")


def write_ome_zarr(path: Path, stored: np.ndarray, axes: list[dict[str, str]]) -> Path:
    group = pytest.importorskip("zarr").open_group(str(path), mode="w")
    group.create_array("0", data=stored)
    group.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    return path


def test_ome_zarr_of_channels_and_planes_is_read_as_its_error_says(tmp_path: Path) -> None:
    stored = np.stack([CUBE, CUBE + 1, CUBE + 2])
    path = write_ome_zarr(tmp_path / "a.zarr", stored.swapaxes(0, 1)[None], [{"name": axis} for axis in "tczyx"])
    with pytest.raises(DataError, match=r"TCZYX") as caught:
        open_image(path)
    assert str(caught.value.hint).startswith('set data.axes = "CNHW" ')
    assert "NCHW" not in str(caught.value.hint)
    assert_reads(path, stored[2], ReadOptions(axes="CNHW"), index=2)
    assert_reads(path, stored[:, 1], ReadOptions(axes="NCHW"), index=1)
    assert not [notice for notice in open_image(path, ReadOptions(axes="CNHW")).notices if "TCZYX" in notice]
    assert any("TCZYX" in notice and "NCHW" in notice for notice in open_image(path, ReadOptions(axes="NCHW")).notices)
    with pytest.raises(DataError, match="has 3 axes, the array 5"):
        open_image(path, ReadOptions(axes="CHW"))


def test_an_axis_of_one_channel_is_no_other_ones_channels(tmp_path: Path) -> None:
    for channels, told in ((1, False), (2, True)):
        stored = np.stack([CUBE] * channels)
        path = write_ome_zarr(tmp_path / f"{channels}.zarr", stored, [{"name": axis} for axis in "czyx"])
        notices = open_image(path, ReadOptions(axes="NCHW")).notices
        assert any("does not take C for the channels" in notice for notice in notices) == told


def test_planes_of_ome_zarr_are_channels_and_told(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "a.zarr", CUBE[None, None], [{"name": axis} for axis in "tczyx"])
    assert_reads(path, CUBE)
    told = "its 4 planes (Z) are read as channels"
    assert open_image(path).notices == (f'a.zarr: {told}; set data.axes = "NHW" if they are images',)
    assert_reads(path, CUBE[2:3], ReadOptions(axes="NHW"), index=2)
    path = write_ome_zarr(tmp_path / "b.zarr", np.stack([CUBE, CUBE])[:, None], [{"name": axis} for axis in "tczyx"])
    assert open_image(path).notices == (f"b.zarr: {told}",)


@pytest.mark.parametrize(
    "axes",
    [
        [{"name": "channel"}, {"name": "lat"}, {"name": "lon"}],
        [{"name": "marker", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}],
        [{"name": "y"}, {"name": "x"}],
    ],
)
def test_axes_of_ome_zarr_with_longer_names_or_too_few(tmp_path: Path, axes: list[dict[str, str]]) -> None:
    assert_reads(write_ome_zarr(tmp_path / "a.zarr", CUBE, axes), CUBE)


@pytest.mark.parametrize("kind", ["labels", "scales", "zarr2", "zarr3"])
def test_named_dimensions_say_what_the_axes_are(tmp_path: Path, kind: str) -> None:
    stored, names = np.ascontiguousarray(CUBE[:, :12, :14].transpose(1, 0, 2)), ["lat", "band", "lon"]
    if kind.startswith("zarr"):
        zarr = pytest.importorskip("zarr")
        path, version = tmp_path / "a.zarr", int(kind[-1])
        own = {"dimension_names": names} if version == 3 else {}
        array = zarr.create_array(str(path), shape=stored.shape, dtype="uint16", zarr_format=version, **own)
        array[...] = stored
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = names
    else:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["x"] = stored
            for axis, name in enumerate(names):
                if kind == "labels":
                    file["x"].dims[axis].label = name
                else:
                    file[name] = np.arange(stored.shape[axis], dtype=float)
                    file[name].make_scale(name)
                    file["x"].dims[axis].attach_scale(file[name])
    file = open_image(path)
    assert np.array_equal(file.read(0, None).pixels, CUBE[:, :12, :14])
    assert not file.notices


def write_named(path: Path, arrays: dict[str, tuple[np.ndarray, list[str]]]) -> Path:
    """As netCDF does: each dimension is an array of its own, where its places are, and attached to the arrays that have it."""
    with h5py.File(path, "w") as file:
        for name, (array, dimensions) in arrays.items():
            for dimension, size in zip(dimensions, array.shape, strict=True):
                if dimension not in file:
                    file[dimension] = np.arange(size, dtype=float)
                    file[dimension].make_scale(dimension)
            file[name] = array
            for axis, dimension in enumerate(dimensions):
                file[name].dims[axis].attach_scale(file[dimension])
    return path


def test_an_axis_of_images_beside_times_holds_no_channels(tmp_path: Path) -> None:
    stored = RNG.random((40, 12, 32, 32)).astype(np.float32)
    file = open_image(write_named(tmp_path / "a.nc", {"t": (stored, ["patch", "time", "y", "x"])}))
    assert (file.count, file.channels) == (40, 12)
    assert "read as NCHW" in file.notices[0]


def test_an_axis_of_levels_beside_times_rows_and_columns_holds_the_channels(tmp_path: Path) -> None:
    stored = RNG.random((5, 12, 32, 32)).astype(np.float32)
    path = write_named(tmp_path / "a.nc", {"t": (stored, ["pressure_level", "valid_time", "latitude", "longitude"])})
    file = open_image(path)
    assert (file.count, file.channels) == (12, 5)
    assert np.array_equal(file.read(7, None).pixels, stored[:, 7])
    assert not file.notices


@pytest.mark.parametrize(
    ("names", "letters", "told"),
    [
        (["member", "time", "lat", "lon"], "CNHW", True),
        (["time", "nav_lev", "lon", "lat"], "NCWH", True),
        (["member", "lon", "lat"], "CWH", True),
        (["lon", "lat", "level"], "WHC", False),
        (["time", "height", "lat", "lon"], "NCHW", False),
        (["lon", "month", "lat"], "WCH", True),
    ],
)
def test_the_one_axis_whose_name_says_nothing_holds_the_channels(
    tmp_path: Path, names: list[str], letters: str, told: bool
) -> None:
    sizes = {"N": 12, "C": 13, "H": 40, "W": 50}
    stored = RNG.random(tuple(sizes[letter] for letter in letters)).astype(np.float32)
    file = open_image(write_named(tmp_path / "a.nc", {"t": (stored, names)}))
    images = stored.transpose([letters.index(letter) for letter in "NCHW" if letter in letters]).reshape(-1, 13, 40, 50)
    assert np.array_equal(file.read(file.count - 1, None).pixels, images[-1])
    notice = f"a.nc: its axis {names[letters.index('C')]} is read as channels ({letters}); set data.axes if that is wrong"
    assert file.notices == ((notice,) if told else ())
    file = open_image(tmp_path / "a.nc", ReadOptions(axes="CHW" if len(names) == 3 else "NCHW"))
    assert not [notice for notice in file.notices if "is read as channels" in notice]


@pytest.mark.parametrize(("sites", "letters"), [(60, "NCHW"), (5, "CNHW")])
def test_beside_times_more_of_another_kind_are_images(tmp_path: Path, sites: int, letters: str) -> None:
    """Sixty sites of twelve months each are no twelve images of sixty channels."""
    stored = RNG.random((sites, 12, 64, 64)).astype(np.float32)
    file = open_image(write_named(tmp_path / "a.nc", {"t": (stored, ["site", "time", "y", "x"])}))
    assert (file.count, file.channels) == ((60, 12) if letters == "NCHW" else (12, 5))


@pytest.mark.parametrize("name", ["tile", "number"])
def test_an_axis_that_may_count_images_is_asked_about(tmp_path: Path, name: str) -> None:
    stored = RNG.random((30 if name == "tile" else 60, 40, 50)).astype(np.float32)
    with pytest.raises(DataError, match="holds the channels"):
        open_image(write_named(tmp_path / "a.nc", {"t": (stored, [name, "y", "x"])}))


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        (["time", "number", "level", "lat", "lon"], (2, 1, 4, 17, 23)),
        (["time", "number", "height", "band", "lat", "lon"], (2, 1, 1, 4, 17, 23)),
        (["valid_time", "level", "lat", "lon", "sample"], (2, 4, 17, 23, 1)),
    ],
)
def test_named_axes_of_length_one_need_no_letter(tmp_path: Path, names: list[str], shape: tuple[int, ...]) -> None:
    images = np.stack([CUBE, CUBE + 1])
    path = write_named(tmp_path / "a.nc", {"t": (images.reshape(shape), names)})
    assert not open_image(path).notices
    for options in (ReadOptions(), ReadOptions(axes="NCHW"), ReadOptions(axes="NCHW", key="t")):
        assert_reads(path, images[1], options, index=1)


@pytest.mark.parametrize("channels", ["band", "wl"])
def test_labels_whose_axes_of_length_one_have_names(tmp_path: Path, channels: str) -> None:
    classes = RNG.integers(0, 3, (17, 23))
    arrays = {
        "t": (CUBE.transpose(0, 2, 1)[:, None], [channels, "number", "lon", "lat"]),
        "gt": (classes.T[None], ["number", "lon", "lat"]),
    }
    collection = open_collection(str(write_named(tmp_path / "a.nc", arrays)), labels=":gt")
    assert np.array_equal(collection.read(0).pixels, CUBE)
    assert np.array_equal(collection.read_labels(0), classes)


@pytest.mark.parametrize("axes", [list("tczyx"), None])
def test_ome_zarr_before_axes_were_described(tmp_path: Path, axes: list[str] | None) -> None:
    group = pytest.importorskip("zarr").open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    for level, stored in enumerate((CUBE, CUBE[:, ::2, ::2])):
        group.create_array(str(level), data=stored[None, :, None])
    described = {"version": "0.3", "datasets": [{"path": "0"}, {"path": "1"}], **({} if axes is None else {"axes": axes})}
    group.attrs["multiscales"] = [described]
    assert_reads(tmp_path / "a.zarr", CUBE)
    assert not open_image(tmp_path / "a.zarr").notices


def test_the_places_of_rows_are_no_labels(tmp_path: Path) -> None:
    stored = RNG.random((20, 20, 24)).astype(np.float32)
    path = write_named(tmp_path / "a.nc", {"tas": (stored, ["time", "y", "x"])})
    assert open_image(path).labels is None
    with h5py.File(path, "r+") as file:
        del file["x"]
        file["x"] = np.arange(20)
    assert open_image(path).labels is not None


def test_arrays_whose_axes_have_names_are_asked_for_by_their_key_alone(tmp_path: Path) -> None:
    stored, names = RNG.random((40, 37, 53)), ["time", "lat", "lon"]
    path = write_named(tmp_path / "a.nc", {"tas": (stored, names), "pr": (stored, names)})
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert caught.value.hint is not None
    assert "data.key" in caught.value.hint
    assert "data.axes" not in caught.value.hint
    # A field of one time is likelier than the places of its pixels.
    places = (stored[0], ["lat", "lon"])
    write_named(path, {"latitudes": places, "longitudes": places, "tas": (stored[:1], names)})
    with pytest.raises(DataError, match=r'\(set data\.key = "tas"\)'):
        open_image(path)
    # Nor are flags.
    flags = np.ones((37, 53), np.int8)
    write_named(tmp_path / "b.nc", {"flags": (flags, names[1:]), "latitude": places, "sst": (stored[0], names[1:])})
    with pytest.raises(DataError, match=r'\(set data\.key = "sst"'):
        open_image(tmp_path / "b.nc")
    np.savez(tmp_path / "a.npz", t1=stored[0], t2=stored[1])
    with pytest.raises(DataError, match=r'data\.key = "t1" and data\.axes = "HW" for one channel'):
        open_image(tmp_path / "a.npz")
