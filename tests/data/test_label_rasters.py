"""Labels from rasters: a folder of them, or one."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.io import savemat

from auxmae.data.image import ReadOptions, Window
from auxmae.data.opening import open_collection
from auxmae.data.readers import open_image
from auxmae.errors import DataError
from tests.data.reader_fixtures import CUBE, RNG, write_raster
from tests.data.small_files import cubes, raster, table


@pytest.mark.parametrize(
    ("masks", "name"),
    [("masks", "{}.png"), ("masks", "{}_labels.png"), ("data/masks", "{}.npy"), ("data", "{}_mask.png")],
    ids=["like it", "with a word", "below the images", "beside them"],
)
def test_a_folder_of_rasters(tmp_path, masks, name):
    cubes(tmp_path / "data", "a", "a_b", "c", size=64)
    for image, value in (("a", 3), ("a_b", 7)):
        raster(tmp_path / masks / name.format(image), value)
    collection = open_collection(str(tmp_path / "data"), labels=str(tmp_path / masks))
    assert (collection.layout, collection.class_names) == ("scenes", ("0", "3", "7"))
    assert collection.relative_paths == ("a.npy", "a_b.npy", "c.npy")
    found = collection.label_rasters
    assert [None if one is None else one.read(0, Window(31, 0, 2, 1)).tolist() for one in found] == [[[1], [0]], [[2], [0]], None]
    assert any(notice.startswith("labels: 2 of 3 files have a raster") for notice in collection.notices)


def test_masks_beside_images_of_one_channel(tmp_path):
    for name, values in (("a", 4000), ("a_b", 4000), ("c", 3)):
        tifffile.imwrite(tmp_path / f"{name}.tif", RNG.integers(0, values, (64, 64)).astype(np.uint16))
    for image, value in (("a", 3), ("a_b", 7), ("c", 5)):
        raster(tmp_path / f"{image}_mask.png", value)
    collection = open_collection(str(tmp_path), labels=str(tmp_path))
    # Whatever goes on after a name is an image unless it looks like labels, and so is what looks like them under its own name.
    assert collection.relative_paths == ("a.tif", "a_b.tif", "c.tif")
    assert [collection.class_names[collection.read_labels(item)[0, 0]] for item in range(3)] == ["3", "7", "5"]
    assert len(open_collection(str(tmp_path), layout="images")) == 6


@pytest.mark.parametrize("name", ["a.img", "a"])
@pytest.mark.parametrize("source", ["", "a*.hdr"])
def test_masks_beside_envi_images(tmp_path, name, source):
    truth = RNG.integers(0, 3, (1, 64, 64)).astype(np.uint8)
    write_raster(tmp_path / name, RNG.integers(0, 4000, (5, 64, 64)).astype(np.uint16), "ENVI")
    write_raster(tmp_path / name.replace("a", "a_mask"), truth, "ENVI")
    (tmp_path / "stray.hdr").write_text("ENVI")
    collection = open_collection(str(tmp_path / source), labels=str(tmp_path), exclude=("stray.hdr",) if not source else ())
    assert np.array_equal(collection.read_labels(0), truth[0])


@pytest.mark.parametrize("masks", ["masks", "data"])
def test_what_is_excluded_is_no_label_raster(tmp_path, masks):
    cubes(tmp_path / "data", "a", "b", size=64)
    for name in ("a_mask", "b_mask", "a_color", "b_color"):
        raster(tmp_path / masks / f"{name}.png", 1 + ("color" in name))
    options = {"labels": str(tmp_path / masks), "exclude": ("*_color.png", "*.jpg")}
    collection = open_collection(str(tmp_path / "data"), **options)
    assert [raster.file.path.name for raster in collection.label_rasters] == ["a_mask.png", "b_mask.png"]
    # What is there once, among the images or the rasters, has been left out.
    assert [notice for notice in collection.notices if "data.exclude" in notice] == ["data.exclude: no file is called like *.jpg"]
    options["exclude"] = ("*_color.png", "b*")
    collection = open_collection(str(tmp_path / "data"), **options)
    assert (collection.relative_paths, len(collection.label_rasters)) == (("a.npy",), 1)
    assert not any("data.exclude" in notice for notice in collection.notices)


@pytest.mark.parametrize("how", ["excluded", "broken"])
def test_labels_of_an_image_that_is_left_out_are_no_others(tmp_path, how):
    cubes(tmp_path / "data", "scene", "scene_2", "c", size=64)
    for name, value in (("scene_2", 7), ("c_labels", 3)):
        raster(tmp_path / "masks" / f"{name}.png", value)
    options = {"exclude": ("scene_2.npy",)} if how == "excluded" else {"allow_broken": True}
    if how == "broken":
        (tmp_path / "data" / "scene_2.npy").write_bytes(b"broken")
    collection = open_collection(str(tmp_path / "data"), labels=str(tmp_path / "masks"), **options)
    assert collection.relative_paths == ("c.npy", "scene.npy")
    assert [collection.has_label_map(item) for item in range(2)] == [True, False]
    assert any("1 are called like no image (scene_2.png)" in notice for notice in collection.notices)
    # Nor is such a raster by itself of any of them.
    with pytest.raises(DataError, match=r"scene_2\.png: it is called like scene_2\.npy, which is left out") as told:
        open_collection(str(tmp_path / "data"), labels=str(tmp_path / "masks" / "scene_2.png"), **options)
    assert told.value.hint == "leave scene_2.npy in; where the labels are of other images, call them otherwise"
    # By another name they are of all.
    raster(tmp_path / "masks" / "truth.png", 7)
    alone = open_collection(str(tmp_path / "data"), labels=str(tmp_path / "masks" / "truth.png"), **options)
    assert [alone.has_label_map(item) for item in range(2)] == [True, True]


@pytest.mark.parametrize("how", ["excluded", "incomplete"])
def test_labels_of_a_joined_image_that_is_left_out_are_no_others(tmp_path, how):
    for name in ("scene_B02", "scene_B03", "scene_B04", "scene_2_B02", "scene_2_B03"):
        tifffile.imwrite(tmp_path / f"{name}.tif", RNG.integers(1, 5000, (64, 64), dtype=np.uint16))
    # A channel that is left out of every image leaves these in, and what is no channel is no image.
    for name in ("scene_B09", "scene_mask", "scene_2_mask"):
        tifffile.imwrite(tmp_path / f"{name}.tif", RNG.integers(0, 3, (64, 64), dtype=np.uint8))
    exclude = ("*_B09.tif", "scene_2_B*.tif") if how == "excluded" else ("*_B09.tif",)
    options = {"channel_pattern": r"_(B\d+)\.tif", "exclude": exclude, "allow_broken": how == "incomplete"}
    collection = open_collection(str(tmp_path), labels=str(tmp_path), **options)
    assert collection.relative_paths == ("scene.tif",)
    assert [raster.file.path.name for raster in collection.label_rasters] == ["scene_mask.tif"]
    with pytest.raises(DataError, match=r"scene_2_mask\.tif: it is called like scene_2\.tif, which is left out"):
        open_collection(str(tmp_path), labels=str(tmp_path / "scene_2_mask.tif"), **options)


def test_what_is_left_out_beside_images_may_be_called_like_labels(tmp_path):
    cubes(tmp_path / "data", "a", "b", size=64)
    raster(tmp_path / "data" / "a_mask.png", 9)
    raster(tmp_path / "masks" / "a_mask.npy", 7)
    collection = open_collection(str(tmp_path / "data"), labels=str(tmp_path / "masks"), exclude=("a_mask.png",))
    assert [collection.has_label_map(item) for item in range(2)] == [True, False]


def test_labels_are_of_the_image_whose_name_goes_on_after_that_of_one_left_out(tmp_path):
    """Indian Pines and Salinas are published so."""
    cubes(tmp_path / "data", "pines", "pines_corrected", size=64)
    raster(tmp_path / "pines_gt.png", 3)
    options = {"labels": str(tmp_path / "pines_gt.png"), "exclude": ("pines.npy",)}
    collection = open_collection(str(tmp_path / "data"), **options)
    assert collection.relative_paths == ("pines_corrected.npy",)
    assert collection.has_label_map(0)


def test_labels_that_are_left_out_are_no_images(tmp_path):
    cubes(tmp_path / "data", "a", "b", "old/a_mask", "old/b_GT", size=64)
    for name, value in (("a_mask", 3), ("b_GT", 5)):
        raster(tmp_path / "masks" / f"{name}.png", value)
    collection = open_collection(str(tmp_path / "data"), labels=str(tmp_path / "masks"), exclude=("old/*",))
    assert collection.relative_paths == ("a.npy", "b.npy")
    assert [collection.has_label_map(item) for item in range(2)] == [True, True]


def test_what_is_wrong_with_a_folder_of_rasters(tmp_path):
    cubes(tmp_path / "data", "a", "b", size=64)
    raster(tmp_path / "masks" / "z.png", 1)
    with pytest.raises(DataError, match=r"no label raster is called like an image, such as a\.npy"):
        open_collection(str(tmp_path / "data"), labels=str(tmp_path / "masks"))
    raster(tmp_path / "masks" / "a.png", 1)
    raster(tmp_path / "masks" / "a_old.png", 2)
    with pytest.raises(DataError, match=r"a\.npy: both .*a\.png and .*a_old\.png are called like it"):
        open_collection(str(tmp_path / "data"), labels=str(tmp_path / "masks"))
    (tmp_path / "masks" / "a_old.png").unlink()
    raster(tmp_path / "masks" / "b.png", 2, size=32)
    with pytest.raises(DataError, match="the labels are 32×32 px, the images 64×64 px"):
        open_collection(str(tmp_path / "data"), labels=str(tmp_path / "masks"))


@pytest.mark.parametrize("key", ["", ":gt"])
def test_an_array_of_labels_beside_the_scene(tmp_path, key):
    truth = RNG.integers(0, 4, (24, 30))
    savemat(tmp_path / "scene.mat", {"scene": RNG.integers(1, 4000, (24, 30, 60))})
    savemat(tmp_path / "gt.mat", {"gt": truth})
    collection = open_collection(str(tmp_path), labels=f"{tmp_path / 'gt.mat'}{key}")
    assert collection.relative_paths == ("scene.mat",)
    assert np.array_equal(collection.read_labels(0), truth - 1)


def test_one_raster_is_that_of_the_image_which_it_is_called_like(tmp_path):
    for name in "abc":
        savemat(tmp_path / f"{name}.mat", {"scene": RNG.integers(1, 4000, (24, 30, 60))})
    (tmp_path / "truth").mkdir()
    for name, labelled in (("b_gt", "b"), ("truth", "abc")):
        savemat(tmp_path / "truth" / f"{name}.mat", {"gt": RNG.integers(0, 4, (24, 30))})
        collection = open_collection(str(tmp_path / "?.mat"), labels=str(tmp_path / "truth" / f"{name}.mat"))
        found = zip(collection.files, collection.label_rasters, strict=True)
        assert [file.path.stem for file, raster in found if raster is not None] == [*labelled]
        alone = any("b_gt.mat is called like b.mat, and not taken for other images" in notice for notice in collection.notices)
        several = any("truth.mat is taken for 3 of the images of its size" in notice for notice in collection.notices)
        assert (alone, several) == ((True, False) if labelled == "b" else (False, True))


def test_a_file_of_labels_and_of_an_image_is_both(tmp_path):
    truth = RNG.integers(1, 4, (24, 30))
    for name in "ab":
        savemat(tmp_path / f"{name}.mat", {"scene": RNG.integers(1, 4000, (24, 30, 60)), "gt": truth})
    collection = open_collection(str(tmp_path), labels=f"{tmp_path / 'a.mat'}:gt")
    assert collection.relative_paths == ("a.mat", "b.mat")
    assert np.array_equal(collection.read_labels(0), truth - 1)


def test_another_number_of_maps_than_of_images(tmp_path):
    np.save(tmp_path / "images.npy", RNG.uniform(size=(10, 5, 32, 32)))
    np.save(tmp_path / "masks.npy", RNG.integers(0, 3, (9, 32, 32)))
    with pytest.raises(DataError, match=r"masks\.npy: 9 label maps, and images\.npy holds 10 images ") as told:
        open_collection(str(tmp_path / "images.npy"), labels=str(tmp_path / "masks.npy"))
    assert "one map" in told.value.hint


def test_what_is_alike_of_many_label_files_is_told_once(tmp_path):
    cubes(tmp_path / "data", "a", "b", "c")
    shares = RNG.uniform(size=(16, 16, 3))
    for name in "abc":
        (tmp_path / "labels").mkdir(exist_ok=True)
        np.save(tmp_path / "labels" / f"{name}.npy", shares)
    told = open_collection(str(tmp_path / "data"), labels=str(tmp_path / "labels")).notices
    (told_once,) = (notice for notice in told if "abundances" in notice)
    assert told_once.startswith("a.npy: labels of 16 × 16 × 3 are taken for abundances")
    assert told_once.endswith(" (3 files)")
    for name in "abc":
        np.savez(tmp_path / f"{name}.npz", image=RNG.uniform(size=(5, 16, 16)), share=shares)
    told = open_collection(str(tmp_path / "?.npz"), labels=":share", options=ReadOptions(key="image")).notices
    assert [notice[-9:] for notice in told if "abundances" in notice] == ["(3 files)"]


def test_many_masks_among_the_images_are_told_once_with_what_uses_them(tmp_path):
    cubes(tmp_path, "x/a", "y/b", "y/c")
    for name in ("x/a", "y/b", "y/c"):
        Image.fromarray(RNG.integers(0, 3, (16, 16)).astype(np.uint8)).save(tmp_path / f"{name}_mask.png")
    collection = open_collection(str(tmp_path), labels="none")
    told = [notice for notice in collection.notices if "label raster" in notice]
    assert [notice.split(" look")[0] for notice in told] == ["3 files, a_mask.png the first,"]
    named = open_collection(str(tmp_path), labels=told[0].rpartition("--labels ")[2])
    assert (named.relative_paths, named.has_label_maps) == (("x/a.npy", "y/b.npy", "y/c.npy"), True)
    assert not any("label raster" in notice for notice in named.notices)
    rows = table(tmp_path / "t.csv", "image,label\na,1\nb,2\nc,2\n")
    told = [notice for notice in open_collection(str(tmp_path), labels=rows).notices if "label raster" in notice]
    assert [notice.endswith("are not used as images") for notice in told] == [True]


def test_palette_label_rasters_are_indices(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", CUBE)
    classes = RNG.choice([0, 3, 7], (17, 23)).astype(np.uint8)
    picture = Image.fromarray(classes)
    picture.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    picture.save(tmp_path / "labels.png")
    tifffile.imwrite(
        tmp_path / "labels.tif", classes, photometric="palette", colormap=RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    )
    for name in ("labels.png", "labels.tif"):
        collection = open_collection(str(image), labels=str(tmp_path / name))
        assert collection.class_names == ("0", "3", "7")
        assert np.array_equal(np.array([0, 3, 7])[collection.read_labels(0)], classes)
    assert open_image(tmp_path / "labels.png").channels == 3


def test_pictures_of_colours_are_no_labels(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", CUBE)
    Image.fromarray(RNG.integers(0, 255, (17, 23, 3), dtype=np.uint8)).save(tmp_path / "colours.png")
    Image.fromarray(RNG.integers(0, 3, (17, 23), dtype=np.uint8)).save(tmp_path / "grey.jpg")
    for name, reason in (("colours.png", "colours"), ("grey.jpg", "JPEG")):
        with pytest.raises(DataError, match=reason):
            open_collection(str(image), labels=str(tmp_path / name))


def test_a_label_array_alone_in_its_file_needs_no_key(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", CUBE)
    classes = RNG.choice([0, 3, 7], (17, 23))
    np.savez(tmp_path / "labels.npz", classes)
    collection = open_collection(str(image), labels=str(tmp_path / "labels.npz"))
    assert np.array_equal(np.array([0, 3, 7])[collection.read_labels(0)], classes)


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_a_label_array_is_read_by_the_names_of_its_axes_and_its_fill_value(tmp_path: Path, kind: str) -> None:
    scene, truth = RNG.random((4, 60, 60)).astype(np.float32), RNG.integers(0, 3, (60, 60)).astype(np.uint8)
    truth[50:] = 255
    arrays = {"refl": (scene.transpose(2, 1, 0), ["lon", "lat", "band"]), "mask": (truth.T, ["lon", "lat"])}
    if kind == "h5":
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            for name, (array, names) in arrays.items():
                file[name] = array
                for axis, label in enumerate(names):
                    file[name].dims[axis].label = label
            file["mask"].attrs["_FillValue"] = np.uint8(255)
    else:
        zarr, path = pytest.importorskip("zarr"), tmp_path / "a.zarr"
        group = zarr.open_group(str(path), mode="w")
        for name, (array, names) in arrays.items():
            group.create_array(name, shape=array.shape, dtype=array.dtype, dimension_names=names)[...] = array
        group["mask"].attrs["_FillValue"] = 255
    data = open_collection(str(path), labels=":mask")
    assert data.class_names == ("0", "1", "2")
    assert data.label_rasters is not None
    assert data.label_rasters[0] is not None
    image = data.label_rasters[0].file.read(0, None)
    assert np.array_equal(data.files[0].read(0, None).pixels, scene)
    assert np.array_equal(image.valid[0], truth != 255)
    assert np.array_equal(image.pixels[0][:50], truth[:50])


@pytest.mark.parametrize(("names", "axes"), [(["lon", "lat", ""], None), (["lon", "lat", "band"], "HWC")])
def test_a_label_array_lies_as_its_image_where_that_is_not_read_by_names(
    tmp_path: Path, names: list[str], axes: str | None
) -> None:
    """Which axis is called what says nothing then of where the image's rows are."""
    scene, truth = RNG.random((60, 60, 4)).astype(np.float32), RNG.integers(0, 3, (60, 60)).astype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["refl"], file["mask"] = scene, truth
        for name in ("refl", "mask"):
            for axis, label in enumerate(names[: file[name].ndim]):
                file[name].dims[axis].label = label
    data = open_collection(str(tmp_path / "a.h5"), labels=":mask", options=ReadOptions(axes=axes))
    assert np.array_equal(data.read(0).pixels, scene.transpose(2, 0, 1))
    assert np.array_equal(data.read_labels(0), truth)


