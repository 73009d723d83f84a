"""Images that are stored one file a channel."""

from __future__ import annotations

import itertools
import pickle
import shlex
import uuid
from pathlib import Path

import numpy as np
import pytest
import tifffile

from auxmae.build import open_data
from auxmae.data.image import Window
from auxmae.data.joining import _without
from auxmae.data.opening import open_collection
from auxmae.errors import DataError
from auxmae.settings import load_settings
from tests.data.small_files import pixels, placed

RNG = np.random.default_rng(3)


def store(path: Path, side: int = 24, dtype: type = np.uint16) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(1, 5000, (side, side)).astype(dtype)
    tifffile.imwrite(path, array)
    return array


@pytest.mark.parametrize(
    ("name", "pattern", "image"),
    [
        ("{site}/{site}_B{channel}.tif", r"_(B\d+)\.tif$", "{site}/{site}.tif"),
        ("{site}/B{channel}.tif", r"(B\d+)\.tif$", "{site}"),
        ("x/B{channel}/{site}.tif", r"/(B\d+)/", "x/{site}.tif"),
        ("B{channel}-{site}.ome.tif", r"^(B\d+)-", "{site}.ome.tif"),
        ("{site}.B{channel}.t0.tif", r"(B\d+)", "{site}.t0.tif"),
        ("{site} B{channel}/image.tif", r"(B\d+)", "{site}/image.tif"),
    ],
)
def test_however_the_channels_are_named(tmp_path, name, pattern, image):
    sites, channels = ("m", "n", "o"), ("1", "2", "10")
    arrays = {
        site: np.stack([store(tmp_path / "data" / name.format(site=site, channel=channel)) for channel in channels])
        for site in sites
    }
    collection = open_collection(str(tmp_path / "data"), channel_pattern=pattern, layout="images")
    assert collection.channel_names == ("B1", "B2", "B10")
    assert sorted(collection.relative_paths) == [image.format(site=site) for site in sites]
    for item, path in enumerate(collection.relative_paths):
        (site,) = (site for site in sites if image.format(site=site) == path)
        assert np.array_equal(collection.read(item).pixels, arrays[site])
        assert np.array_equal(collection.read(item, Window(5, 3, 9, 11)).pixels, arrays[site][:, 5:14, 3:14])
    pickle.loads(pickle.dumps(collection))


def test_a_channel_of_few_values_is_a_channel_beside_files_of_several(tmp_path):
    arrays = {name: store(tmp_path / "data" / f"{name}.tif") for name in ("s_B1", "t_B1")}
    for site in "st":
        # Nearly nothing is to be seen in this one.
        arrays[f"{site}_B2"] = arrays[f"{site}_B1"] % 3
        tifffile.imwrite(tmp_path / "data" / f"{site}_B2.tif", arrays[f"{site}_B2"])
        tifffile.imwrite(tmp_path / "data" / f"{site}_preview.tif", np.zeros((24, 24, 3), np.uint8), photometric="rgb")
    collection = open_collection(str(tmp_path / "data"), channel_pattern=r"_(B\d)\.tif$", layout="images")
    assert collection.channel_names == ("B1", "B2")
    for item, site in enumerate("st"):
        assert np.array_equal(collection.read(item).pixels, np.stack([arrays[f"{site}_B1"], arrays[f"{site}_B2"]]))


def test_what_is_left_of_a_path():
    assert _without("a_B1.tif", 2, 4) == "a.tif"
    assert _without("B1.tif", 0, 2) == "B1.tif"
    assert _without("x.y/a_B1.TIF", 6, 8) == "x.y/a.tif"


def test_what_differs_besides_is_a_group_of_its_own(tmp_path):
    arrays = {}
    for site in ("s1", "s2"):
        for channel in "12":
            identifier = "-".join("".join(RNG.choice(list("0123456789ABCDEF"), size)) for size in (8, 4, 4))
            arrays[site, channel] = store(tmp_path / "data" / f"A01_{site}_w{channel}{identifier}.tif")
    with pytest.raises(DataError, match="no file for its channel") as caught:
        open_collection(str(tmp_path / "data"), channel_pattern=r"_w(\d)[0-9A-F-]+\.tif$")
    assert "put parentheses around that" in caught.value.hint
    for pattern in (r"_w(\d)([0-9A-F-]+)\.tif$", r"_w(\d)((?:[0-9A-F]+-)*([0-9A-F]+))(x?)(y)?\.tif$"):
        collection = open_collection(str(tmp_path / "data"), channel_pattern=pattern, layout="images")
        assert collection.relative_paths == ("A01_s1_w.tif", "A01_s2_w.tif")
        assert (collection.read(1).pixels == [arrays["s2", channel] for channel in "12"]).all()


