"""TIFF, ENVI and picture files that are easily read wrong, written by another library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from auxmae.data.digests import digest_files
from auxmae.data.image import ReadOptions
from auxmae.data.opening import open_collection
from auxmae.data.readers import is_readable, open_image
from auxmae.data.readers.wavelengths import to_nanometres
from auxmae.errors import DataError
from tests.data.reader_fixtures import CUBE, PART, RNG, WINDOW, assert_reads, write_raster


def test_pages_written_one_by_one_are_channels(tmp_path: Path) -> None:
    for name, options in (("described.tif", {}), ("plain.tif", {"metadata": None})):
        with tifffile.TiffWriter(tmp_path / name) as file:
            for plane in CUBE:
                file.write(plane, **options)
        assert_reads(tmp_path / name, CUBE)
    first, *rest = [Image.fromarray(plane) for plane in CUBE]
    first.save(tmp_path / "pillow.tif", save_all=True, append_images=rest, compression="tiff_deflate")
    assert_reads(tmp_path / "pillow.tif", CUBE)


def test_georeferenced_pages_are_channels(tmp_path: Path) -> None:
    cube = RNG.integers(1, 60000, (12, 17, 23)).astype(np.uint16)
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500000, 0, 10, 10)}
    for number, plane in enumerate(cube):
        write_raster(tmp_path / "a.tif", plane[None], **place, **({"APPEND_SUBDATASET": "YES"} if number else {}))
    assert_reads(tmp_path / "a.tif", cube)
    georeference = open_image(tmp_path / "a.tif").georeference
    assert georeference is not None
    assert georeference["crs"] == "EPSG:32633"


def test_thumbnails_and_overviews_are_no_channels(tmp_path: Path) -> None:
    for name, kind in (("flagged.tif", 1), ("unflagged.tif", 0)):
        with tifffile.TiffWriter(tmp_path / name) as file:
            file.write(np.moveaxis(CUBE, 0, 2).copy(), photometric="minisblack", planarconfig="contig", metadata=None)
            file.write(CUBE[0, ::4, ::4].copy(), subfiletype=kind, metadata=None)
        assert_reads(tmp_path / name, CUBE)
    write_raster(tmp_path / "overviews.tif", CUBE)
    with rasterio.open(tmp_path / "overviews.tif", "r+") as file:
        file.build_overviews([2, 4])
    assert_reads(tmp_path / "overviews.tif", CUBE)


def test_pages_of_several_sizes_are_asked_about(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in (CUBE[0], CUBE[1], CUBE[2, ::2, ::2].copy(), CUBE[3, ::2, ::2].copy()):
            file.write(plane, metadata=None)
    with pytest.raises(DataError, match=r"pages are not alike.*17 × 23.*9 × 12.*one size"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("first", [1, 3])
def test_arrays_of_several_lengths_are_asked_about(tmp_path: Path, first: int) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for planes in (CUBE[:first], CUBE[first:]):
            file.write(planes, photometric="minisblack")
    with pytest.raises(DataError, match=r"arrays are not alike \(.*3 × 17 × 23.*file of its own"):
        open_image(tmp_path / "a.tif")


def test_channels_last_written_as_pages(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(CUBE.astype(np.float32), 0, 2).copy(), photometric="minisblack")
    assert_reads(tmp_path / "a.tif", CUBE)


@pytest.mark.parametrize(
    "description", ['{"shape": [4, 20, 30]}', '{"shape": [4, 34, 46]}', '<?xml version="1.0"?><OME><Image></OME>']
)
@pytest.mark.parametrize("pages", [1, 4])
def test_descriptions_that_are_not_of_the_pages(tmp_path: Path, description: str, pages: int) -> None:
    """As ImageMagick leaves them where it resizes what tifffile has written."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, plane in enumerate(CUBE[:pages]):
            file.write(plane, description=None if number else description, metadata=None)
    assert_reads(tmp_path / "a.tif", CUBE[:pages])