def test_a_label_array_is_read_by_names_beside_an_image_whose_axes_are_set(tmp_path: Path) -> None:
    scene, truth = RNG.random((4, 60, 60)).astype(np.float32), RNG.integers(0, 3, (60, 60)).astype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["refl"], file["mask"] = scene.transpose(2, 1, 0), truth.T
        for name in ("refl", "mask"):
            for axis, label in enumerate(["x", "y", "wl"][: file[name].ndim]):
                file[name].dims[axis].label = label
    data = open_collection(str(tmp_path / "a.h5"), labels=":mask", options=ReadOptions(axes="WHC"))
    assert np.array_equal(data.read(0).pixels, scene)
    assert np.array_equal(data.read_labels(0), truth)


@pytest.mark.parametrize("columns", [60, 50])
def test_a_label_array_of_the_images_own_file_has_its_columns_first_where_the_image_has(tmp_path: Path, columns: int) -> None:
    scene, truth = RNG.random((4, 60, columns)).astype(np.float32), RNG.integers(0, 3, (60, columns)).astype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["refl"], file["mask"] = scene.transpose(0, 2, 1), truth.T
    data = open_collection(str(tmp_path / "a.h5"), labels=":mask", options=ReadOptions(key="refl", axes="CWH"))
    assert np.array_equal(data.read(0).pixels, scene)
    assert np.array_equal(data.read_labels(0), truth)
    assert any("columns come before their rows" in notice for notice in data.notices)
    named = open_collection(
        str(tmp_path / "a.h5"), labels=f"{tmp_path / 'a.h5'}:mask", options=ReadOptions(key="refl", axes="CWH")
    )
    assert np.array_equal(named.read_labels(0), truth)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["shares"] = 0.9 * np.eye(3)[truth.T] + 0.05
    shares = open_collection(str(tmp_path / "a.h5"), labels=":shares", options=ReadOptions(key="refl", axes="CWH"))
    assert np.array_equal(shares.read_labels(0), truth)
    np.save(tmp_path / "turned.npy", truth.T)
    np.save(tmp_path / "scene.npy", scene)
    if columns != 60:
        with pytest.raises(DataError, match="fit when turned: save them transposed"):
            open_collection(str(tmp_path / "scene.npy"), labels=str(tmp_path / "turned.npy"))