def test_coarser_channels_are_repeated(tmp_path):
    fine, coarse, flat = (store(tmp_path / f"s_{name}.tif", side) for name, side in (("a", 60), ("b", 20), ("c", 1)))
    collection = open_collection(str(tmp_path), channel_pattern=r"_(\w)\.tif", layout="images")
    assert {
        "channel b is 3 times coarser: its pixels are repeated; data.exclude leaves files such as s_b.tif out",
        "channel c is 60 times coarser: its pixels are repeated; data.exclude leaves files such as s_c.tif out",
    } <= {*collection.notices}
    whole = np.stack([fine, np.kron(coarse, np.ones((3, 3))), np.kron(flat, np.ones((60, 60)))])
    assert np.array_equal(collection.read(0).pixels, whole)
    for _ in range(20):
        top, left = RNG.integers(0, 59, 2).tolist()
        height, width = RNG.integers(1, 61 - top), RNG.integers(1, 61 - left)
        found = collection.read(0, Window(top, left, int(height), int(width)))
        assert np.array_equal(found.pixels, whole[:, top : top + height, left : left + width])
        assert found.valid.all()


def test_class_folders_labels_and_chosen_channels(tmp_path):
    for index in range(6):
        for channel in ("DAPI", "CD3", "CD8"):
            store(tmp_path / "data" / ("tumour", "stroma")[index % 2] / f"cell{index}" / f"{channel}.tif")
    options = {"channel_pattern": r"(\w+)\.tif$", "channels": ("DAPI", "CD8")}
    collection = open_collection(str(tmp_path / "data"), **options)
    assert (collection.class_names, collection.channel_names) == (("stroma", "tumour"), ("DAPI", "CD8"))
    assert collection.labels.tolist() == [0, 0, 0, 1, 1, 1]
    (tmp_path / "t.csv").write_text("cell,kind\ncell0,x\ncell1,y\ncell5,y\n")
    collection = open_collection(str(tmp_path / "data"), labels=f"{tmp_path / 't.csv'}:kind", **options)
    assert dict(zip(collection.relative_paths, collection.labels.tolist(), strict=True))["tumour/cell0"] == 0


def test_a_table_may_name_one_of_the_files(tmp_path):
    for name in ("m_w1", "m_w2", "n_w1", "n_w2"):
        store(tmp_path / "data" / f"{name}.TIF")
    (tmp_path / "t.csv").write_text("FileName_DAPI,label\nm_w1.TIF,x\nn_w1.TIF,y\n")
    options = {"channel_pattern": r"_(w\d)\.TIF$", "layout": "images"}
    collection = open_collection(str(tmp_path / "data"), labels=str(tmp_path / "t.csv"), **options)
    assert (collection.class_names, collection.labels.tolist()) == (("x", "y"), [0, 1])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"_(z)\.tif", "finds no channel in any path, such as"),
        (r"_(a|b)\.tif", r"n\.tif: there is no file for its channel b"),
        (r"(\w)\.tif", "has a channel 'a' already"),
        (r"_(a|c)\.tif", r"n_c\.tif: 7×7 px, and n_a\.tif of the same image 24×24 px"),
    ],
)
def test_what_does_not_fit(tmp_path, pattern, words):
    for name, side in (("m_a", 24), ("m_b", 24), ("m_c", 24), ("n_a", 24), ("n_c", 7)):
        store(tmp_path / f"{name}.tif", side)
    if "already" in words:
        store(tmp_path / "m-a.tif")
    with pytest.raises(DataError, match=words):
        open_collection(str(tmp_path), channel_pattern=pattern)


def test_incomplete_images_and_other_files_are_told(tmp_path):
    for name in ("m_a", "m_b", "n_a", "overview"):
        store(tmp_path / f"{name}.tif")
    collection = open_collection(str(tmp_path), channel_pattern=r"_(\w)\.tif", allow_broken=True, layout="images")
    assert collection.relative_paths == ("m.tif",)
    assert "left out: n.tif: there is no file for its channel b" in collection.notices
    assert "left out, as data.channel_pattern finds no channel in their paths: overview.tif" in collection.notices