@pytest.mark.parametrize(("tag", "needed"), [(65000, False), (273, True)])
def test_tags_that_lie_outside_the_file(tmp_path: Path, tag: int, needed: bool) -> None:
    path = tmp_path / "a.tif"
    extra = [(65000, "d", 3, (1.0, 2.0, 3.0), True)]
    tifffile.imwrite(path, CUBE, photometric="minisblack", planarconfig="separate", metadata=None, extratags=extra)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].tags[tag].offset
    content = bytearray(path.read_bytes())
    content[offset + 8 : offset + 12] = (10**9).to_bytes(4, "little")
    path.write_bytes(content)
    if needed:
        with pytest.raises(DataError, match=r"a\.tif"):
            open_image(path).read(0, None)
    else:
        assert_reads(path, CUBE)


def test_axes_of_pages_that_nothing_tells_are_asked_about(tmp_path: Path) -> None:
    cube = RNG.integers(1, 60000, (31, 100, 80)).astype(np.uint16)
    path, last = tmp_path / "a.tif", np.moveaxis(cube, 0, 2).copy()
    tifffile.imwrite(path, last, photometric="minisblack")
    with pytest.raises(DataError, match=r"which axis of 100 × 80 × 31 .*\"HWC\" \(31 channels of 100 × 80 px\)"):
        open_image(path)
    for options in (ReadOptions(axes="HWC"), ReadOptions(channels=31), ReadOptions(plane=(100, 80))):
        assert_reads(path, cube, options)
    tifffile.imwrite(path, last, photometric="minisblack", metadata={"axes": "YXC"})
    assert_reads(path, cube)
    tifffile.imwrite(path, cube, photometric="minisblack", metadata=None)
    assert_reads(path, cube)


@pytest.mark.parametrize("layout", ["single", "pages", "gdal"])
def test_masks_inside_a_tiff(tmp_path: Path, layout: str) -> None:
    inside, path = CUBE[0] > 30000, tmp_path / "a.tif"
    if layout == "gdal":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write_raster(path, CUBE)
            with rasterio.open(path, "r+") as file:
                file.write_mask(inside)
    else:
        with tifffile.TiffWriter(path) as file:
            for planes in [np.moveaxis(CUBE, 0, 2).copy()] if layout == "single" else list(CUBE):
                file.write(planes, photometric="minisblack", planarconfig="contig" if layout == "single" else None, metadata=None)
            file.write(inside, subfiletype=4, photometric="mask", metadata=None)
    for window, part in ((None, np.s_[:]), (WINDOW, PART)):
        image = open_image(path).read(0, window)
        assert np.array_equal(image.valid, np.broadcast_to(inside, CUBE.shape)[part])
        assert np.array_equal(image.pixels, np.where(inside, CUBE, 0)[part])


def test_a_fourth_band_is_transparency_only_if_it_looks_so(tmp_path: Path) -> None:
    infrared = RNG.integers(1, 255, (4, 17, 23)).astype(np.uint8)
    assert_reads(write_raster(tmp_path / "rgbn.tif", infrared), infrared)
    cutout = infrared.copy()
    cutout[3] = np.where(infrared[3] > 100, 255, 0)
    image = open_image(write_raster(tmp_path / "rgba.tif", cutout)).read(0, None)
    assert np.array_equal(image.valid, np.broadcast_to(cutout[3] > 0, (3, 17, 23)))
    assert np.array_equal(image.pixels, np.where(cutout[3] > 0, cutout[:3], 0))


