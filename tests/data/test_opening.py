"""Sources opened: their layout, and broken, empty and huge files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from scipy.io import savemat

from auxmae.data.image import ReadOptions, Window
from auxmae.data.opening import open_collection
from auxmae.errors import DataError
from tests.data.small_files import RNG, cubes, pixels, write


def test_real_scenes_with_only_the_path(shared_data: Path) -> None:
    collection = open_collection(str(shared_data / "sentinel2"))
    assert (collection.layout, len(collection)) == ("scenes", 4)
    assert collection.channel_names[0] == "B01"
    assert len(collection.channel_names) == 13
    assert any("--labels" in notice and "landcover" in notice for notice in collection.notices)
    assert any("no channel names" in notice for notice in collection.notices)
    assert collection.describe().startswith("4 scenes, 13 channels (B01 … B12), 101×100 to 264×264 px, uint16")


@pytest.mark.parametrize("kind", ["text", "truncated"])
def test_broken_files(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "good.tif", pixels(3, 64, 64))
    bad = write(tmp_path / "bad.tif", pixels(3, 64, 64))
    bad.write_bytes(b"this is text" if kind == "text" else bad.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"bad\.tif") as told:
        open_collection(str(tmp_path))
    assert str(told.value.hint).endswith("leave it out with data.exclude or data.allow_broken")
    with pytest.raises(DataError, match=r"bad\.tif") as told:
        open_collection(str(bad))
    assert "data.allow_broken" not in str(told.value.hint)
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


def test_a_scene_is_said_to_be_empty_only_when_all_of_it_was_looked_at(tmp_path: Path) -> None:
    side = 6000
    profile = {"driver": "GTiff", "count": 1, "height": side, "width": side, "dtype": "uint8", "nodata": 0, "sparse_ok": True}
    with rasterio.open(tmp_path / "island.tif", "w", tiled=True, **profile) as file:
        # Beside the windows that are looked at first, whose grid has gaps in an image as large as this.
        file.write(np.full((1, 16, 16), 7, np.uint8), window=rasterio.windows.Window(5200, 560, 16, 16))
    assert len(open_collection(str(tmp_path / "island.tif"))) == 1
    with rasterio.open(tmp_path / "sea.tif", "w", tiled=True, **profile):
        pass
    collection = open_collection(str(tmp_path))
    assert [collection.name_of(item) for item in range(len(collection))] == ["island.tif"]
    assert any("left out: sea.tif has no valid pixel" in notice for notice in collection.notices)


def test_images_of_an_array_without_a_valid_pixel_are_told_in_one_line(tmp_path: Path) -> None:
    array = RNG.random((12, 3, 16, 16))
    array[2:9] = np.nan
    np.save(tmp_path / "a.npy", array)
    collection = open_collection(str(tmp_path / "a.npy"))
    assert collection.items[:, 1].tolist() == [0, 1, 9, 10, 11]
    told = [notice for notice in collection.notices if "left out" in notice]
    assert told == [
        "left out: a.npy, image 2 and 6 more of its 12 have no valid pixel (all nodata, NaN, or beyond the range of float32)"
    ]


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


def test_a_fourth_band_is_a_channel_in_every_file_or_in_none(tmp_path):
    chips = {name: RNG.integers(1, 255, (4, 24, 24)).astype(np.uint8) for name in "abc"}
    chips["empty"], chips["bright"] = np.zeros((4, 24, 24), np.uint8), chips["a"].copy()
    chips["bright"][3] = 255
    for name, chip in chips.items():
        write(tmp_path / "infrared" / f"{name}.tif", chip)
        cutout = chip.copy()
        cutout[3] = np.where(chip[0] > 100, 255, 0)
        write(tmp_path / "cutouts" / f"{name}.tif", cutout)
    collection = open_collection(str(tmp_path / "infrared"))
    assert (len(collection), len(collection.channel_names)) == (5, 4)
    for item in range(5):
        image = collection.read(item)
        assert image.valid.all()
        assert np.array_equal(image.pixels, chips[Path(collection.name_of(item)).stem])
    assert sum("is read as a channel" in notice for notice in collection.notices) == 2
    (told,) = (notice for notice in collection.notices if notice.startswith("bright.tif and 1 more: "))
    assert "is read as a channel, as in a.tif" in told
    # An empty chip among real cutouts is nowhere valid, and left out.
    collection = open_collection(str(tmp_path / "cutouts"))
    assert (len(collection), len(collection.channel_names)) == (4, 3)
    assert np.array_equal(collection.read(0).valid[0], chips["a"][0] > 100)


def test_soft_transparency_in_a_few_files_is_transparency_in_all(tmp_path):
    tiles = {name: RNG.integers(1, 256, (4, 24, 24)).astype(np.uint8) for name in "abcdef"}
    for name, tile in tiles.items():
        tile[3] = np.where(tile[0] > 60, 255, 0) if name in "abc" else 255
    tiles["e"][3, :4], tiles["f"][3] = np.arange(24), 128
    for name, tile in tiles.items():
        write(tmp_path / f"{name}.tif", tile)
    collection = open_collection(str(tmp_path), layout="images")
    assert (len(collection), len(collection.channel_names)) == (6, 3)
    for item in range(6):
        tile, image = tiles[Path(collection.name_of(item)).stem], collection.read(item)
        assert np.array_equal(image.valid, np.broadcast_to(tile[3] > 0, (3, 24, 24)))
        assert np.array_equal(image.pixels, np.where(tile[3] > 0, tile[:3], 0))
    (told,) = (notice for notice in collection.notices if "f.tif" in notice)
    assert told.startswith("f.tif: the last band is marked as transparency and is that, as in d.tif")


def test_transparency_is_told(tmp_path):
    for index in range(3):
        array = RNG.integers(0, 256, (16, 16, 4), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    collection = open_collection(str(tmp_path))
    assert collection.channel_names == ("red", "green", "blue")
    assert "0.png: its alpha channel is transparency: it says which pixels are valid (3 files)" in collection.notices
    assert np.array_equal(collection.read(2).valid[0], array[..., 3] > 0)


@pytest.mark.parametrize(
    ("count", "side", "layout"),
    [(4, 48, "scenes"), (4, 47, "images"), (5, 48, "images"), (15, 60, "images"), (15, 144, "scenes"), (16, 144, "images")],
)
def test_few_images_that_cannot_be_cut_are_no_scenes(tmp_path, count, side, layout):
    assert open_collection(str(cubes(tmp_path, *(f"{i}" for i in range(count)), size=side))).layout == layout


@pytest.mark.parametrize("suffix", [".mat", ".npz", ".npy"])
@pytest.mark.parametrize(
    ("count", "budget", "layout"), [(3, 1.5, "scenes"), (3, 2, "scenes"), (1, 0.5, "scenes"), (3, 1.5, "images")]
)
def test_scenes_that_are_decoded_again_for_each_crop_are_told(tmp_path, monkeypatch, suffix, count, budget, layout):
    scene = RNG.uniform(size=(64, 64, 60))
    write = {".mat": lambda path: savemat(path, {"x": scene}), ".npz": lambda path: np.savez(path, x=scene)}
    for index in range(count):
        write.get(suffix, lambda path: np.save(path, scene))(tmp_path / f"{index}{suffix}")
    monkeypatch.setattr("auxmae.data.readers.cache.BUDGET", budget * scene.nbytes)
    notices = open_collection(str(tmp_path), layout=layout, options=ReadOptions(axes="HWC")).notices
    told = [notice for notice in notices if "most samples decode a whole file" in notice]
    assert len(told) == (suffix != ".npy" and count == 3 and budget == 1.5 and layout == "scenes")


@pytest.mark.parametrize(("budget", "layout"), [(2.9, "scenes"), (3, "scenes"), (2.9, "images")])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pictures_that_are_decoded_again_for_each_crop_are_told(tmp_path, monkeypatch, mode, budget, layout):
    stored = RNG.integers(1, 256, (90, 80, len(mode)), dtype=np.uint8)
    for index in range(3):
        Image.fromarray(stored.squeeze(), mode).save(tmp_path / f"{index}.png")
    monkeypatch.setattr("auxmae.data.readers.cache.BUDGET", budget * stored.nbytes)
    notices = open_collection(str(tmp_path), layout=layout).notices
    told = [notice for notice in notices if "most samples decode a whole file" in notice]
    assert len(told) == (budget == 2.9 and layout == "scenes")
    assert all("tiled GeoTIFF" in notice for notice in told)


@pytest.mark.parametrize("checked", [2000, 3])
def test_files_of_one_byte_a_pixel_among_others_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: int) -> None:
    monkeypatch.setattr("auxmae.data.pixel_checks.CHECKED_IMAGES", checked)
    for number in range(4):
        write(tmp_path / f"{number}.tif", pixels(3, 32, 32).astype(np.uint8 if number == 2 else np.uint16))
    (told,) = open_collection(str(tmp_path)).warnings
    assert told.startswith("1 of 4 files are stored as uint8, such as 2.tif, others as uint16, such as 0.tif")
    assert open_collection(str(tmp_path), exclude=["2.tif"]).warnings == []


def test_images_of_other_units_are_told(tmp_path: Path) -> None:
    """Counts among reflectances, whether the files hold them so or say how they are scaled."""
    for number in range(12):
        counts = RNG.integers(1000, 3000, (3, 32, 32)).astype(np.uint16)
        write(tmp_path / "dtypes" / f"{number:02d}.tif", counts if number % 3 else (counts / 1e4).astype(np.float32))
        scaled = write(tmp_path / "scales" / f"{number:02d}.tif", counts)
        if not number % 3:
            with rasterio.open(scaled, "r+") as file:
                file.scales = (1e-4,) * 3
        write(tmp_path / "alike" / f"{number:02d}.tif", counts // (1 + number))
    for folder in ("dtypes", "scales"):
        (warning,) = open_collection(str(tmp_path / folder)).warnings
        assert warning.startswith("4 of 12 images reach 0.")
        assert "and 8 at least " in warning
    assert not open_collection(str(tmp_path / "alike")).warnings


def test_large_images_of_which_a_part_reaches_less_are_not_of_other_units(tmp_path: Path) -> None:
    """Elevation models whose windows looked at are at sea level."""
    for number in range(4):
        heights = RNG.uniform(500, 2000, (1, 600, 600)).astype(np.float32)
        if number < 2:
            heights[:, 80:, 80:] = RNG.uniform(0, 4, (520, 520))
        write(tmp_path / f"{number}.tif", heights)
    assert not open_collection(str(tmp_path)).warnings
