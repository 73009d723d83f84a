"""Readers: every format gives the same pixels, by windows too; broken files are named."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
import tifffile
from PIL import Image

from auxmae.data.image import ImageFile, ReadOptions, Window
from auxmae.data.opening import open_collection
from auxmae.data.readers import numpy_files, open_image
from auxmae.errors import DataError, MissingDependencyError, ResourceError

CUBE = np.random.default_rng(0).integers(1, 60000, (4, 17, 23)).astype(np.uint16)


def write_geotiff(path, cube, **options):
    profile = {"driver": "GTiff", "count": len(cube), "height": cube.shape[1], "width": cube.shape[2], "dtype": cube.dtype}
    with rasterio.open(path, "w", **{**profile, **options}) as file:
        file.write(cube)


def write(path):
    name = path.name
    if name == "geo.tif":
        write_geotiff(path, CUBE, crs="EPSG:32633", transform=rasterio.transform.from_origin(0, 0, 10, 10))
    elif name == "pages.tiff":
        tifffile.imwrite(path, CUBE, photometric="minisblack")
    elif name == "ome.ome.tif":
        tifffile.imwrite(path, CUBE, metadata={"axes": "CYX", "Channel": {"Name": list("abcd")}})
    elif name == "first.npy":
        np.save(path, CUBE)
    elif name == "last.npy":
        np.save(path, np.ascontiguousarray(np.moveaxis(CUBE, 0, 2)))
    elif name == "a.npz":
        np.savez(path, image=CUBE)
    elif name == "a.h5":
        with h5py.File(path, "w") as file:
            file["group/image"] = CUBE
    elif name == "a.mat":
        scipy.io.savemat(path, {"Y": np.moveaxis(CUBE, 0, 2)})
    elif name == "envi.hdr":
        write_geotiff(path.with_suffix(".img"), CUBE, driver="ENVI")
    elif name == "store.zarr":
        zarr = pytest.importorskip("zarr")
        zarr.save_array(str(path), CUBE)
    return path


@pytest.mark.parametrize(
    "name", ["geo.tif", "pages.tiff", "ome.ome.tif", "first.npy", "last.npy", "a.npz", "a.h5", "a.mat", "envi.hdr", "store.zarr"]
)
def test_every_format_gives_the_same_pixels(tmp_path, name):
    file = open_image(write(tmp_path / name))
    assert (file.count, file.channels, file.height, file.width) == (1, 4, 17, 23)
    file = pickle.loads(pickle.dumps(file))
    image = file.read(0, None)
    assert np.array_equal(image.pixels, CUBE)
    assert image.valid.all()
    part = file.read(0, Window(3, 5, 7, 11))
    assert np.array_equal(part.pixels, CUBE[:, 3:10, 5:16])


def test_pictures(tmp_path):
    rgba = np.random.default_rng(1).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    rgba[::2, 1::3, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png").read(0, Window(1, 2, 5, 6))
    shown = np.broadcast_to(rgba[1:6, 2:8, 3] > 0, (3, 5, 6))
    assert np.array_equal(image.valid, shown)
    assert np.array_equal(image.pixels, np.where(shown, np.moveaxis(rgba[1:6, 2:8, :3], 2, 0), 0))
    deep = np.random.default_rng(2).integers(0, 65536, (9, 12), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "b.png")
    assert np.array_equal(open_image(tmp_path / "b.png").read(0, None).pixels[0], deep)


def test_nodata_scale_and_names_of_the_file(tmp_path):
    path = tmp_path / "a.tif"
    write_geotiff(path, CUBE.astype(np.float32), nodata=-1.0)
    with rasterio.open(path, "r+") as file:
        file.descriptions = list("abcd")
        file.scales, file.offsets = [2.0] * 4, [1.0] * 4
        pixels = CUBE.astype(np.float32)
        pixels[1, 2, 3], pixels[0, 0, 0] = -1.0, np.nan
        file.write(pixels)
    opened = open_image(path)
    assert opened.channel_names == tuple("abcd")
    image = opened.read(0, None)
    assert not image.valid[1, 2, 3]
    assert not image.valid[0, 0, 0]
    assert image.pixels[0, 0, 0] == 0
    assert image.valid.sum() == CUBE.size - 2
    assert image.pixels[2, 4, 5] == CUBE[2, 4, 5] * 2.0 + 1.0


def test_flattened_pixels_need_axes_and_size(tmp_path):
    flat = CUBE.transpose(0, 2, 1).reshape(4, -1)  # column-major, as MATLAB stores
    scipy.io.savemat(tmp_path / "a.mat", {"Y": flat})
    with pytest.raises(DataError, match=r"data\.axes"):
        open_image(tmp_path / "a.mat")
    with pytest.raises(DataError, match=r"data\.size"):
        open_image(tmp_path / "a.mat", ReadOptions(axes="C(WH)"))
    file = open_image(tmp_path / "a.mat", ReadOptions(axes="C(WH)", size=(17, 23)))
    assert np.array_equal(file.read(0, Window(2, 3, 4, 5)).pixels, CUBE[:, 2:6, 3:8])


def test_several_arrays_are_asked_about(tmp_path):
    np.savez(tmp_path / "a.npz", one=CUBE, two=CUBE)
    with pytest.raises(DataError, match=r"data\.key"):
        open_image(tmp_path / "a.npz")
    assert open_image(tmp_path / "a.npz", ReadOptions(key="two")).channels == 4
    np.savez(tmp_path / "many.npz", **{f"image{number}": CUBE for number in range(3)})
    with pytest.raises(DataError, match=r"data\.key = .image0.; images are to be stored as one array of all of them"):
        open_image(tmp_path / "many.npz")
    with pytest.raises(DataError, match="no array 'three'"):
        open_image(tmp_path / "a.npz", ReadOptions(key="three"))


def test_an_array_of_images_with_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.stack([CUBE] * 5), y=np.arange(5))
    file = open_image(tmp_path / "a.npz", ReadOptions(key="x"))
    assert file.count == 5
    name, entries = file.labels
    assert (name, entries.tolist()) == ("y", [0, 1, 2, 3, 4])
    assert np.array_equal(file.read(3, None).pixels, CUBE)


@pytest.mark.parametrize("name", ["geo.tif", "pages.tiff", "first.npy", "a.npz", "a.h5", "a.mat"])
def test_truncated_and_foreign_files_are_named(tmp_path, name):
    path = write(tmp_path / name)
    content = path.read_bytes()
    for broken in (b"", b"just some text\n" * 20, content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=name):
            open_image(path).read(0, None)


def test_a_huge_scene_is_read_by_windows(tmp_path):
    path = tmp_path / "huge.tif"
    profile = {"count": 2, "height": 20000, "width": 20000, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, sparse_ok=True, compress="deflate", **profile) as file:
        file.write(np.full((2, 16, 16), 7, np.uint16), window=rasterio.windows.Window(19000, 19000, 16, 16))
    file = open_image(path)
    assert (file.height, file.width) == (20000, 20000)
    assert (file.read(0, Window(19000, 19000, 16, 16)).pixels == 7).all()


@pytest.mark.parametrize(
    ("fault", "said", "hint"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "too many open files", "ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied", "who may read"),
        (OSError(errno.EIO, "Input/output error"), "input/output error", "disk"),
        (RuntimeError("a.npy: Too many open files"), "too many open files", "ulimit -n"),
        (AttributeError("module 'rasterio' has no attribute 'errors'"), "rasterio cannot be loaded", "ulimit -n"),
        (ImportError("libz.so: no such file", name="rasterio"), "rasterio cannot be loaded", "installed whole"),
        (MemoryError(), "too large for memory", "windows"),
    ],
)
def test_what_the_machine_lacks_is_no_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str, hint: str
) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).random((3, 16, 16)))
    opened = numpy_files.open_file

    def open_file(path: Path, options: ReadOptions) -> ImageFile:
        if path.name == "1.npy":
            raise fault
        return opened(path, options)

    monkeypatch.setattr(numpy_files, "open_file", open_file)
    for allow_broken in (False, True):
        with pytest.raises(ResourceError, match=said) as caught:
            open_collection(str(tmp_path), options=ReadOptions(axes="CHW"), allow_broken=allow_broken)
        assert "1.npy" in caught.value.message
        assert hint in str(caught.value.hint)


@pytest.mark.parametrize("name", ["a.npy", "a.tif", "a.nc"])
def test_pointers_of_git_lfs_are_told(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(DataError) as caught:
        open_image(tmp_path / name)
    assert "pickle" not in caught.value.message
    assert "git lfs pull" in caught.value.hint


def test_what_h5py_cannot_read_says_what_to_do(tmp_path):
    with scipy.io.netcdf_file(tmp_path / "a.nc", "w") as file:
        for size, name in zip(CUBE.shape, "cyx", strict=True):
            file.createDimension(name, size)
        file.createVariable("t", "f4", tuple("cyx"))[...] = CUBE
    with pytest.raises(DataError, match=r"a\.nc: is netCDF-3, which is not read \(.*nccopy -k nc4"):
        open_image(tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk(CUBE.shape)
        made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(CUBE.shape)
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_UINT16, space, made).write_direct_chunk((0, 0, 0), b"zzzz", 0)
    with pytest.raises(MissingDependencyError, match=r"a\.h5: x is compressed by HDF5's filter 32015.*hdf5plugin"):
        open_image(tmp_path / "a.h5").read(0, None)