@pytest.mark.parametrize("nodata", [None, 7])
@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("bands", [3, 4])
def test_transparency_says_what_is_valid_whatever_the_bands(tmp_path: Path, bands: int, kind: str, nodata: int | None) -> None:
    cube, shown = RNG.integers(1, 100, (bands, 17, 23)).astype(kind), RNG.random((17, 23)) > 0.5
    full = {"uint8": 255, "int16": 32767, "float32": 1}[kind]
    path = write_raster(tmp_path / "a.tif", np.concatenate([cube, np.where(shown, full, 0)[None].astype(kind)]), nodata=nodata)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [*file.colorinterp[:-1], rasterio.enums.ColorInterp.alpha]
    valid = shown & (cube != nodata) if nodata else np.broadcast_to(shown, cube.shape)
    for window, part in ((None, np.s_[:]), (WINDOW, PART)):
        image = open_image(path).read(0, window)
        assert np.array_equal(image.valid, valid[part])
        assert np.array_equal(image.pixels, np.where(valid, cube, 0)[part])


def test_nodata_scale_and_offset_of_each_band(tmp_path: Path) -> None:
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{band}"><NoDataValue>{CUBE[band - 1, 4, 6]}</NoDataValue>'
        f"<Scale>{band}</Scale><Offset>{10 * band}</Offset><SimpleSource><SourceFilename relativeToVRT='1'>a.tif"
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in range(1, 5)
    )
    write_raster(tmp_path / "a.tif", CUBE)
    path = tmp_path / "b.tif"
    path.write_text(f'<VRTDataset rasterXSize="23" rasterYSize="17">{bands}</VRTDataset>')
    from auxmae.data.readers import geotiff

    image = geotiff.open_file(path, ReadOptions()).read(0, None)
    numbers = np.arange(1, 5)[:, None, None]
    valid = CUBE[:, 4, 6][:, None, None] != CUBE
    assert np.array_equal(image.valid, valid)
    assert np.array_equal(image.pixels, np.where(valid, CUBE * numbers + 10.0 * numbers, 0).astype(np.float32))


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ([400.0, 500.5], "Nanometers", (400.0, 500.5)),
        ([0.4, 2.5], "Micrometers", (400.0, 2500.0)),
        ([0.4, 2.5], "um", (400.0, 2500.0)),
        ([0.004], "Millimeters", (4000.0,)),
        ([4000.0], "Angstroms", (400.0,)),
        ([1000.0, 2000.0], "Wavenumber", (10000.0, 5000.0)),
        ([89.0], "GHz", None),
        ([1.0, 2.0], "Index", None),
        ([400.0], "Unknown", None),
        ([0.4, 2.5], "", (400.0, 2500.0)),
        ([90.0, 400.0], "", (90.0, 400.0)),
        ([0.0, 400.0], "Nanometers", None),
    ],
)
def test_units_of_wavelengths(tmp_path: Path, values: list[float], unit: str, expected: tuple[float, ...] | None) -> None:
    found = to_nanometres(values, unit)
    assert found is expected is None or found == pytest.approx(expected)
    write_raster(tmp_path / "a.img", CUBE[: len(values)], "ENVI")
    with (tmp_path / "a.hdr").open("a") as file:
        file.write(f"wavelength = {{{', '.join(map(str, values))}}}\n" + (f"wavelength units = {unit}\n" if unit else ""))
    found = open_image(tmp_path / "a.hdr").wavelengths
    assert found is expected is None or found == pytest.approx(expected)


@pytest.mark.parametrize("suffix", [".img", ".dat", ".bsq", ".bil", ".bip", ".raw", ""])
def test_envi_data_is_found_by_either_name(tmp_path: Path, suffix: str) -> None:
    interleave = suffix[1:] if suffix in (".bsq", ".bil", ".bip") else "bsq"
    data = write_raster(tmp_path / f"a{suffix}", CUBE, "ENVI", interleave=interleave)
    assert is_readable(data)
    assert_reads(data, CUBE)
    assert_reads(tmp_path / "a.hdr", CUBE)
    assert len(open_collection(str(tmp_path))) == 1
    (tmp_path / "a.hdr").unlink()
    assert is_readable(data) == (suffix == ".img")
    with pytest.raises(DataError):
        open_image(data)


