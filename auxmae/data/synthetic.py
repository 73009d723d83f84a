"""The embedded default: labelled procedural 13-band scenes, so that a first run needs no file and no network.

A scene is a mixture of surface types with plausible reflectance spectra over 443–2190 nm.  What lies where comes from
spatially correlated random fields, ordered as the scene's class demands (fields, streets, a river, a shore, …); then
come illumination, sensor noise, and the coarser ground resolution of some bands.  The spectra are rough sketches of
textbook curves: good for learning to use the tool, not for remote sensing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHANNEL_NAMES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
WAVELENGTHS = (443.0, 490.0, 560.0, 665.0, 705.0, 740.0, 783.0, 842.0, 865.0, 945.0, 1375.0, 1610.0, 2190.0)
CLASS_NAMES = (
    "annual crop",
    "forest",
    "grassland",
    "highway",
    "industrial",
    "pasture",
    "orchard",
    "residential",
    "river",
    "lake",
)
# Ground resolution in units of 10 m: the bands of 20 and 60 m are averaged over squares of 2 and 6 pixels.
RESOLUTION = (6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 6, 2, 2)

# Reflectance × 100 at the 13 bands.
SPECTRA = np.array(
    [
        [5.0, 5.5, 7.5, 8.5, 13.0, 19.0, 22.0, 24.0, 25.0, 25.0, 1.0, 18.0, 10.0],  # crop
        [2.0, 2.2, 3.6, 2.4, 7.0, 21.0, 26.0, 28.0, 29.0, 28.0, 0.8, 12.0, 5.0],  # broadleaf tree
        [1.8, 2.0, 2.8, 2.0, 4.5, 12.0, 14.5, 16.0, 16.5, 16.0, 0.6, 7.0, 3.0],  # conifer
        [3.5, 4.2, 8.0, 5.0, 12.0, 28.0, 34.0, 36.0, 37.0, 36.0, 1.0, 22.0, 11.0],  # grass
        [8.0, 10.0, 14.0, 19.0, 22.0, 24.0, 26.0, 28.0, 29.0, 30.0, 1.5, 36.0, 32.0],  # bare soil
        [11.0, 12.0, 13.0, 14.0, 14.5, 15.0, 15.5, 16.0, 16.5, 17.0, 1.4, 20.0, 19.0],  # asphalt
        [24.0, 26.0, 29.0, 31.0, 32.0, 33.0, 34.0, 35.0, 35.0, 35.0, 2.5, 34.0, 30.0],  # bright roof
        [9.0, 10.0, 13.0, 19.0, 21.0, 22.0, 23.0, 24.0, 24.0, 25.0, 1.6, 28.0, 24.0],  # tiled roof
        [6.0, 6.0, 5.5, 3.5, 3.0, 2.0, 1.8, 1.4, 1.2, 1.0, 0.2, 0.6, 0.4],  # clear water
        [8.0, 9.0, 11.5, 10.0, 9.0, 5.0, 4.5, 3.5, 3.0, 2.0, 0.3, 1.0, 0.6],  # turbid water
        [14.0, 17.0, 23.0, 28.0, 30.0, 31.0, 32.0, 34.0, 34.0, 34.0, 2.0, 40.0, 36.0],  # sand
    ],
    dtype=np.float32,
)
CROP, BROADLEAF, CONIFER, GRASS, SOIL, ASPHALT, BRIGHT, TILE, CLEAR, TURBID, SAND = range(11)

_COARSE_BANDS = {
    factor: [band for band, value in enumerate(RESOLUTION) if value == factor] for factor in sorted(set(RESOLUTION) - {1})
}
_CHUNK = 16


def generate(count: int, *, size: int = 64, seed: int = 0) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Draws labelled scenes; scene i depends on the seed, the size and i alone, not on how many are drawn.

    Args:
        count: number of scenes N.
        size: side, px of 10 m.
        seed: any non-negative integer.

    Returns:
        (N, 13, size, size) uint16, reflectance × 10 000; (N,) int64 classes, indices into `CLASS_NAMES`.
    """
    images = np.empty((count, len(CHANNEL_NAMES), size, size), np.uint16)
    labels = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        # A whole chunk is drawn even where only its beginning is wanted, so that its scenes do not depend on the count.
        generator = np.random.default_rng([seed, size, start // _CHUNK])
        pixels, classes = _draw_chunk(generator, size)
        images[start:stop], labels[start:stop] = pixels[: stop - start], classes[: stop - start]
    return images, labels


def _field(generator: np.random.Generator, count: int, size: int, cell: int) -> NDArray[np.float32]:
    """(count, size, size) smooth noise: correlated over `cell` pixels, about zero mean and unit deviation."""
    knots = size // cell + 3
    coarse = generator.standard_normal((count, knots, knots), dtype=np.float32)
    place = np.arange(size, dtype=np.float32) / cell + generator.random((count, 1), dtype=np.float32)
    left = place.astype(np.int64)
    part = place - left
    part = part * part * (3 - 2 * part)
    item = np.arange(count)[:, None]
    rows = coarse[item, left] * (1 - part)[..., None] + coarse[item, left + 1] * part[..., None]
    columns = rows[item, :, left] * (1 - part)[..., None] + rows[item, :, left + 1] * part[..., None]
    smooth: NDArray[np.float32] = (columns.transpose(0, 2, 1) * np.float32(1.4)).astype(np.float32, copy=False)
    return smooth


def _cells(generator: np.random.Generator, size: int, rows: int, columns: int, angle: float) -> NDArray[np.int64]:
    """(size, size) integers that are constant on tilted rectangles, as fields and blocks of houses are."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    u = x * np.cos(angle) + y * np.sin(angle) + generator.uniform(0, columns)
    v = y * np.cos(angle) - x * np.sin(angle) + generator.uniform(0, rows) + 4 * size
    cells: NDArray[np.int64] = (
        np.floor(v / rows).astype(np.int64) * 131 + np.floor((u + 4 * size) / columns).astype(np.int64)
    ) % 997
    return cells


def _line(generator: np.random.Generator, size: int, half_width: float, bend: NDArray[np.float32]) -> NDArray[np.bool_]:
    """A road or a river: a band about a tilted line that follows `bend`."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = generator.uniform(0, np.pi)
    offset = generator.uniform(-0.25, 0.25) * size
    distance = (x - size / 2) * np.sin(angle) - (y - size / 2) * np.cos(angle) + offset + bend
    inside: NDArray[np.bool_] = np.abs(distance) < half_width
    return inside


def _surface(
    kind: int, generator: np.random.Generator, size: int, a: NDArray[np.float32], b: NDArray[np.float32]
) -> NDArray[np.int64]:
    """(size, size) surface types of one scene of class `kind`; a and b are its coarse and its fine field."""

    def choose(types: list[int], cells: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(types)[generator.integers(0, len(types), 997)[cells]]

    angle = generator.uniform(0, np.pi / 2)
    vegetation = [CROP, BROADLEAF, CONIFER, GRASS, SOIL]
    mixed = choose(vegetation, _cells(generator, size, 18, 26, angle))
    if kind == 0:
        return choose([CROP, SOIL, CROP, GRASS, SOIL], _cells(generator, size, int(generator.integers(7, 14)), 22, angle))
    if kind == 1:
        return np.where(a + 0.6 * b > 0.9, GRASS, np.where(b + a > 0.1, BROADLEAF, CONIFER))
    if kind == 2:
        return np.where(a > 1.1, BROADLEAF, np.where(b > 0.9, SOIL, np.where(a + b < -1.2, CROP, GRASS)))
    if kind == 3:
        road = _line(generator, size, generator.uniform(1.2, 2.6), 3 * a)
        return np.where(road, ASPHALT, mixed)
    if kind == 4:
        cells = _cells(generator, size, int(generator.integers(8, 14)), int(generator.integers(9, 18)), angle)
        return choose([BRIGHT, BRIGHT, ASPHALT, TILE, SOIL, GRASS], cells)
    if kind == 5:
        hedges = _cells(generator, size, 15, 15, angle)
        edge = (np.diff(hedges, axis=0, append=hedges[-1:]) != 0) | (np.diff(hedges, axis=1, append=hedges[:, -1:]) != 0)
        return np.where(edge, BROADLEAF, choose([GRASS, GRASS, CROP], hedges))
    if kind == 6:
        rows = _cells(generator, size, 3, 997, angle) % 2 == 0
        return np.where(rows, np.where(a > 0, BROADLEAF, CONIFER), np.where(b > 0.6, GRASS, SOIL))
    if kind == 7:
        cells = _cells(generator, size, 4, int(generator.integers(4, 7)), angle)
        return choose([TILE, TILE, GRASS, ASPHALT, BROADLEAF, BRIGHT], cells)
    if kind == 8:
        river = _line(generator, size, generator.uniform(2.0, 6.0), 6 * a)
        bank = _line(generator, size, 0.0, a) | (np.abs(b) < 0.05)
        return np.where(river, TURBID, np.where(bank, SAND, mixed))
    shore = a + 0.25 * b - generator.uniform(-1.2, 0.6)
    return np.where(shore > 0.15, np.where(generator.random() < 0.5, CLEAR, TURBID), np.where(shore > 0, SAND, mixed))


def _draw_chunk(generator: np.random.Generator, size: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """(chunk, 13, size, size) uint16 scenes and their (chunk,) classes."""
    classes = generator.integers(0, len(CLASS_NAMES), _CHUNK)
    coarse = _field(generator, _CHUNK, size, 20)
    fine = _field(generator, _CHUNK, size, 6)
    # Season and site: each scene has its own spectra, so that one surface does not look the same everywhere.
    vigour = generator.normal(0.0, 0.25, (_CHUNK, len(SPECTRA), 1)).astype(np.float32)
    slope = generator.normal(0.0, 0.20, (_CHUNK, len(SPECTRA), 1)).astype(np.float32)
    tilt = np.linspace(-1, 1, len(CHANNEL_NAMES), dtype=np.float32)
    spectra = 100 * SPECTRA * np.exp(vigour + slope * tilt)
    texture = 1 + 0.06 * fine + 0.05 * generator.standard_normal(fine.shape, dtype=np.float32)
    sun = generator.uniform(0.5, 1.5, (_CHUNK, 1, 1)).astype(np.float32)
    light = texture * (1 + 0.2 * _field(generator, _CHUNK, size, 40)) * sun
    air = (490 / np.asarray(WAVELENGTHS, np.float32)) ** 3
    haze = 100 * generator.uniform(0, 5.0, (_CHUNK, 1)).astype(np.float32) * air
    images = np.empty((_CHUNK, len(CHANNEL_NAMES), size, size), np.uint16)
    # One scene at a time: it stays in the processor's cache, which makes all of this about three times as fast.
    for i, kind in enumerate(classes):
        surface = _surface(int(kind), generator, size, coarse[i], fine[i])
        image = np.take(np.ascontiguousarray(spectra[i].T), surface, axis=1)
        image *= light[i]
        image += haze[i][:, None, None]
        for factor, bands in _COARSE_BANDS.items():
            image[bands] = _average_squares(image[bands], factor)
        noise = generator.standard_normal(image.shape, dtype=np.float32)
        noise *= 8 + 0.008 * image
        image += noise
        np.rint(image, out=image)
        images[i] = np.clip(image, 1, 65535, out=image)
    return images, classes


def _average_squares(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Averages (c, h, w) over squares of `factor` pixels; the last ones may be cut off."""
    size = image.shape[-1]
    starts = np.arange(0, size, factor)
    extent = np.diff(np.append(starts, size)).astype(np.float32)
    sums = np.add.reduceat(np.add.reduceat(image, starts, axis=1), starts, axis=2)
    means = sums / (extent[:, None] * extent)
    spread: NDArray[np.float32] = means.repeat(factor, 1)[:, :size].repeat(factor, 2)[..., :size]
    return spread
