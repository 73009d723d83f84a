"""Sources as users have them: class folders, mixed scenes, label rasters, broken and odd files."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from auxmae.data.collection import open_collection
from auxmae.data.image import ReadOptions, Window
from auxmae.data.splits import split_collection
from auxmae.errors import DataError, SettingsError

RNG = np.random.default_rng(11)


def write(path: Path, array: np.ndarray, names: tuple[str, ...] | None = None, nodata: float | None = None) -> Path:
    """A GeoTIFF of a (C, H, W) array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype.name}
    with rasterio.open(path, "w", nodata=nodata, **profile) as file:
        file.write(array)
        for band, name in enumerate(names or (), start=1):
            file.set_band_description(band, name)
    return path


def pixels(channels: int = 3, height: int = 16, width: int = 16) -> np.ndarray:
    return RNG.integers(1, 5000, (channels, height, width), dtype=np.uint16)


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


def test_real_scenes_with_only_the_path(shared_data: Path) -> None:
    collection = open_collection(str(shared_data / "sentinel2"))
    assert (collection.layout, len(collection)) == ("scenes", 4)
    assert collection.channel_names[0] == "B01"
    assert len(collection.channel_names) == 13
    assert any("--labels" in notice and "landcover" in notice for notice in collection.notices)
    assert any("no channel names" in notice for notice in collection.notices)
    assert collection.describe().startswith("4 scenes, 13 channels (B01 … B12), 101×100 to 264×264 px, uint16")


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


def test_channels_select_and_reorder(tmp_path: Path) -> None:
    array = pixels()
    path = write(tmp_path / "a.tif", array, ("red", "green", "blue"))
    collection = open_collection(str(path), channels=("blue", "red"))
    assert collection.channel_names == ("blue", "red")
    assert (collection.read(0).pixels == array[[2, 0]]).all()
    with pytest.raises(SettingsError, match=r"gren.*green"):
        open_collection(str(path), channels=("gren",))


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


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_collection(str(tmp_path / "missing"))
    with pytest.raises(DataError, match=r"empty.*\.tif"):
        open_collection(str(tmp_path))
    (tmp_path / "notes.docx").write_text("no image")
    with pytest.raises(DataError, match=r"no supported file.*\.tif"):
        open_collection(str(tmp_path))
    with pytest.raises(DataError, match="matches"):
        open_collection(str(tmp_path / "*.tif"))


@pytest.mark.parametrize("kind", ["text", "truncated"])
def test_broken_files(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "good.tif", pixels(3, 64, 64))
    bad = write(tmp_path / "bad.tif", pixels(3, 64, 64))
    bad.write_bytes(b"this is text" if kind == "text" else bad.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"bad\.tif"):
        open_collection(str(tmp_path))
    collection = open_collection(str(tmp_path), allow_broken=True)
    assert len(collection) == 1
    assert any("bad.tif" in notice for notice in collection.notices)


def test_where_every_file_is_broken_the_reason_is_a_files(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("no image")
    (tmp_path / "b.tif").symlink_to(tmp_path / "gone.tif")
    with pytest.raises(DataError, match=r"none of the 1 files can be read; the first: .*a\.tif: cannot be read"):
        open_collection(str(tmp_path), allow_broken=True)


def test_image_without_a_valid_pixel(tmp_path: Path) -> None:
    write(tmp_path / "empty.tif", np.zeros((3, 16, 16), np.uint16), nodata=0)
    with pytest.raises(DataError, match="valid pixel"):
        open_collection(str(tmp_path))
    write(tmp_path / "full.tif", pixels(), nodata=0)
    collection = open_collection(str(tmp_path))
    assert len(collection) == 1
    assert any("empty.tif" in notice for notice in collection.notices)


@pytest.mark.parametrize(("dtype", "offset", "step"), [("int32", 2**31 - 2000, 128), ("uint64", 2**40, 131072), ("int32", 5, 0)])
def test_integers_that_are_rounded_are_told(tmp_path: Path, dtype: str, offset: int, step: int) -> None:
    np.save(tmp_path / "a.npy", (offset + RNG.integers(0, 1000, (20, 2, 24, 24))).astype(dtype))
    notices = open_collection(str(tmp_path / "a.npy"), options=ReadOptions(axes="NCHW")).notices
    told = [notice for notice in notices if "rounded to float32" in notice]
    assert len(told) == (step > 0)
    assert all(f"multiples of {step}:" in notice for notice in told)


def test_huge_scene_is_never_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "count": 2, "height": 20000, "width": 20000, "dtype": "uint8", "sparse_ok": True}
    with rasterio.open(path, "w", tiled=True, **profile) as file:
        file.write(np.full((2, 256, 256), 7, np.uint8), window=rasterio.windows.Window(10000, 10000, 256, 256))
    collection = open_collection(str(path))
    assert collection.layout == "scenes"
    assert collection.read(0, Window(10000, 10000, 4, 4)).pixels.min() == 7


def test_synthetic_is_picklable() -> None:
    collection = open_collection("synthetic", synthetic_images=16, seed=3)
    copy = pickle.loads(pickle.dumps(collection))
    assert (copy.read(5).pixels == collection.read(5).pixels).all()
    assert (copy.layout, len(copy), len(copy.channel_names)) == ("array", 16, 13)
    assert (open_collection("synthetic", synthetic_images=16, seed=4).read(5).pixels != copy.read(5).pixels).any()


