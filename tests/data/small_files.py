"""Small files for tests of what is found in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio

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
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        np.save(folder / f"{name}.npy", pixels(5, size, size))
    return folder


def placed(path: Path, array: np.ndarray, east: float, north: float = 5e6, epsg: int = 32633) -> Path:
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype.name}
    transform = rasterio.transform.from_origin(east, north, 10, 10)
    with rasterio.open(path, "w", crs=f"EPSG:{epsg}", transform=transform, **profile) as file:
        file.write(array)
    return path