@pytest.mark.parametrize(("flags", "told"), [("1, 0, 1", "1 of 3 bands as bad (bbl): 2;"), ("1, 1, 1", ""), ("0, 0", "")])
def test_bad_bands_of_an_envi_header_are_told(tmp_path: Path, flags: str, told: str) -> None:
    data = write_raster(tmp_path / "a.img", CUBE[:3], "ENVI")
    with (tmp_path / "a.hdr").open("a") as file:
        file.write(f"bbl = {{{flags}}}\n")
    assert_reads(data, CUBE[:3])
    notices = " ".join(open_image(data).notices)
    assert told in notices if told else "bbl" not in notices


def test_erdas_imagine(tmp_path: Path) -> None:
    assert_reads(write_raster(tmp_path / "a.img", CUBE, "HFA"), CUBE)


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_deep_png(tmp_path: Path, bands: int) -> None:
    stored = CUBE[:bands].copy()
    if bands == 4:
        stored[3] = np.where(CUBE[3] > 30000, 65535, 0)
    write_raster(tmp_path / "a.png", stored, "PNG")
    file = open_image(tmp_path / "a.png")
    image = file.read(0, WINDOW)
    shown = stored[3:] > 0 if bands == 4 else np.ones((1, 17, 23), bool)
    assert file.channel_names == (("grey",) if bands == 1 else ("red", "green", "blue"))
    assert np.array_equal(image.valid, np.broadcast_to(shown, stored[:3].shape)[PART])
    assert np.array_equal(image.pixels, (stored[:3] * shown)[PART])


def test_transparent_grey(tmp_path: Path) -> None:
    stored = RNG.integers(1, 255, (17, 23, 2), dtype=np.uint8)
    stored[..., 1] = np.where(stored[..., 1] > 100, 255, 0)
    Image.fromarray(stored, "LA").save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png").read(0, WINDOW)
    shown = stored[None, ..., 1] > 0
    assert np.array_equal(image.valid, shown[PART])
    assert np.array_equal(image.pixels, (stored[None, ..., 0] * shown)[PART])


