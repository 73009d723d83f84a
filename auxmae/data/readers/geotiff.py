"""GeoTIFF, COG, ENVI, Erdas, and whatever else is a raster to GDAL: by rasterio, read by windows."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.channels import shortened
from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window, diagonal
from auxmae.data.readers import reading
from auxmae.data.readers.encoding import gdal_encoding, real_numbers, to_image
from auxmae.data.readers.envi import data_file, pair
from auxmae.data.readers.pages import full_pages
from auxmae.data.readers.wavelengths import SENTINEL2, band_wavelengths
from auxmae.errors import DataError

_SAMPLE = 256
CMYK = "{}: its inks (CMYK) are read as red, green and blue"


@contextmanager
def _open(name: str | Path) -> Iterator[Any]:
    import rasterio

    # Images without a place on the earth are welcome.  For the whole process: `warnings.catch_warnings` is undone by another
    # thread's.
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    with rasterio.open(name) as source:
        yield source


def read_beside(path: Path) -> list[Path]:
    """The files beside a raster that change what is read of it: ENVI's headers, and what GDAL keeps of nodata values, scales and
    masks.  Its overviews do not.
    """
    if path.is_dir():
        return []
    kept = [path.with_name(path.name + ending) for ending in (".aux.xml", ".msk")]
    return [one for one in (*pair(path), *kept) if one != path and one.is_file()]


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens any raster that GDAL knows by its header; of an ENVI file the header or the data.

    Several pages of one size are channels, as bands are.  A band of transparency is no channel but the validity of the
    others, if it looks so (see `is_transparency`).
    """
    path = data_file(path)
    with _open(path) as source:
        # A TIFF of several pages; other formats mean other things by it.
        found = source.subdatasets if source.driver == "GTiff" else []
        if not found:
            return _describe(path, source, (str(path),), options, [])
    pages, notices = _pages(path, found)
    with _open(pages[0]) as source:
        return _describe(path, source, pages, options, notices)


