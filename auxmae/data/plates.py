"""Zarr stores of several images: plates of OME-NGFF (0.4 and 0.5, section "High-content screening"), whose wells have fields, and
what bioformats2raw makes of other files (section "bioformats2raw.layout"), which has series.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STORE = ".zarr"
# Where a group of version 2 and of version 3 keeps its attributes.
_METADATA = (".zattrs", "zarr.json")


def store_of(path: Path) -> Path | None:
    """The outermost Zarr store that a path lies in, or is; None: it lies in none."""
    return next((one for one in (*reversed(path.parents), path) if one.name.lower().endswith(STORE)), None)


def is_group(path: Path) -> bool:
    """Whether a folder is a group or an array within a Zarr store, a field of a plate for one."""
    return store_of(path.parent) is not None and any((path / name).is_file() for name in (".zgroup", ".zarray", "zarr.json"))


def wells(path: Path) -> list[Path] | None:
    """The wells of a plate, in its own order, or a well itself; None where the path is neither."""
    attributes = _attributes(path)
    try:
        return [path / well["path"] for well in attributes["plate"]["wells"]]
    except (KeyError, TypeError):
        return None if fields(path) is None else [path]  # other things are called so too


def series(path: Path) -> list[Path] | None:
    """The images of a store as bioformats2raw lays it out: those that its group OME names, else those numbered from 0.

    None where the path is no such store, or holds none of them, or is a plate or itself an image, whose numbers are its levels.
    """
    attributes = _attributes(path)
    if "bioformats2raw.layout" not in attributes or not attributes.keys().isdisjoint({"plate", "multiscales"}):
        return None
    named = _attributes(path / "OME").get("series")
    if isinstance(named, list) and named and all(isinstance(name, str) for name in named):
        return [path / name for name in named]
    numbers = sorted((one.name for one in path.iterdir() if one.name.isdecimal()), key=int)
    return [path / number for number in numbers] or None


def is_row(path: Path) -> bool:
    """Whether a path is a row of wells of the plate above it."""
    return any(well.parent == path for well in wells(path.parent) or ())


def fields(well: Path) -> list[Path] | None:
    """The images of a well, in its own order; None where the path is no well, or cannot be read."""
    try:
        return [well / image["path"] for image in _attributes(well)["well"]["images"]]
    except (KeyError, TypeError):
        return None


def _attributes(path: Path) -> dict[str, Any]:
    for name in _METADATA:
        try:
            content = json.loads((path / name).read_text(encoding="utf-8"))
            attributes = content["attributes"] if name == "zarr.json" else content
            return dict(attributes.get("ome", attributes))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return {}
