"""Where images lie on the earth, as far as their files say so."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import ImageFile

# Files that lie apart by less of a pixel are taken for aligned: corners are rounded when they are written, or reprojected.
_ALIGNED = 0.05
# Half a pixel, and what floating point makes of it.
_HALF = 0.5 + 1e-6
# Length of a degree of latitude, m.
_DEGREE = 111_320.0


def transform_of(file: ImageFile) -> NDArray[np.float64]:
    """(2, 3): x, y of a column and row are the matrix times (column, row, 1), of a file that has a georeference."""
    assert file.georeference is not None
    return np.array(file.georeference["transform"], dtype=np.float64).reshape(2, 3)


def corners_of(file: ImageFile, system: str | None = None) -> NDArray[np.float64]:
    """(4, 2) x and y of the upper left, upper right, lower left and lower right corner.

    Args:
        file: with a georeference.
        system: reference system in place of the file's own, where both are known to it; numbers of unknown ones stay.
    """
    assert file.georeference is not None
    places = [(0, 0, 1), (file.width, 0, 1), (0, file.height, 1), (file.width, file.height, 1)]
    corners: NDArray[np.float64] = np.array(places, dtype=np.float64) @ transform_of(file).T
    own = str(file.georeference["crs"])
    if system is None or system == own:
        return corners
    moved = reproject(corners, own, system)
    return corners if moved is None else moved


def reproject(points: NDArray[np.float64], own: str, system: str) -> NDArray[np.float64] | None:
    """Points (n, 2) of one reference system in another; None where nothing leads from the one to the other."""
    from rasterio.warp import transform

    try:
        return np.stack(transform(own, system, *points.T.tolist())[:2], axis=1)
    except Exception:  # what GDAL says of a local system arrives as a private class of rasterio's
        return None


def same_place(one: ImageFile, other: ImageFile) -> bool:
    """Whether the corners of two files are the same, to half a row and column of the coarser, as far as both are known."""
    if one.georeference is None or other.georeference is None:
        return True
    return bool((_apart(one, other) <= _HALF).all())


def describe_shift(one: ImageFile, other: ImageFile) -> str | None:
    """By how much of a pixel two files in the `same_place` lie beside each other, for people; None: by less than a twentieth."""
    if one.georeference is None or other.georeference is None:
        return None
    apart = _apart(one, other).max()
    return f"{apart:.2f} of a pixel" if apart >= _ALIGNED else None


def describe_difference(one: ImageFile, other: ImageFile) -> str:
    """In what two files that lie elsewhere differ, for people."""
    systems = [str(file.georeference["crs"]) for file in (one, other) if file.georeference is not None]
    both = [corners_of(one, systems[1]), corners_of(other)]
    which, name = (0, "upper left") if (_apart(one, other)[0] > _HALF).any() else (3, "lower right")
    text = f"their {name} corners are " + " and ".join("({:.10g}, {:.10g})".format(*corners[which]) for corners in both)
    return text if systems[0] == systems[1] else f"{text} in {systems[1]} (the former is in {systems[0]})"


def pixel_area(file: ImageFile) -> float:
    """Ground that a pixel of a file with a georeference covers, m²; in its own units squared where its system is not known."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    assert file.georeference is not None
    area = float(abs(np.linalg.det(transform_of(file)[:, :2])))
    try:
        system = CRS.from_user_input(str(file.georeference["crs"]))
        if system.is_geographic:
            return area * _DEGREE**2 * float(np.cos(np.radians(corners_of(file)[:, 1].mean())))
        return area * float(system.linear_units_factor[1]) ** 2
    except CRSError:
        return area


def _apart(one: ImageFile, other: ImageFile) -> NDArray[np.float64]:
    """(4, 2) columns and rows between the corners of two files, in pixels of the coarser one.

    Of files in two reference systems, of other units maybe, in those of the second one.
    """
    assert one.georeference is not None
    assert other.georeference is not None
    difference = corners_of(one, str(other.georeference["crs"])) - corners_of(other)
    files = (one, other) if one.georeference["crs"] == other.georeference["crs"] else (other,)
    step = max((transform_of(file)[:, :2] for file in files), key=lambda matrix: float(abs(np.linalg.det(matrix))))
    if not np.linalg.det(step):
        return np.where(difference == 0, 0.0, np.inf)
    apart: NDArray[np.float64] = np.abs(difference @ np.linalg.inv(step).T)
    return apart
