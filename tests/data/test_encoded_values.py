"""Stored numbers that mean others, or nothing: scale, offset, fill values, signs."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from auxmae.data.image import ReadOptions
from auxmae.data.readers import open_image
from tests.data.reader_fixtures import CUBE, PART, RNG, WINDOW, write_raster


@pytest.mark.parametrize("kind", ["h5", "zarr2", "zarr3"])
def test_cf_attributes(tmp_path: Path, kind: str) -> None:
    stored = RNG.integers(0, 1000, (4, 17, 23)).astype(np.int16)
    stored[1, 4, 6], stored[2, 5, 7], stored[3, 8, 9] = -9999, -1, 2000
    attributes = {"_FillValue": -9999, "missing_value": -1, "valid_max": 1500, "scale_factor": 0.5, "add_offset": 10.0}
    if kind == "h5":
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["x"] = stored
            file["x"].attrs.update({name: np.array([value]) for name, value in attributes.items()})
    else:
        zarr = pytest.importorskip("zarr")
        path = tmp_path / "a.zarr"
        array = zarr.create_array(str(path), shape=stored.shape, dtype="int16", zarr_format=int(kind[-1]))
        array[...] = stored
        array.attrs.update(attributes)
    image = open_image(path).read(0, WINDOW)
    missing = np.isin(stored, (-9999, -1, 2000))
    assert np.array_equal(image.valid, ~missing[PART])
    assert np.array_equal(image.pixels, np.where(missing, 0, stored * 0.5 + 10)[PART].astype(np.float32))
    # The user's own value stands for all that the file says of it.
    for nodata in (float(stored[0, 3, 5]), float("nan")):
        instead = open_image(path, ReadOptions(nodata=nodata)).read(0, None)
        assert np.array_equal(instead.valid, stored != nodata)


@pytest.mark.parametrize("kind", ["h5", "zarr"])
@pytest.mark.parametrize(("word", "stored"), [("true", "int16"), ("false", "uint16")])
def test_bytes_that_mean_the_other_sign(tmp_path: Path, kind: str, word: str, stored: str) -> None:
    meant = RNG.integers(0, 2**16, (4, 17, 23)).astype("uint16" if word == "true" else "int16")
    meant[:, 4, 6], meant[:, 5, 7] = (2**16 - 1, 2**16 - 2) if word == "true" else (-1, -2)
    # As GOES files have it: the fill value and the limits are in the type that is stored.
    ends = (0, 2**16 - 3) if word == "true" else (-(2**15), 2**15 - 1)
    attributes = {"_Unsigned": word, "_FillValue": meant[:1, 4, 6].view(stored), "scale_factor": 0.5, "add_offset": 10.0}
    attributes["valid_range"] = np.array(ends, meant.dtype).view(stored)
    if kind == "h5":
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["x"] = meant.view(stored)
            file["x"].attrs.update(attributes)
    else:
        zarr = pytest.importorskip("zarr")
        path = tmp_path / "a.zarr"
        array = zarr.create_array(str(path), shape=meant.shape, dtype=stored)
        array[...] = meant.view(stored)
        array.attrs.update({name: getattr(value, "tolist", lambda value=value: value)() for name, value in attributes.items()})
    image = open_image(path).read(0, None)
    valid = (meant != meant[0, 4, 6]) & (meant >= ends[0]) & (meant <= ends[1])
    assert np.array_equal(image.valid, valid)
    assert np.array_equal(image.pixels, np.where(valid, meant * 0.5 + 10, 0).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "fill"), [("float32", 9.969209968386869e36), ("float64", 9.969209968386869e36), ("int16", -32767)]
)
def test_what_netcdf_fills_with_is_missing_where_no_other_value_is(tmp_path: Path, dtype: str, fill: float) -> None:
    stored = RNG.integers(0, 1000, (4, 17, 23)).astype(dtype)
    stored[:, 2:5] = fill
    for name, made, attributes, missing in (
        ("netcdf.nc", fill, {}, stored == fill),
        ("named.nc", fill, {"_FillValue": stored[0, 0, 0]}, stored == stored[0, 0, 0]),
        ("other.h5", 0, {}, np.zeros(stored.shape, dtype=bool)),
    ):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("x", data=stored, fillvalue=fill if made else None).attrs.update(attributes)
        assert np.array_equal(open_image(tmp_path / name).read(0, None).valid, ~missing)


def test_a_float32_fill_value_is_found(tmp_path: Path) -> None:
    stored = RNG.random((4, 17, 23)).astype(np.float32)
    stored[2, 5, 7] = 1e20
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = stored
        file["x"].attrs["_FillValue"] = 1e20
    assert np.argwhere(~open_image(tmp_path / "a.h5").read(0, None).valid).tolist() == [[2, 5, 7]]


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
def test_what_float32_cannot_hold_is_not_valid(tmp_path: Path, name: str) -> None:
    stored = RNG.random((4, 17, 23))
    stored[0, 4, 6], stored[1, 5, 7], stored[2, 6, 8] = 1e300, -np.inf, np.nan
    if name == "a.npy":
        np.save(tmp_path / name, stored)
    else:
        write_raster(tmp_path / name, stored)
    image = open_image(tmp_path / name).read(0, None)
    assert np.argwhere(~image.valid).tolist() == [[0, 4, 6], [1, 5, 7], [2, 6, 8]]
    assert np.isfinite(image.pixels).all()


def test_xarray_keeps_the_fill_value_elsewhere(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    stored = CUBE.astype(np.int32)
    stored[0, 0, 0], stored[1, 1, 1] = -5, 0
    for name, dimensions in (("plain", {}), ("xarray", {"_ARRAY_DIMENSIONS": ["band", "y", "x"]})):
        array = zarr.create_array(str(tmp_path / f"{name}.zarr"), shape=stored.shape, dtype="int32", fill_value=-5, zarr_format=2)
        array[...] = stored
        array.attrs.update(dimensions)
        valid = open_image(tmp_path / f"{name}.zarr").read(0, None).valid
        assert valid.sum() == stored.size - (name == "xarray")
