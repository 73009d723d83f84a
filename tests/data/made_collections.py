"""Collections in memory that tests of splits hold out of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from auxmae.data.collection import Collection, memory_file
from auxmae.data.splits import Part


def make(sizes: list[tuple[int, int]], layout: str = "scenes", labels: np.ndarray | None = None) -> Collection:
    """A collection in memory: one image of 2 channels for each size."""
    files = tuple(memory_file(np.ones((1, 2, h, w), np.uint8), Path(f"p{i // 2}/{i}.tif")) for i, (h, w) in enumerate(sizes))
    items = np.array([(i, 0) for i in range(len(files))], dtype=np.int64)
    paths = tuple(file.path.as_posix() for file in files)
    return Collection(
        "memory",
        layout,
        ("a", "b"),
        None,
        (),
        files,
        [],
        items,
        (None,) * len(files),
        labels,
        (),
        paths,  # type: ignore[arg-type]
    )


def painted(part: Part, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """How often each pixel is in the part."""
    maps = [np.zeros(size, int) for size in sizes]
    for scene, top, left, height, width in part.blocks.tolist():
        maps[scene][top : top + height, left : left + width] += 1
    return maps


def georeferenced(boxes: list[tuple[int, int, int, int]], systems: list[str] | None = None) -> Collection:
    """Scenes of (top, left, height, width) on one grid of 10 m pixels."""
    collection = make([box[2:] for box in boxes])
    collection.files = tuple(
        replace(file, georeference={"crs": system, "transform": [10.0, 0, 5e5 + 10 * left, 0, -10.0, 6e6 - 10 * top]})
        for file, (top, left, _, _), system in zip(collection.files, boxes, systems or ["EPSG:32633"] * len(boxes), strict=True)
    )
    return collection


def placed(files: list[tuple[int, int, str, list[float]]], layout: str = "scenes") -> Collection:
    """Images of (height, width, reference system, the six numbers of the transform)."""
    collection = make([file[:2] for file in files], layout)
    collection.files = tuple(
        replace(file, georeference={"crs": system, "transform": transform})
        for file, (_, _, system, transform) in zip(collection.files, files, strict=True)
    )
    return collection
