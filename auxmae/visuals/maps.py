"""Maps of classes: a GeoTIFF at the scene's place, and a picture beside the labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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


def map_figure(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], class_names: Sequence[str], path: Path, *, title: str
) -> Path:
    """Labels and predicted classes side by side under a title; grey: none."""
    palette = np.asarray(colormaps["tab20"].colors if len(class_names) > 10 else colormaps["tab10"].colors)  # type: ignore[attr-defined]
    colours = palette[np.arange(len(class_names)) % len(palette)]
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    for axis, classes, name in zip(figure.subplots(1, 2), (labels, predicted), ("labels", "predicted"), strict=True):
        picture = np.where(classes[..., None] >= 0, colours[classes.clip(min=0)], _NONE)
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, class_names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)