def test_files_of_one_channel_are_told_how_to_be_joined(tmp_path):
    for name in ("m_a", "m_b", "n_a", "n_b"):
        store(tmp_path / f"{name}.tif")
    told = "every file has one channel; where these are channels of one image, say how they are named with data.channel_pattern"
    assert told in open_collection(str(tmp_path)).notices
    assert told not in open_collection(str(tmp_path), channel_pattern=r"_(\w)\.tif").notices


def test_a_file_of_several_channels_is_none(tmp_path):
    tifffile.imwrite(tmp_path / "m_a.tif", np.zeros((3, 24, 24), np.uint16), metadata={"axes": "CYX"}, photometric="minisblack")
    with pytest.raises(DataError, match="it holds 1 × 3 channels"):
        open_collection(str(tmp_path), channel_pattern=r"_(\w)\.tif")


def test_sentinel_2_as_delivered(tmp_path):
    """Folders of several resolutions, bands in more than one of them, and a group that names the channel wherever it stands."""
    arrays = {}
    for side, resolution, bands in ((48, 10, ("B02", "B08")), (24, 20, ("B02", "B05", "B8A")), (8, 60, ("B01", "B02"))):
        for band in bands:
            path = tmp_path / "S2A.SAFE" / "IMG_DATA" / f"R{resolution}m" / f"T33TVM_{band}_{resolution}m.tif"
            arrays.setdefault(band, store(path, side).repeat(48 // side, 0).repeat(48 // side, 1))
    pattern = r"(R[126]0m)/[^/]*_(?P<channel>B[0-9A]+)(_[126]0m)\.tif$"
    collection = open_collection(str(tmp_path), channel_pattern=pattern)
    assert collection.channel_names == ("B01", "B02", "B05", "B08", "B8A")
    assert np.array_equal(collection.read(0).pixels, np.stack([arrays[name] for name in collection.channel_names]))
    assert "of several resolutions the finest is taken: B02" in collection.notices


@pytest.mark.parametrize(
    ("below", "pattern"),
    [
        ("GRANULE/L1C_T33TVM_A023657/IMG_DATA", r"_(B[0-9A]+)\.tif$"),
        ("", r"\dT\d+_(B[0-9A]+)\.tif$"),
        ("GRANULE/L1C_T33TVM_A023657/IMG_DATA", r"\dT\d+_(B[0-9A]+)\.tif$"),
    ],
)
def test_sentinel_2_level_1c_as_delivered(tmp_path, below, pattern):
    """One folder for all resolutions, with a composite in colours; quality masks, called like bands too, lie in another one."""
    granule, arrays = tmp_path / "GRANULE" / "L1C_T33TVM_A023657", {}
    for side, bands in ((48, ("B02", "B08")), (24, ("B05", "B8A")), (8, ("B01", "B09", "B10"))):
        for band in bands:
            array = store(granule / "IMG_DATA" / f"T33TVM_20200101T100031_{band}.tif", side)
            arrays[band] = array.repeat(48 // side, 0).repeat(48 // side, 1)
            store(granule / "QI_DATA" / f"MSK_DETFOO_{band}.tif", side, np.uint8)
    tifffile.imwrite(granule / "IMG_DATA" / "T33TVM_20200101T100031_TCI.tif", np.zeros((48, 48, 3), np.uint8), photometric="rgb")
    collection = open_collection(str(tmp_path / below), channel_pattern=pattern)
    assert (len(collection), collection.channel_names) == (1, ("B01", "B02", "B05", "B08", "B8A", "B09", "B10"))
    assert np.array_equal(collection.read(0).pixels, np.stack([arrays[name] for name in collection.channel_names]))
    told = "".join(notice for notice in collection.notices if notice.startswith("left out"))
    assert "T33TVM_20200101T100031_TCI.tif" in told


@pytest.mark.parametrize("level", ["L2A", "L1C"])
def test_sentinel_2_as_delivered_is_told_what_joins_it(tmp_path, level):
    """Among masks called like bands, classes and composites the bands of L2A are the fewest files."""
    granule, bands = tmp_path / "GRANULE" / level, ("B01", "B02", "B05", "B8A")
    for band, side in zip(bands, (8, 48, 24, 24), strict=True):
        for resolution in (10, 20, 60) if level == "L2A" else (None,):
            if resolution is None:
                store(granule / "IMG_DATA" / f"T33TVM_20200101T100031_{band}.tif", side)
            elif 480 // resolution <= side:
                name = f"T33TVM_20200101T100031_{band}_{resolution}m.tif"
                store(granule / "IMG_DATA" / f"R{resolution}m" / name, 480 // resolution)
        for mask in ("DETFOO", "QUALIT", "CLASSI"):
            store(granule / "QI_DATA" / f"MSK_{mask}_{band}.tif", side, np.uint8)
    tifffile.imwrite(granule / "QI_DATA" / "T33TVM_20200101T100031_PVI.tif", np.zeros((48, 48, 3), np.uint8), photometric="rgb")
    with pytest.raises(DataError, match=r"1 channels and .*PVI\.tif has 3") as told:
        open_collection(str(tmp_path))
    pattern = told.value.hint.split("'")[1]
    joined = open_collection(str(tmp_path), channel_pattern=pattern)
    assert (len(joined), joined.channel_names, joined.read(0).pixels.shape) == (1, bands, (4, 48, 48))


LANDSAT = "LC08_L2SP_19{row}026_20200517_20200820_02_T1_{band}.TIF"


@pytest.mark.parametrize(
    ("name", "bands"),
    [
        (LANDSAT, ("SR_B1", "SR_B2", "SR_B7", "ST_B10")),
        ("T33TV{row}_20200517_{band}.tif", ("B02", "B03", "B8A")),
        ("T33TV{row}_20200517_{band}_20m.tif", ("B02", "B8A")),
        ("{band}/{row}.tif", ("B1", "B2")),
        ("p{row}/{band}.tif", ("red", "green", "nir", "red_edge2")),
        ("r03 c0{row} f1-{band}.tif", ("ch1", "ch2", "ch10")),
        ("cell{row}_{band}.tif", ("C01", "C02")),
        ("{band}/scan_000{row}.tif", ("cam1", "cam2", "cam3")),
        ("line{row}_{band}.tif", ("Camera-1", "Camera-2")),
        ("ortho{row}-{band}.tif", ("Blue", "Green", "RedEdge", "NIR")),
        ("taxol/field{row}_{band}.tif", ("DAPI", "Actin", "Tubulin", "Mito", "ER")),
        ("{band}/donor{row}.tif", ("Hoechst33342", "GFP", "Cy5", "Alexa-488")),
        ("Images/r01c0{row}f01p01-{band}sk1fk1fl1.tiff", ("ch1", "ch2", "ch10")),
        ("B0{row}_s1_{band}.tif", ("w1", "w2")),
        ("B0{row}_{band}.tif", ("DNA", "RNA", "AGP")),
        ("exp_{band}_s{row}_t1.TIF", ("w1DAPI", "w2Cy5-A")),
        ("MFGTMP_140826180002_A0{row}f00{band}.TIF", ("d0", "d1")),
        ("Plate_B0{row}_T0001F001L01A01Z01{band}.tif", ("C01", "C02")),
    ],
)
def test_files_that_look_like_channels_are_told_with_what_joins_them(tmp_path, name, bands):
    arrays = {row: np.stack([store(tmp_path / name.format(row=row, band=band)) for band in bands]) for row in (1, 2, 3)}
    plain = open_collection(str(tmp_path))
    assert len(plain) == 3 * len(bands)
    (told,) = plain.warnings
    command = shlex.split(told[told.index("--set") :].removesuffix(" joins them"))
    source = load_settings(None, overrides=command[1:], options={"data.source": str(tmp_path)}).settings.data
    joined = open_data(source, seed=0)
    assert joined.warnings == []
    assert set(joined.channel_names) == set(bands)
    assert len(joined) == 3
    order = [bands.index(name) for name in joined.channel_names]
    for item in range(3):
        assert any(np.array_equal(joined.read(item).pixels, array[order]) for array in arrays.values())


def test_files_of_imagexpress_with_their_thumbnails_are_told_what_joins_them(tmp_path):
    for well, channel, kind in itertools.product(("B02", "B03", "C02"), (1, 2), ("", "_thumb")):
        store(tmp_path / f"Week1_{well}_s1_w{channel}{kind}{str(uuid.uuid4()).upper()}.tif")
    (told,) = open_collection(str(tmp_path)).warnings
    joined = open_collection(str(tmp_path), channel_pattern=told.split("'")[1])
    assert joined.channel_names == ("w1", "w2")
    assert joined.relative_paths == tuple(f"Week1_{well}_s1.tif" for well in ("B02", "B03", "C02"))


def test_other_files_beside_the_bands_do_not_hide_them(tmp_path):
    for row, band in itertools.product((1, 2), ("SR_B1", "SR_B2", "SR_B3", "QA_PIXEL")):
        store(tmp_path / LANDSAT.format(row=row, band=band))
    (told,) = open_collection(str(tmp_path)).warnings
    pattern = told.split("'")[1]
    assert open_collection(str(tmp_path), channel_pattern=pattern).channel_names == ("SR_B1", "SR_B2", "SR_B3")


def test_a_composite_beside_the_bands_does_not_hide_what_joins_them(tmp_path):
    for row, band in itertools.product((1, 2), ("B02", "B03", "B8A")):
        store(tmp_path / f"T33TV{row}_20200517_{band}.tif")
        tifffile.imwrite(tmp_path / f"T33TV{row}_20200517_TCI.tif", np.zeros((24, 24, 3), np.uint8), photometric="rgb")
    with pytest.raises(DataError, match=r"B02\.tif has 1 channels and .*TCI\.tif has 3") as told:
        open_collection(str(tmp_path))
    pattern = told.value.hint.split("'")[1]
    assert open_collection(str(tmp_path), channel_pattern=pattern).channel_names == ("B02", "B03", "B8A")


@pytest.mark.parametrize(
    "names",
    [
        ("a", "b", "c"), ("x_B1", "y_B1", "z_B1"), ("x_B1", "x_B2", "y_B1"), ("B1", "tree", "house"),
        ("crop_w0h0", "crop_w256h0", "crop_w512h0"), ("dem_W003N51", "dem_W004N51", "dem_W004N52"),
    ],
)  # fmt: skip
def test_images_of_one_channel_are_no_bands(tmp_path, names):
    for name in names:
        store(tmp_path / f"{name}.tif")
    assert open_collection(str(tmp_path)).warnings == []


def test_classes_called_like_what_is_stained_are_no_channels(tmp_path):
    for folder, number in itertools.product(("Actin", "ER", "Golgi", "Mito"), range(3)):
        store(tmp_path / folder / f"cell_{number}.tif")
    collection = open_collection(str(tmp_path))
    assert collection.warnings == []
    assert collection.class_names == ("Actin", "ER", "Golgi", "Mito")


def test_a_channel_of_another_type_is_told_with_a_way_out(tmp_path):
    for row, (band, kind) in itertools.product((1, 2), (("B1", np.int16), ("B2", np.int16), ("QA", np.uint8))):
        store(tmp_path / f"m{row}_{band}.tif", dtype=kind)
    options = {"channel_pattern": r"_(B\d|QA)\.tif$", "layout": "images"}
    (told,) = (notice for notice in open_collection(str(tmp_path), **options).notices if "uint8" in notice)
    assert told.startswith("channel QA is stored as uint8, most others as int16")
    assert "files such as m1_QA.tif out with data.exclude" in told
    apart = open_collection(str(tmp_path), exclude=["*_QA.tif"], **options)
    assert apart.channel_names == ("B1", "B2")
    assert not any("stored as" in notice for notice in apart.notices)


def test_channels_that_lie_beside_others_are_told(tmp_path):
    for site in ("a", "b"):
        for channel, east in (("1", 400_000), ("2", 400_000.2), ("3", 400_003), ("4", 400_003)):
            placed(tmp_path / f"{site}_c{channel}.tif", pixels(1, 64, 64), east)
    collection = open_collection(str(tmp_path), channel_pattern=r"_(c\d)\.tif$")
    told = "a.tif: channels c3, c4 lie 0.30 of a pixel beside channel c1, and are read as if at its place (as up to half of one)"
    assert [notice for notice in collection.notices if "beside channel" in notice] == [f"{told} (2 files)"]