def test_float_maps_with_a_fill_value_are_no_abundances(tmp_path: Path) -> None:
    images, masks = RNG.random((20, 3, 48, 52)), RNG.integers(0, 4, (20, 48, 52)).astype(np.float32)
    filled = masks.copy()
    filled[:, :5] = -9999
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["masks"] = images, filled
        file["masks"].attrs["_FillValue"] = np.float32(-9999)
    data = open_collection(str(tmp_path / "a.h5"), labels=":masks", options=ReadOptions(key="images"))
    assert data.class_names == ("0", "1", "2", "3")
    found = np.stack([data.read_labels(item) for item in range(20)])
    assert np.array_equal(found, np.where(filled < 0, -1, masks))
    # One row in ten without an answer, and the others with one class each.
    rows = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, (48, 52))]
    rows[::10] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "image.npy", RNG.random((4, 48, 52)))
    one_hot = open_collection(str(tmp_path / "image.npy"), labels=str(tmp_path / "rows.npy"), options=ReadOptions(axes="CHW"))
    assert np.array_equal(one_hot.read_labels(0), np.where(np.isnan(rows[..., 0]), -1, np.nan_to_num(rows).argmax(2)))


def test_the_array_of_the_labels_is_not_taken_for_the_image(tmp_path: Path) -> None:
    images, masks = RNG.random((20, 3, 48, 52)).astype(np.float16), RNG.integers(0, 2, (20, 48, 52)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", image=images, mask=masks)
    with pytest.raises(DataError, match="which array is the image"):
        open_collection(str(tmp_path / "a.npz"))
    data = open_collection(str(tmp_path / "a.npz"), labels=":mask")
    assert (len(data), data.channel_names) == (20, ("C1", "C2", "C3"))
    assert data.class_names == ("0", "1")
