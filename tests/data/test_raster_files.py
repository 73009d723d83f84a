"""Rasters and pictures whose validity, scale or names are easily read wrong, written by another library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from auxmae.data.image import ReadOptions
from auxmae.data.opening import open_collection
from auxmae.data.readers import is_readable, open_image
from auxmae.data.readers.wavelengths import to_nanometres
from auxmae.errors import DataError
from tests.data.reader_fixtures import CUBE, PART, RNG, WINDOW, assert_reads, write_raster


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
    image = open_image(tmp_path / "a.hdr")
    assert image.wavelengths is expected is None or image.wavelengths == pytest.approx(expected)
    # Bands without a wavelength, as those that a sensor marks as bad, take it from all others, and that is said.
    told = [notice for notice in image.notices if "its wavelengths are not used, since those of 1 of 2 bands" in notice]
    assert len(told) == (min(values) <= 0)


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


@pytest.mark.parametrize("interleave", ["bsq", "bil"])
def test_an_envi_file_that_ends_early_is_refused(tmp_path: Path, interleave: str) -> None:
    path = write_raster(tmp_path / "a.dat", CUBE, "ENVI", interleave=interleave)
    assert_reads(path, CUBE)
    path.write_bytes(path.read_bytes()[: CUBE.nbytes - 2])
    with pytest.raises(
        DataError, match=rf"a.dat: it has {CUBE.nbytes - 2} bytes, of {CUBE.nbytes} that its ENVI header promises"
    ):
        open_image(path)


@pytest.mark.parametrize(("flags", "told"), [("1, 0, 1", "1 of 3 bands as bad (bbl): 2;"), ("1, 1, 1", ""), ("0, 0", "")])
def test_bad_bands_of_an_envi_header_are_told(tmp_path: Path, flags: str, told: str) -> None:
    data = write_raster(tmp_path / "a.img", CUBE[:3], "ENVI")
    with (tmp_path / "a.hdr").open("a") as file:
        file.write(f"bbl = {{{flags}}}\n")
    assert_reads(data, CUBE[:3])
    notices = " ".join(open_image(data).notices)
    assert told in notices if told else "bbl" not in notices


@pytest.mark.parametrize("kind", ["complex_int16", "complex64", "complex128"])
def test_complex_numbers_are_no_broken_file(tmp_path: Path, kind: str) -> None:
    write_raster(tmp_path / "a.tif", CUBE.astype(np.complex64), dtype=kind)
    with pytest.raises(DataError, match=rf"pixels of type {kind} are not supported \(.*abs\(\).*real and imaginary parts"):
        open_image(tmp_path / "a.tif")


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


def test_a_grey_value_that_a_png_calls_transparent_is_told(tmp_path: Path) -> None:
    stored = RNG.integers(0, 3, (17, 23), dtype=np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png", transparency=0)
    file = open_image(tmp_path / "a.png")
    assert file.notices == ("a.png: what its header marks as transparent is not valid",)
    assert np.array_equal(file.read(0, None).valid[0], stored != 0)


def test_jpeg_is_turned_as_it_says(tmp_path: Path) -> None:
    stored = np.kron(RNG.integers(0, 255, (2, 3)), np.ones((8, 8))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", quality=100, exif=exif)
    file = open_image(tmp_path / "a.jpg")
    assert (file.height, file.width) == (24, 16)
    assert np.abs(file.read(0, None).pixels[0] - np.rot90(stored, -1)).max() < 8


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened.*too long"):
        open_image(tmp_path / ("x" * 5000 + ".tif"))


def test_what_palettes_and_inks_are_read_as_is_told(tmp_path: Path) -> None:
    index, colours = RNG.integers(0, 256, (17, 23), dtype=np.uint8), RNG.integers(0, 256, (3, 256), dtype=np.uint8)
    inks = RNG.integers(0, 256, (17, 23, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", index, photometric="palette", colormap=colours.astype(np.uint16) * 257)
    palette = Image.fromarray(index, "P")
    palette.putpalette(colours.T.tobytes())
    palette.save(tmp_path / "p.png")
    tifffile.imwrite(tmp_path / "k.tif", inks, photometric="separated")
    Image.fromarray(inks, "CMYK").save(tmp_path / "k.jpg")
    told = {
        "p.tif": "its pixels are the indices of its palette, and no colours",
        "p.png": "the colours of its palette are read as red, green and blue",
        "k.tif": "its inks (CMYK) are read as red, green and blue",
        "k.jpg": "its inks (CMYK) are read as red, green and blue",
    }
    for name, notice in told.items():
        assert open_image(tmp_path / name).notices == (f"{name}: {notice}",)
    assert np.array_equal(open_image(tmp_path / "p.tif").read(0, None).pixels[0], index)
    assert np.array_equal(open_image(tmp_path / "p.png").read(0, None).pixels, colours[:, index])
    assert open_image(tmp_path / "p.png", ReadOptions(indexed=True)).notices == ()


@pytest.mark.parametrize("samples", [1, 3])
def test_jpeg_2000_inside_a_tiff(tmp_path: Path, samples: int) -> None:
    pytest.importorskip("imagecodecs")
    array = RNG.integers(0, 60000, (70, 90, samples), dtype=np.uint16).squeeze()
    options = {"compression": "jpeg2000", "tile": (32, 32), "photometric": "rgb" if samples == 3 else "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    assert_reads(tmp_path / "a.tif", np.moveaxis(array.reshape(70, 90, samples), 2, 0))


def test_a_compression_that_gdal_lacks_is_told(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", CUBE, crs="EPSG:32633", transform=rasterio.transform.from_origin(0, 0, 10, 10))
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(65000)  # of nobody
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert caught.value.hint == "GDAL lacks its compression: write it anew with another one, such as Deflate"