def test_jpeg_is_turned_as_it_says(tmp_path: Path) -> None:
    stored = np.kron(RNG.integers(0, 255, (2, 3)), np.ones((8, 8))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", quality=100, exif=exif)
    file = open_image(tmp_path / "a.jpg")
    assert (file.height, file.width) == (24, 16)
    assert np.abs(file.read(0, None).pixels[0] - np.rot90(stored, -1)).max() < 8


def test_axes_of_ome_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    stack = np.stack([CUBE, CUBE + 1])
    tifffile.imwrite(path, stack, metadata={"axes": "TCYX"}, byteorder=">", compression="zlib")
    assert_reads(path, stack[1], index=1)
    tifffile.imwrite(path, stack, metadata={"axes": "ZCYX"})
    with pytest.raises(DataError, match=r"ZCYX.*data\.axes = \"NCHW\" or \"CNHW\""):
        open_image(path)
    assert_reads(path, stack[1], ReadOptions(axes="NCHW"), index=1)
    with tifffile.TiffWriter(path) as file:
        for image in stack:
            file.write(image, metadata={"axes": "CYX"})
    assert_reads(path, stack[1], index=1)


@pytest.mark.parametrize("storage", [{}, {"tile": (16, 16)}, {"rowsperstrip": 5}])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("arrangement", ["pages", "contig", "separate"])
def test_windows_of_tiff_segments(tmp_path: Path, storage: dict, compression: str | None, arrangement: str) -> None:
    path, options = tmp_path / "a.tif", {**storage, "compression": compression, "byteorder": ">", "photometric": "minisblack"}
    if arrangement == "pages":
        tifffile.imwrite(path, CUBE, **options)
        assert_reads(path, CUBE)
        return
    with tifffile.TiffWriter(path, byteorder=options.pop("byteorder")) as file:
        for add in range(2):
            cube = CUBE + add if arrangement == "separate" else np.moveaxis(CUBE + add, 0, 2).copy()
            file.write(cube, planarconfig=arrangement, metadata=None, **options)
    axes = "NHWC" if arrangement == "contig" else "NCHW"
    assert_reads(path, (CUBE + 1), ReadOptions(axes=axes), index=1)


def test_jpeg_tiles_that_share_their_tables(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    planes = np.kron(RNG.integers(0, 255, (3, 3, 4)), np.ones((16, 16))).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in planes:
            file.write(plane, compression="jpeg", tile=(32, 32), metadata=None)
    assert_reads(tmp_path / "a.tif", tifffile.imread(tmp_path / "a.tif"))


def write_ome_set(folder: Path, name: str, cube: np.ndarray, described: int, compression: str | None = None) -> None:
    """An OME-TIFF of one file a channel; all but the last `described` files leave its description to the last one."""
    planes = "".join(
        f'<TiffData FirstC="{number}" IFD="0" PlaneCount="1"><UUID FileName="{name}{number}.ome.tif">urn:uuid:{number}</UUID>'
        "</TiffData>"
        for number in range(4)
    )
    names = "".join(f'<Channel ID="Channel:0:{n}" SamplesPerPixel="1" Name="{name}"/>' for n, name in enumerate("abcd"))
    for number, plane in enumerate(cube):
        text = (
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="23" SizeY="17" SizeC="4" '
            f'SizeZ="1" SizeT="1">{names}{planes}</Pixels></Image>'
        )
        if number < 4 - described:
            text = f'<BinaryOnly MetadataFile="{name}3.ome.tif" UUID="urn:uuid:3"/>'
        text = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{number}">{text}</OME>'
        path = folder / f"{name}{number}.ome.tif"
        tifffile.imwrite(path, plane, description=text, metadata=None, compression=compression)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff_in_several_files(tmp_path: Path, compression: str | None) -> None:
    write_ome_set(tmp_path, "", CUBE, 4, compression)
    assert_reads(tmp_path / "0.ome.tif", CUBE)
    assert open_image(tmp_path / "0.ome.tif").channel_names == tuple("abcd")


@pytest.mark.parametrize(("described", "first"), [(4, 0), (1, 3)])
def test_a_folder_has_an_ome_tiff_in_several_files_once(tmp_path: Path, described: int, first: int) -> None:
    write_ome_set(tmp_path, "a", CUBE, described)
    write_ome_set(tmp_path, "b", CUBE + 1, described)
    tifffile.imwrite(tmp_path / "c.ome.tif", CUBE + 2, metadata={"axes": "CYX", "Channel": {"Name": list("abcd")}})
    collection = open_collection(str(tmp_path))
    assert collection.relative_paths == (f"a{first}.ome.tif", f"b{first}.ome.tif", "c.ome.tif")
    for item in range(3):
        assert np.array_equal(collection.read(item).pixels, CUBE + item)
    assert f"a{first}.ome.tif: one OME-TIFF with 3 other files (2 files)" in collection.notices
    assert {path.name for path in collection.files[0].paths} == {f"a{number}.ome.tif" for number in range(4)}
    # One alone is the whole image too.
    assert np.array_equal(open_collection(str(tmp_path / "b3.ome.tif")).read(0).pixels, CUBE + 1)


def test_a_folder_of_ome_tiffs_that_describe_each_other_has_each_image_once(tmp_path: Path) -> None:
    """One image a file, and all files describe all images: positions as Micro-Manager and Bio-Formats write them."""
    sizes, names = [(17, 23), (17, 23), (19, 21)], ["ab", "ba", "ab"]
    cubes = [RNG.integers(0, 4000, (2, *size), dtype=np.uint16) for size in sizes]
    described = "".join(
        f'<Image ID="Image:{k}" Name="Pos{k}"><Pixels ID="Pixels:{k}" DimensionOrder="XYCZT" Type="uint16" SizeX="{size[1]}" '
        f'SizeY="{size[0]}" SizeC="2" SizeZ="1" SizeT="1">'
        + "".join(f'<Channel ID="Channel:{k}:{c}" SamplesPerPixel="1" Name="{name}"/>' for c, name in enumerate(names[k]))
        + f'<TiffData IFD="0" PlaneCount="2"><UUID FileName="s{k}.ome.tif">urn:uuid:{k}</UUID></TiffData></Pixels></Image>'
        for k, size in enumerate(sizes)
    )
    for k, cube in enumerate(cubes):
        text = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{k}">{described}</OME>'
        tifffile.imwrite(tmp_path / f"s{k}.ome.tif", cube, description=text, metadata=None, photometric="minisblack")
    collection = open_collection(str(tmp_path))
    assert collection.relative_paths == ("s0.ome.tif", "s1.ome.tif", "s2.ome.tif")
    assert (len(collection), collection.channel_names) == (3, ("a", "b"))
    for item, cube in enumerate(cubes):
        assert np.array_equal(collection.read(item).pixels, cube[::-1] if item == 1 else cube)
    # One alone knows its own names too.
    (tmp_path / "s0.ome.tif").unlink()
    assert open_image(tmp_path / "s1.ome.tif").channel_names == ("b", "a")


def test_an_ome_tiff_in_several_files_below_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep" / "real").mkdir(parents=True)
    write_ome_set(tmp_path / "disk" / "deep" / "real", "", CUBE, 4)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep", target_is_directory=True)
    collection = open_collection(str(tmp_path / "link" / "real"))
    assert len(collection) == 1
    assert collection.files[0].parts == tuple(tmp_path / "link" / "real" / f"{number}.ome.tif" for number in range(4))
    assert digest_files(collection)
    assert np.array_equal(collection.read(0).pixels, CUBE)


_PEAK = """
import json, re, sys
from pathlib import Path
from auxmae.data.image import Window
from auxmae.data.readers import open_image

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024

import imagecodecs, rasterio, tifffile
small, large = map(Path, sys.argv[1:])
open_image(small).read(0, None)
before = peak()
image = open_image(large).read(0, Window(19000, 19000, 64, 64))
print(json.dumps([peak() - before, float(image.pixels.mean())]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["tiles", "strips", "whole", "pages", "loose pages"])
def test_a_window_of_a_huge_tiff_takes_little_memory(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("imagecodecs")
    side, path = 20000, tmp_path / "large.tif"
    if kind in ("tiles", "strips"):
        profile = {"driver": "GTiff", "count": 1, "height": side, "width": side, "dtype": "uint8", "compress": "deflate"}
        with rasterio.open(path, "w", tiled=kind == "tiles", sparse_ok=True, **profile) as file:
            file.write(np.full((1, 64, side), 7, np.uint8), window=rasterio.windows.Window(0, 19000, side, 64))
    elif kind == "pages":

        def tiles():
            block = np.full((512, 512), 7, np.uint8)
            return (block for _ in range(2 * 40 * 40))

        tifffile.imwrite(path, tiles(), shape=(2, side, side), dtype="uint8", tile=(512, 512), compression="zlib")
    else:
        # Uncompressed and sparse on disk: one strip a page.
        with tifffile.TiffWriter(path, bigtiff=True) as file:
            for _ in range(1 if kind == "whole" else 2):
                file.write(shape=(side, side), dtype="uint8", metadata=None, contiguous=False)
        mapped = tifffile.memmap(path, page=0, mode="r+")
        mapped[19000:19064] = 7
        mapped.flush()
    small = write_raster(tmp_path / "small.tif", CUBE)
    run = subprocess.run([sys.executable, "-c", _PEAK, small, path], capture_output=True, text=True, check=True)
    mebibytes, mean = json.loads(run.stdout)
    assert mean == pytest.approx(7 if kind != "loose pages" else 3.5)
    assert mebibytes < 30


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened.*too long"):
        open_image(tmp_path / ("x" * 5000 + ".tif"))


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