def _pages(path: Path, found: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """GDAL's names of the pages that are channels, in the order of the file."""
    # Named "GTIFF_DIR:10:path", and sorted as text.
    found = sorted(found, key=lambda name: int(name.split(":")[1]))
    kinds = []
    for name in found:
        with _open(name) as page:
            kinds.append((page.height, page.width, f"{page.dtypes[0]}, {page.count} samples"))
    chosen, notices = full_pages(path, kinds)
    return tuple(found[page] for page in chosen), notices


def _describe(path: Path, source: Any, pages: tuple[str, ...], options: ReadOptions, notices: list[str]) -> ImageFile:
    if source.dtypes[0].startswith("complex_int"):  # which numpy does not have
        raise DataError(f"{path}: pixels of type {source.dtypes[0]} are not supported", hint=real_numbers(source.dtypes[0]))
    _check_length(path, source)
    transparency = source.count > 1 and source.colorinterp[-1].name == "alpha"
    # PNG leaves no doubt.
    alpha = _alpha(source) if transparency and source.driver != "PNG" else None
    if alpha is not None:
        transparency = is_transparency([alpha]) if options.transparency is None else options.transparency
    if source.colorinterp[0].name == "palette":
        notices.append(f"{path.name}: its pixels are the indices of its palette, and no colours")
    if source.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
        # GDAL makes a band of transparency beside them.
        notices.append(CMYK.format(path.name))
    elif options.transparency is None and transparency:
        notices.append(f"{path.name}: band {source.count} is transparency: it says which pixels are valid")
    elif options.transparency is None and alpha is not None:
        notices.append(f"{path.name}: band {source.count} is marked as transparency and holds values: it is read as a channel")
    bands = tuple(range(1, source.count + (not transparency)))
    names = tuple(str(source.descriptions[band - 1] or "") for band in bands)
    # ENVI repeats the wavelength in the band's name ("443.0 Nanometers"): as good a name as any.  Of several pages only the
    # first is looked at here.
    described = names if all(names) and len(pages) == 1 else None
    waves = band_wavelengths(source, path.name, notices) if len(pages) == 1 and len(bands) == source.count else None
    if waves is None and described is not None and set(described) <= set(SENTINEL2) and len(described) >= 10:
        waves = tuple(SENTINEL2[name] for name in described)
        notices.append("wavelengths are those of the Sentinel-2 bands of these names")
    notices.extend(_bad_bands(path, source))
    georeference: dict[str, object] | None = None
    if source.crs is not None:
        georeference = {"crs": source.crs.to_string(), "transform": list(source.transform)[:6]}
    return ImageFile(
        path,
        1,
        len(bands) * len(pages),
        source.height,
        source.width,
        np.dtype(source.dtypes[0]),
        partial(_read, path, pages, bands, options.nodata),
        described,
        waves,
        georeference=georeference,
        notices=tuple(notices),
        alpha=alpha,
    )


def _check_length(path: Path, source: Any) -> None:
    """Raises DataError where an ENVI file is shorter than its header says: GDAL reads zeros for what is missing."""
    header = source.tags(ns="ENVI") if source.driver == "ENVI" else {}
    if not header or header.get("file_compression", "0").strip() != "0":
        return
    pixels = source.height * source.width * sum(np.dtype(kind).itemsize for kind in source.dtypes)
    promised, length = int(header.get("header_offset", 0)) + pixels, path.stat().st_size
    if length < promised:
        raise DataError(
            f"{path}: it has {length} bytes, of {promised} that its ENVI header promises",
            hint="is it complete, and the header its own?",
        )


def _bad_bands(path: Path, source: Any) -> list[str]:
    """Says which bands an ENVI header's list of bad bands (bbl: 0 for each) marks; nothing where it marks none, or all."""
    if source.driver != "ENVI":
        return []
    flags = re.findall(r"[\d.]+", source.tags(ns="ENVI").get("bbl", ""))
    bad = [str(band) for band, flag in enumerate(flags, 1) if not flag.strip("0.")]
    if not bad or len(bad) == len(flags) or len(flags) != source.count:
        return []
    return [
        f"{path.name}: its header marks {len(bad)} of {source.count} bands as bad (bbl): {shortened(bad)}; they are read, unless "
        "data.channels names others"
    ]


def _alpha(source: Any) -> tuple[int, int]:
    """Of the last band's values in a few places, how many are the largest of their type, and how many neither that nor 0."""
    from rasterio.windows import Window as RasterWindow

    largest = np.iinfo(source.dtypes[-1]).max if np.dtype(source.dtypes[-1]).kind in "ui" else 1
    full = between = 0
    for place in diagonal(source.height, source.width, _SAMPLE):
        values = source.read(source.count, window=RasterWindow(place.left, place.top, place.width, place.height))
        opaque = int(np.count_nonzero(values == largest))
        full, between = full + opaque, between + int(np.count_nonzero(values)) - opaque
    return full, between


def is_transparency(alphas: Iterable[tuple[int, int]]) -> bool:
    """Whether a band that TIFFs mark as transparency is that, by `ImageFile.alpha` of one or of several.

    TIFF writers mark the fourth band as transparency whatever it holds, near infrared for one.  Of transparency, soft edges among
    it, most values above 0 are full; of a channel hardly any are.
    """
    full, between = np.sum([*alphas], axis=0)
    return bool(full >= between)


def _read(
    path: Path,
    pages: tuple[str, ...],
    bands: tuple[int, ...],
    nodata: float | None,
    index: int,
    window: Window | None,
) -> MultiChannelImage:
    with reading(path):
        parts = [_read_page(page, bands, nodata, window) for page in pages]
        if len(parts) == 1:
            return parts[0]
        pixels, valid = (np.concatenate([getattr(part, what) for part in parts]) for what in ("pixels", "valid"))
        return MultiChannelImage(pixels, valid)


def _read_page(page: str, bands: tuple[int, ...], nodata: float | None, window: Window | None) -> MultiChannelImage:
    from rasterio.enums import MaskFlags
    from rasterio.windows import Window as RasterWindow

    with _open(page) as source:
        part = None if window is None else RasterWindow(window.left, window.top, window.width, window.height)
        chosen = [band - 1 for band in bands]
        encoding = gdal_encoding(
            *([values[band] for band in chosen] for values in (source.nodatavals, source.scales, source.offsets))
        )
        # A mask of the file itself; one that GDAL makes of a nodata value, or of a band that is a channel, says no more.
        flags = source.mask_flag_enums[chosen[0]]
        masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        valid: NDArray[np.bool_] | None = source.read_masks(list(bands), window=part) > 0 if masked else None
        if len(bands) < source.count:
            # GDAL makes a mask of transparency of some types and numbers of bands alone, and of none beside a nodata value.
            shown = source.read([source.count], window=part) > 0
            valid = shown if valid is None else valid & shown
        return to_image(source.read(list(bands), window=part), encoding.with_nodata(nodata), valid=valid)
