"""Maps of classes: a GeoTIFF at the scene's place, and a picture beside the labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from colorsys import hls_to_rgb
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from auxmae.errors import AuxMAEError
from auxmae.visuals.figures import save_figure

_NONE = (0.93, 0.93, 0.93)


def write_map(classes: NDArray[np.int64], class_names: Sequence[str], georeference: dict[str, Any] | None, path: Path) -> Path:
    """Writes (H, W) classes as a GeoTIFF: the original label values where those are whole numbers from 0 to 65 534.

    −1 becomes the file's nodata value, 65 535.  Other class names become their number, and the file's metadata says which.

    Raises:
        AuxMAEError: the file cannot be written.
    """
    import rasterio
    from rasterio.transform import Affine

    nodata = 65535
    numbers = [int(name) if name.isdecimal() and int(name) < nodata else -1 for name in class_names]
    values = np.array(numbers if min(numbers, default=-1) >= 0 else range(len(class_names)), dtype=np.uint16)
    raster = np.where(classes >= 0, values[classes.clip(min=0)], nodata).astype(np.uint16)
    place: dict[str, Any] = {}
    if georeference:
        place = {"crs": georeference["crs"], "transform": Affine(*georeference["transform"])}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(
                path,
                "w",
                driver="GTiff",
                height=raster.shape[0],
                width=raster.shape[1],
                count=1,
                dtype="uint16",
                nodata=nodata,
                compress="deflate",
                **place,
            ) as target:
                target.write(raster, 1)
                target.set_band_description(1, "predicted class")
                target.update_tags(**{f"class_{value}": name for value, name in zip(values, class_names, strict=True)})
    except (OSError, rasterio.errors.RasterioError) as error:
        raise AuxMAEError(f"{path}: the map cannot be written: {error}", hint="check the run folder") from error
    return path


def class_colours(count: int) -> NDArray[np.float64]:
    """(count, 3) RGB in [0, 1]: matplotlib's lists of up to 20, else hues at equal distances, neighbours dark and light."""
    if count <= 20:
        return np.asarray(colormaps["tab10" if count <= 10 else "tab20"].colors[:count])  # type: ignore[attr-defined]
    return np.array([hls_to_rgb(number / count, (0.3, 0.5, 0.7)[number % 3], 0.9) for number in range(count)])


def map_figure(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], class_names: Sequence[str], path: Path, *, title: str
) -> Path:
    """Labels and predicted classes side by side under a title; grey: none."""
    colours = class_colours(len(class_names))
    columns = min(len(class_names), 8)
    # A line of the legend takes 0.16 inch; of the first three the maps have room to spare.
    lines = -(-len(class_names) // max(columns, 1))
    figure = Figure(figsize=(8.4, 4.6 + 0.16 * max(lines - 3, 0)), layout="constrained")
    for axis, classes, name in zip(figure.subplots(1, 2), (labels, predicted), ("labels", "predicted"), strict=True):
        picture = np.where(classes[..., None] >= 0, colours[classes.clip(min=0)], _NONE)
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, class_names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)
