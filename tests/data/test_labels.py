"""Labels found without being named: class folders, rasters, arrays, and where rasters lie."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import tifffile

from auxmae.data.image import ReadOptions, Window
from auxmae.data.opening import open_collection
from auxmae.errors import DataError
from tests.data.small_files import RNG, pixels, placed, write


def test_class_folders_are_labels(tmp_path: Path) -> None:
    for name in ("River", "Forest"):
        for number in range(3):
            write(tmp_path / "root" / name / f"{name}_{number}.tif", pixels())
    collection = open_collection(str(tmp_path / "root"))
    assert collection.layout == "images"
    assert collection.class_names == ("Forest", "River")
    assert collection.labels is not None
    assert collection.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert open_collection(str(tmp_path / "root"), labels="none").labels is None


def test_class_folders_are_labels_of_all_images_of_their_files(tmp_path: Path) -> None:
    for name, count in (("control/m1", 3), ("control/m2", 2), ("treated/m1", 4), ("treated/m2", 1)):
        path = tmp_path / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        images = np.stack([pixels(2, 24, 24) for _ in range(count)])
        tifffile.imwrite(path, images, imagej=True, metadata={"axes": "TCYX"})
    collection = open_collection(str(tmp_path))
    assert (collection.layout, collection.class_names) == ("array", ("control", "treated"))
    assert collection.labels is not None
    assert collection.labels.tolist() == [0] * 5 + [1] * 5
    assert sum("2 classes by folder" in notice for notice in collection.notices) == 1


def test_labels_in_array_files_come_before_those_of_their_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("a/1", "a/2", "b/1", "b/2")):
        path = tmp_path / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, x=np.stack([pixels(2, 24, 24)] * 2), y=np.array([number % 2, 2]))
    collection = open_collection(str(tmp_path), options=ReadOptions(key="x", axes="NCHW"))
    assert collection.labels is not None
    assert collection.labels.tolist() == [0, 2, 1, 2] * 2
    assert not any("by folder" in notice for notice in collection.notices)


def test_labels_in_array_files_of_one_image_come_before_those_of_their_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("site_a/1", "site_a/2", "site_b/1", "site_b/2")):
        path = tmp_path / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, x=pixels(2, 24, 24)[None], labels=np.array([number % 2]))
    collection = open_collection(str(tmp_path))
    assert (collection.layout, collection.class_names) == ("images", ("0", "1"))
    assert collection.labels is not None
    assert collection.labels.tolist() == [0, 1, 0, 1]
    assert not any("by folder" in notice for notice in collection.notices)
    # Where one file says nothing, the folders do, and it is told.
    np.savez(tmp_path / "site_b" / "3.npz", x=pixels(2, 24, 24)[None])
    collection = open_collection(str(tmp_path))
    assert collection.class_names == ("site_a", "site_b")
    assert any("4 of 5 files hold a label for each of their images, 1 do not (3.npz)" in one for one in collection.notices)


def test_files_beside_class_folders_are_told(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2", "more"):
        write(tmp_path / f"{name}.tif", pixels())
    collection = open_collection(str(tmp_path))
    assert collection.class_names == ()
    told = "labels: 4 files lie in 2 folders as if these were classes, 1 beside them (more.tif): "
    assert sum(notice.startswith(told) for notice in collection.notices) == 1
    without = open_collection(str(tmp_path), exclude=["more.tif"])
    assert without.class_names == ("a", "b")
    assert not any("as if these were classes" in notice for notice in without.notices)
    # Most images lie above the folders: these are no classes.
    for number in range(4):
        write(tmp_path / f"{number}.tif", pixels())
    assert not any("as if these were classes" in notice for notice in open_collection(str(tmp_path)).notices)


def test_split_folders_are_no_classes(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for number in range(3):
            write(tmp_path / part / f"{number}.tif", pixels())
    collection = open_collection(str(tmp_path))
    assert collection.class_names == ()
    assert any("train" in notice for notice in collection.notices)


def test_classes_below_split_folders(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / part / name / "0.tif", pixels())
    assert open_collection(str(tmp_path)).class_names == ("a", "b")


def test_real_label_raster(shared_data: Path) -> None:
    raster = shared_data / "sentinel2" / "slovenia_landcover.tif"
    collection = open_collection(str(shared_data / "sentinel2"), labels=str(raster))
    assert collection.class_names == ("1", "2", "3", "4", "8")
    with rasterio.open(raster) as file:
        original = file.read(1)
    expected = np.full(original.shape, -1)
    for number, value in enumerate((1, 2, 3, 4, 8)):
        expected[original == value] = number
    labelled = [collection.read_labels(item) for item in range(4)]
    assert sum(labels is None for labels in labelled) == 1  # New Zealand is of another size
    for labels in labelled:
        assert labels is None or (labels == expected).all()
    window = Window(7, 11, 20, 30)
    item = next(i for i, labels in enumerate(labelled) if labels is not None)
    found = collection.read_labels(item, window)
    assert found is not None
    assert (found == expected[7:27, 11:41]).all()


def test_label_raster_of_another_size(tmp_path: Path) -> None:
    write(tmp_path / "x" / "image.tif", pixels(3, 60, 60))
    raster = write(tmp_path / "labels.tif", np.ones((1, 50, 40), np.uint8))
    with pytest.raises(DataError, match=r"50×40.*60×60"):
        open_collection(str(tmp_path / "x"), labels=str(raster))


def test_matlab_abundances(shared_data: Path) -> None:
    collection = open_collection(
        str(shared_data / "hyperspectral" / "jasper_ridge.mat"),
        labels=":S_GT",
        options=ReadOptions(key="Y", axes="C(WH)", size=(100, 100)),
    )
    from scipy.io import loadmat

    stored = loadmat(shared_data / "hyperspectral" / "jasper_ridge.mat")
    assert (collection.read_labels(0) == stored["S_GT"].argmax(axis=2)).all()
    assert (collection.read(0).pixels == stored["Y"].reshape(198, 100, 100, order="F")).all()
    assert any("largest" in notice for notice in collection.notices)


def test_abundances_all_zero_have_no_label(tmp_path: Path) -> None:
    abundances = RNG.random((20, 30, 4))
    abundances[3, 5] = 0
    np.savez(tmp_path / "scene.npz", image=RNG.random((5, 20, 30)), map=abundances)
    collection = open_collection(
        str(tmp_path / "scene.npz"), labels=f"{tmp_path / 'scene.npz'}:map", options=ReadOptions(key="image", axes="CHW")
    )
    labels = collection.read_labels(0)
    assert labels is not None
    assert labels[3, 5] == -1
    labels[3, 5] = abundances[3, 5].argmax()
    assert (labels == abundances.argmax(axis=2)).all()


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("shape", [(20, 30, 1), (1, 20, 30), (1, 20, 30, 1)])
def test_a_map_may_have_a_channel_and_a_number(tmp_path: Path, shape: tuple[int, ...], classes: int) -> None:
    labels = RNG.integers(0, classes, (20, 30))
    if classes == 2:
        labels = np.eye(20, 30, dtype=np.int64)  # a thin road: one pixel a row, as one-hot rows have it
    np.save(tmp_path / "scene.npy", RNG.random((5, 20, 30)))
    np.save(tmp_path / "map.npy", labels.reshape(shape))
    options = ReadOptions(axes="CHW")
    collection = open_collection(str(tmp_path / "scene.npy"), labels=str(tmp_path / "map.npy"), options=options)
    assert collection.class_names == tuple(map(str, range(classes)))
    found = collection.read_labels(0)
    assert found is not None
    assert (found == labels).all()


def test_maps_of_several_images_may_have_a_channel(tmp_path: Path) -> None:
    labels = RNG.integers(0, 3, (4, 20, 30, 1))
    np.save(tmp_path / "images.npy", RNG.random((4, 5, 20, 30)))
    np.save(tmp_path / "maps.npy", labels)
    options = ReadOptions(axes="NCHW")
    collection = open_collection(str(tmp_path / "images.npy"), labels=str(tmp_path / "maps.npy"), options=options)
    for item in range(4):
        assert np.array_equal(collection.read_labels(item), labels[item, ..., 0])


def test_array_with_a_label_for_each_image(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", RNG.integers(0, 99, (10, 3, 12, 12), dtype=np.uint16) + 1)
    np.save(tmp_path / "labels.npy", np.array([7, 3] * 5))
    collection = open_collection(
        str(tmp_path / "images.npy"), labels=str(tmp_path / "labels.npy"), options=ReadOptions(axes="NCHW")
    )
    assert collection.layout == "array"
    assert collection.class_names == ("3", "7")
    assert collection.labels is not None
    assert collection.labels.tolist() == [1, 0] * 5


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_the_fill_value_of_an_array_of_labels_is_no_class(tmp_path: Path, kind: str) -> None:
    images, labels = RNG.random((12, 3, 16, 16)), np.array([255, 0, 1] * 4, np.uint8)
    if kind == "h5":
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = images, labels
            file["labels"].attrs["_FillValue"] = np.uint8(255)
    else:
        path = tmp_path / "a.zarr"
        group = pytest.importorskip("zarr").open_group(str(path), mode="w")
        group.create_array("images", data=images)
        group.create_array("labels", data=labels).attrs["_FillValue"] = 255
    for named in ("auto", ":labels"):
        collection = open_collection(str(path), labels=named, options=ReadOptions(key="images"))
        assert collection.class_names == ("0", "1")
        assert collection.labels is not None
        assert collection.labels.tolist() == [-1, 0, 1] * 4


def test_what_zarr_fills_with_by_itself_is_a_class(tmp_path: Path) -> None:
    group = pytest.importorskip("zarr").open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    group.create_array("images", data=RNG.random((12, 3, 16, 16)))
    group.create_array("labels", data=np.array([0, 1] * 6, np.uint8)).attrs["_ARRAY_DIMENSIONS"] = ["n"]
    assert group["labels"].fill_value == 0
    collection = open_collection(str(tmp_path / "a.zarr"), options=ReadOptions(key="images"))
    assert collection.class_names == ("0", "1")


def test_measurements_are_no_classes(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 5, 16, 16), np.float32) + np.arange(5)[:, None, None])
    np.save(tmp_path / "y.npy", np.array([0.5, 1, np.nan, 2]))
    with pytest.raises(DataError, match="no whole numbers"):
        open_collection(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"))


def test_a_label_raster_lies_where_its_scene_does(tmp_path):
    scene = placed(tmp_path / "scene.tif", pixels(5, 90, 90), 400_000)
    truth = RNG.integers(0, 3, (1, 90, 90), dtype=np.uint8)
    for name, east, epsg in (("same", 400_000, 32633), ("rounded", 400_000.4, 32633), ("other name", 400_000, 25833)):
        labels = placed(tmp_path / f"{name}.tif", truth, east, epsg=epsg)
        assert open_collection(str(scene), labels=str(labels)).has_label_maps
    assert open_collection(str(scene), labels=str(write(tmp_path / "nowhere.tif", truth))).has_label_maps
    for east in (399_990, 500_000):
        with pytest.raises(DataError, match=rf"lie elsewhere than scene\.tif: .* \({east}, 5000000\) and \(400000, 5000000\)"):
            open_collection(str(scene), labels=str(placed(tmp_path / "off.tif", truth, east)))


def test_labels_of_other_pixels_are_to_be_warped_where_both_say_where_they_lie(tmp_path):
    scene = placed(tmp_path / "scene.tif", pixels(5, 90, 90), 400_000)
    truth = RNG.integers(0, 3, (1, 30, 30), dtype=np.uint8)
    with pytest.raises(DataError, match=r"the labels are 30×30 px, .* \(warp them to the image's grid, by nearest neighbour, or"):
        open_collection(str(scene), labels=str(placed(tmp_path / "coarse.tif", truth, 400_000)))
    with pytest.raises(DataError, match=r"the labels are 30×30 px, .* \(name a label raster of the images' size"):
        open_collection(str(scene), labels=str(write(tmp_path / "nowhere.tif", truth)))


def test_labels_beside_the_pixels_are_told(tmp_path):
    scene = placed(tmp_path / "scene.tif", pixels(5, 90, 90), 400_000)
    truth = RNG.integers(0, 3, (1, 90, 90), dtype=np.uint8)
    for east, epsg, shift in ((400_005, 32633, "0.50"), (399_998, 32633, "0.20"), (400_000.4, 32633, ""), (400_000, 25833, "")):
        labels = placed(tmp_path / "truth.tif", truth, east, epsg=epsg)
        notices = [notice for notice in open_collection(str(scene), labels=str(labels)).notices if "beside" in notice]
        assert [notice.split(",")[0] for notice in notices] == (
            [f"scene.tif: the labels lie {shift} of a pixel beside the image"] if shift else []
        )


@pytest.mark.parametrize(("rows", "columns", "fits"), [(0.5, 0.5, True), (0.6, 0, False), (1.0, 0, False), (0, 0.6, False)])
def test_half_a_pixel_is_half_of_a_row_and_of_a_column(tmp_path, rows, columns, fits):
    """As of elevation models of high latitudes, whose pixels are three times as wide as they are high."""
    truth = RNG.integers(0, 3, (1, 60, 60), dtype=np.uint8)
    for name, data, x, y in (("scene", pixels(3, 60, 60), 10.0, 70.0), ("truth", truth, 10 + 0.003 * columns, 70 - 0.001 * rows)):
        profile = {"driver": "GTiff", "count": len(data), "height": 60, "width": 60, "dtype": data.dtype, "crs": "EPSG:4326"}
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", transform=rasterio.transform.from_origin(x, y, 0.003, 0.001), **profile
        ) as file:
            file.write(data)
    if fits:
        collection = open_collection(str(tmp_path / "scene.tif"), labels=str(tmp_path / "truth.tif"))
        assert any("lie 0.50 of a pixel beside" in notice for notice in collection.notices)
        return
    with pytest.raises(DataError, match="lie elsewhere than"):
        open_collection(str(tmp_path / "scene.tif"), labels=str(tmp_path / "truth.tif"))


@pytest.mark.parametrize("kind", ["npz", "tif"])
def test_numbers_that_cannot_be_told_apart_are_no_labels(tmp_path, kind):
    write(tmp_path / "scene.tif", pixels(3, 60, 60))
    codes = np.array([3301010101, 3301010102, 7], np.uint32)[RNG.integers(0, 3, (60, 60))]
    if kind == "npz":
        np.savez(tmp_path / "codes.npz", gt=codes)
    else:
        write(tmp_path / "codes.tif", codes[None])
    labels = str(tmp_path / ("codes.npz:gt" if kind == "npz" else "codes.tif"))
    with pytest.raises(DataError, match=r"label numbers such as 3301010\d+ cannot be told .* \(number the classes anew"):
        open_collection(str(tmp_path / "scene.tif"), labels=labels)
    found = open_collection(str(tmp_path / "scene.tif"), labels=labels, ignored_labels=(3301010101, 3301010102))
    assert found.class_names == ("7",)


def test_the_same_numbers_in_another_zone_are_another_place(tmp_path):
    scene = placed(tmp_path / "scene.tif", pixels(5, 90, 90), 400_000)
    labels = placed(tmp_path / "truth.tif", RNG.integers(0, 3, (1, 90, 90), dtype=np.uint8), 400_000, epsg=32634)
    with pytest.raises(DataError, match=r"lie elsewhere than scene\.tif: .* in EPSG:32633 \(the former is in EPSG:32634\)"):
        open_collection(str(scene), labels=str(labels))
    coarse = tmp_path / "coarse.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 90, "width": 90, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(coarse, "w", transform=rasterio.transform.from_origin(400_000, 5e6, 20, 20), **profile) as file:
        file.write(RNG.integers(0, 3, (1, 90, 90), dtype=np.uint8))
    with pytest.raises(DataError, match=r"lower right corners are \(401800, 4998200\) and \(400900, 4999100\)"):
        open_collection(str(scene), labels=str(coarse))


def test_a_label_raster_is_not_another_places(tmp_path):
    for name, east in (("here", 400_000), ("later", 400_000), ("there", 700_000)):
        placed(tmp_path / f"{name}.tif", pixels(5, 90, 90), east)
    labels = placed(tmp_path / "truth.tif", RNG.integers(0, 3, (1, 90, 90), dtype=np.uint8), 400_000)
    collection = open_collection(str(tmp_path), labels=str(labels))
    assert [raster is not None for raster in collection.label_rasters] == [True, True, False]
    assert "the labels apply to the 2 images of their size and place; 1 others have none (there.tif)" in collection.notices
    # A date that lies where the labels do has them whatever they are called like.
    named = open_collection(str(tmp_path / "*e*.tif"), labels=str(labels.rename(tmp_path / "here_truth.tif")))
    assert named.relative_paths == ("here.tif", "later.tif", "there.tif")
    assert [raster is not None for raster in named.label_rasters] == [True, True, False]


def test_labels_called_like_one_image_are_not_those_of_others(tmp_path):
    truth = RNG.integers(0, 3, (1, 80, 80), dtype=np.uint8)
    for name, side in (("scene_A", 90), ("scene_B", 80), ("scene_C", 80)):
        write(tmp_path / f"{name}.tif", pixels(5, side, side))
    labels = write(tmp_path / "scene_A_labels.tif", truth)
    with pytest.raises(
        DataError, match=r"the labels are 80×80 px, the images 90×90 px \(scene_A\.tif\).* called like scene_A\.tif"
    ):
        open_collection(str(tmp_path / "scene_?.tif"), labels=str(labels))
    # Called like none, or by a georeference that says so, they are.
    labels = labels.rename(tmp_path / "truth.tif")
    found = open_collection(str(tmp_path / "scene_?.tif"), labels=str(labels))
    assert [raster is not None for raster in found.label_rasters] == [False, True, True]
    placed(tmp_path / "scene_B.tif", pixels(5, 80, 80), 400_000)
    labels = placed(tmp_path / "scene_A_labels.tif", truth, 400_000)
    found = open_collection(str(tmp_path / "scene_?.tif"), labels=str(labels))
    assert [raster is not None for raster in found.label_rasters] == [False, True, False]


def test_labels_called_like_an_image_left_out_are_those_of_its_place(tmp_path):
    for name, east in (("first", 400_000), ("later", 400_000), ("there", 700_000)):
        placed(tmp_path / f"{name}.tif", pixels(5, 90, 90), east)
    write(tmp_path / "nowhere.tif", pixels(5, 90, 90))
    labels = placed(tmp_path / "first_truth.tif", RNG.integers(0, 3, (1, 90, 90), dtype=np.uint8), 400_000)
    found = open_collection(str(tmp_path), labels=str(labels), exclude=("first.tif",))
    assert found.relative_paths == ("later.tif", "nowhere.tif", "there.tif")
    assert [raster is not None for raster in found.label_rasters] == [True, False, False]
    assert any("first_truth.tif is called like first.tif, and not taken for other images" in one for one in found.notices)


def test_a_picture_of_colours_says_no_classes(tmp_path):
    scene = placed(tmp_path / "scene.tif", pixels(5, 90, 90), 400_000)
    colours = RNG.integers(0, 2, (1, 90, 90), dtype=np.uint8) * np.array([255, 80, 0], dtype=np.uint8)[:, None, None]
    colours[0] += 7
    with pytest.raises(DataError, match="whose sum differs from pixel to pixel"):
        open_collection(str(scene), labels=str(placed(tmp_path / "colours.tif", colours, 400_000)))
    shares = RNG.dirichlet([0.3] * 3, (90, 90)).transpose(2, 0, 1).astype(np.float32)
    collection = open_collection(str(scene), labels=str(placed(tmp_path / "shares.tif", shares, 400_000)))
    assert np.array_equal(collection.read_labels(0), shares.argmax(0))
