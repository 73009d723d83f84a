"""Windows of TIFFs, however their pixels are stored, and the memory that they take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile

from auxmae.data.image import ReadOptions
from tests.data.reader_fixtures import CUBE, RNG, assert_reads, write_raster


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
