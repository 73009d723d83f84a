"""Which pages of a TIFF are channels, images, masks, or nothing of an image."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from auxmae.data.image import ReadOptions
from auxmae.data.readers import open_image
from auxmae.errors import DataError
from tests.data.reader_fixtures import CUBE, RNG, WINDOW, assert_reads, write_raster


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


@pytest.mark.parametrize("description", ['{"shape": [4, 8, 9]}', '<?xml version="1.0"?><OME><Image></OME>'])
def test_what_does_no_harm_stays_off_the_terminal(tmp_path: Path, description: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, plane in enumerate(CUBE):
            file.write(plane, description=None if number else description, metadata=None, photometric="minisblack")
    told: list[str] = []

    class Terminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    # What Python writes where no handler takes it; those of the tests' own runner do.
    monkeypatch.setattr(logging, "lastResort", Terminal(logging.WARNING))
    monkeypatch.setattr(logging.getLogger("tifffile"), "propagate", False)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.series
    assert len(told) == 1
    file = open_image(tmp_path / "a.tif")
    for window in (None, WINDOW):
        file.read(0, window)
    assert len(told) == 1
    logging.getLogger("tifffile").error("another's")
    assert told[1:] == ["another's"]


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
