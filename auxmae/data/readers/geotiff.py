"""GeoTIFF, COG and ENVI by rasterio, read by windows."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from auxmae.data.image import ImageFile, MultiChannelImage, ReadOptions, Window
from auxmae.data.readers import arrays as common
from auxmae.data.readers import reading
from auxmae.errors import DataError

# Centre wavelengths of Sentinel-2A's bands in nm (ESA, Sentinel-2 User Handbook).
SENTINEL2 = {
    "B01": 443.0, "B02": 490.0, "B03": 560.0, "B04": 665.0, "B05": 705.0, "B06": 740.0, "B07": 783.0, "B08": 842.0,
    "B8A": 865.0, "B09": 945.0, "B10": 1375.0, "B11": 1610.0, "B12": 2190.0,
}  # fmt: skip


def open_file(path: Path, options: ReadOptions) -> ImageFile:
    """Opens any raster that GDAL knows by its header; for ENVI, give the .hdr file."""
    import rasterio

    path = _data_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            names = tuple(str(text) for text in source.descriptions) if all(source.descriptions) else None
            waves = _wavelengths(source)
            # ENVI repeats the wavelength in the band's name ("443.0 Nanometers"): as good a name as any.
            if names is not None and len(set(names)) < len(names):
                names = None
            notices = []
            if waves is None and names is not None and set(names) <= set(SENTINEL2) and len(names) >= 10:
                waves = tuple(SENTINEL2[name] for name in names)
                notices.append("wavelengths are those of the Sentinel-2 bands of these names")
            nodata = options.nodata if options.nodata is not None else source.nodata
            georeference: dict[str, object] | None = None
            if source.crs is not None:
                georeference = {"crs": source.crs.to_string(), "transform": list(source.transform)[:6]}
            scaled = any(value != 1 for value in source.scales) or any(value != 0 for value in source.offsets)
            return ImageFile(
                path,
                1,
                source.count,
                source.height,
                source.width,
                np.dtype(source.dtypes[0]),
                partial(_read, path, nodata, scaled, names, waves),
                names,
                waves,
                georeference=georeference,
                notices=tuple(notices),
            )


def _data_file(path: Path) -> Path:
    if path.suffix.lower() != ".hdr":
        return path
    for suffix in ("", ".img", ".dat", ".raw", ".bsq", ".bil", ".bip"):
        candidate = path.with_suffix(suffix)
        if candidate.is_file():
            return candidate
    raise DataError(f"{path}: the ENVI header's data file is missing", hint=f"expected {path.with_suffix('.img')} or the like")


def _wavelengths(source: Any) -> tuple[float, ...] | None:
    """Band metadata → nm.  ENVI and GDAL's imagery domain say in which unit."""
    found = []
    for band in range(1, source.count + 1):
        tags = {key.lower(): value for key, value in source.tags(band).items()}
        imagery = {key.lower(): value for key, value in source.tags(band, ns="IMAGERY").items()}
        if "central_wavelength_um" in imagery:
            found.append(float(imagery["central_wavelength_um"]) * 1000)
            continue
        text = tags.get("wavelength")
        number = re.match(r"[0-9.eE+-]+", text.strip()) if text else None
        if number is None:
            return None
        unit = (tags.get("wavelength_units") or "").lower()
        value = float(number.group())
        found.append(value * 1000 if unit.startswith("micro") or unit == "um" or (not unit and value < 100) else value)
    return tuple(found) if all(value > 0 for value in found) else None


def _read(
    path: Path,
    nodata: float | None,
    scaled: bool,
    names: tuple[str, ...] | None,
    waves: tuple[float, ...] | None,
    index: int,
    window: Window | None,
) -> MultiChannelImage:
    import rasterio
    from rasterio.windows import Window as RasterWindow

    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            part = None if window is None else RasterWindow(window.left, window.top, window.width, window.height)
            pixels = source.read(window=part)
            image = common.to_image(pixels, nodata, names, waves)
            if not scaled:
                return image
            scale = np.asarray(source.scales, np.float64)[:, None, None]
            offset = np.asarray(source.offsets, np.float64)[:, None, None]
            physical = np.where(image.valid, pixels * scale + offset, 0).astype(np.float32)
            return MultiChannelImage(physical, image.valid, names, waves)
