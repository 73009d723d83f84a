"""Small files for tests of what is found in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

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


def cubes(folder: Path, *names: str, size: int = 16) -> Path:
    for name in names:
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, pixels(5, size, size))
    return folder


def table(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


def placed(path: Path, array: np.ndarray, east: float, north: float = 5e6, epsg: int = 32633) -> Path:
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype.name}
    transform = rasterio.transform.from_origin(east, north, 10, 10)
    with rasterio.open(path, "w", crs=f"EPSG:{epsg}", transform=transform, **profile) as file:
        file.write(array)
    return path


def raster(path: Path, value: int, size: int = 64) -> None:
    """A label raster whose upper half is `value`, the rest 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((size, size), np.uint8)
    array[: size // 2] = value
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)