def test_a_truncated_file_is_named_whatever_other_threads_open(tmp_path):
    for i in range(24):
        tifffile.imwrite(tmp_path / f"{i:02d}.tif", np.zeros((5, 64, 64), np.uint16), metadata={"axes": "CYX"})
    broken = tmp_path / "13.tif"
    broken.write_bytes(broken.read_bytes()[:20_000])
    for _ in range(5):
        with pytest.raises(DataError, match=r"13\.tif: cannot be read"):
            open_collection(str(tmp_path))


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


def cubes(folder: Path, *names: str, size: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        np.save(folder / f"{name}.npy", pixels(5, size, size))
    return folder


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


@pytest.mark.skipif(os.name != "posix", reason="file names are text elsewhere")
def test_file_names_that_are_no_text(tmp_path):
    data = cubes(tmp_path / "data", "a", "b", "c")
    os.rename(os.fsencode(data / "a.npy"), os.fsencode(data) + b"/im_\xe9.npy")
    collection = open_collection(str(data))
    assert collection.relative_paths == ("b.npy", "c.npy", "im_\\xe9.npy")
    assert len(split_collection(collection, image_size=16).digest) == 16


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


def test_transparency_is_told(tmp_path):
    for index in range(3):
        array = RNG.integers(0, 256, (16, 16, 4), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    collection = open_collection(str(tmp_path))
    assert collection.channel_names == ("red", "green", "blue")
    assert "0.png: its alpha channel is transparency: it says which pixels are valid (3 files)" in collection.notices
    assert np.array_equal(collection.read(2).valid[0], array[..., 3] > 0)


def test_measurements_are_no_classes(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 5, 16, 16), np.float32) + np.arange(5)[:, None, None])
    np.save(tmp_path / "y.npy", np.array([0.5, 1, np.nan, 2]))
    with pytest.raises(DataError, match="no whole numbers"):
        open_collection(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"))


def placed(path: Path, array: np.ndarray, east: float, north: float = 5e6, epsg: int = 32633) -> Path:
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype.name}
    transform = rasterio.transform.from_origin(east, north, 10, 10)
    with rasterio.open(path, "w", crs=f"EPSG:{epsg}", transform=transform, **profile) as file:
        file.write(array)
    return path


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


def test_labels_beside_the_pixels_are_told(tmp_path):
    scene = placed(tmp_path / "scene.tif", pixels(5, 90, 90), 400_000)
    truth = RNG.integers(0, 3, (1, 90, 90), dtype=np.uint8)
    for east, epsg, shift in ((400_005, 32633, "0.50"), (399_998, 32633, "0.20"), (400_000.4, 32633, ""), (400_000, 25833, "")):
        labels = placed(tmp_path / "truth.tif", truth, east, epsg=epsg)
        notices = [notice for notice in open_collection(str(scene), labels=str(labels)).notices if "beside" in notice]
        assert [notice.split(",")[0] for notice in notices] == (
            [f"scene.tif: the labels lie {shift} of a pixel beside the image"] if shift else []
        )


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


def test_a_label_raster_is_not_another_places(tmp_path):
    for name, east in (("here", 400_000), ("later", 400_000), ("there", 700_000)):
        placed(tmp_path / f"{name}.tif", pixels(5, 90, 90), east)
    labels = placed(tmp_path / "truth.tif", RNG.integers(0, 3, (1, 90, 90), dtype=np.uint8), 400_000)
    collection = open_collection(str(tmp_path), labels=str(labels))
    assert [raster is not None for raster in collection.label_rasters] == [True, True, False]
    assert "the labels apply to the 2 images of their size and place; 1 others have none (there.tif)" in collection.notices


@pytest.mark.parametrize(
    ("count", "side", "layout"),
    [(4, 48, "scenes"), (4, 47, "images"), (5, 48, "images"), (15, 60, "images"), (15, 144, "scenes"), (16, 144, "images")],
)
def test_few_images_that_cannot_be_cut_are_no_scenes(tmp_path, count, side, layout):
    assert open_collection(str(cubes(tmp_path, *(f"{i}" for i in range(count)), size=side))).layout == layout


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


def test_a_picture_of_colours_says_no_classes(tmp_path):
    scene = placed(tmp_path / "scene.tif", pixels(5, 90, 90), 400_000)
    colours = RNG.integers(0, 2, (1, 90, 90), dtype=np.uint8) * np.array([255, 80, 0], dtype=np.uint8)[:, None, None]
    colours[0] += 7
    with pytest.raises(DataError, match="whose sum differs from pixel to pixel"):
        open_collection(str(scene), labels=str(placed(tmp_path / "colours.tif", colours, 400_000)))
    shares = RNG.dirichlet([0.3] * 3, (90, 90)).transpose(2, 0, 1).astype(np.float32)
    collection = open_collection(str(scene), labels=str(placed(tmp_path / "shares.tif", shares, 400_000)))
    assert np.array_equal(collection.read_labels(0), shares.argmax(0))


def test_patterns_that_leave_nothing_out_and_shapes_are_told(tmp_path):
    write(tmp_path / "a.tif", pixels(3, 48, 48))
    collection = open_collection(str(tmp_path), exclude=("*_qa.tif", "*.TIF"))
    assert "data.exclude: no file is called like *_qa.tif, *.TIF" in collection.notices
    (tmp_path / "shapes.geojson").write_text("{}")
    with pytest.raises(DataError, match="gdal_rasterize"):
        open_collection(str(tmp_path / "a.tif"), labels=str(tmp_path / "shapes.geojson"))
