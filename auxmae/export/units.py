"""What is embedded at once, in which order, and which row of the output stands for what.

The windows that an encoder sees are at most as large as the crops that it was trained on.  Pooled, an image is one row (the
mean of its windows' vectors), a scene one row for each window; dense, every place of the patch grid is a row, in row-major order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from auxmae.data.collection import Collection
from auxmae.data.image import Window
from auxmae.data.splits import Part


class Unit(NamedTuple):
    """A box of one image whose rows are computed together.

    Attributes:
        item: image of the collection.
        box: the pixels.
        rows: rows of the output.
    """

    item: int
    box: Window
    rows: int


class Layout(NamedTuple):
    """How images are cut: window side and patch side, px (the former a multiple of the latter); rows of places or of images."""

    window: int
    patch: int
    dense: bool


def make_layout(image_size: int, patch_size: int, *, dense: bool) -> Layout:
    """Windows of whole patches, so that the patch grid goes on from one window to the next."""
    return Layout(max(image_size // patch_size, 1) * patch_size, patch_size, dense)


def plan_units(collection: Collection, layout: Layout, part: Part | None = None) -> list[Unit]:
    """All units, in the order of the collection.

    Args:
        collection: the images.
        layout: how to cut them.
        part: only these images or blocks; None: everything.
    """
    boxes: Iterator[tuple[int, Window]]
    if part is not None and len(part.blocks):
        boxes = ((scene, Window(*rest)) for scene, *rest in part.blocks.tolist())
    else:
        items = range(len(collection)) if part is None else part.items.tolist()
        boxes = ((item, Window(0, 0, *collection.size_of(item))) for item in items)
    units: list[Unit] = []
    for item, box in boxes:
        if layout.dense:
            # A band of windows at a time: its rows of places are whole, so that the output is row-major.
            for band in cut(Window(box.top, box.left, box.height, box.width), layout.window, box.width):
                rows, columns = grid(band, layout.patch)
                units.append(Unit(item, band, rows * columns))
        elif collection.layout == "scenes":
            units.extend(Unit(item, window, 1) for window in cut(box, layout.window, layout.window))
        else:
            units.append(Unit(item, box, 1))
    return units


def cut(box: Window, height: int, width: int) -> list[Window]:
    """Windows side by side that cover a box, row by row; the last of a row or column may be smaller."""
    return [
        Window(box.top + top, box.left + left, min(height, box.height - top), min(width, box.width - left))
        for top in range(0, box.height, height)
        for left in range(0, box.width, width)
    ]


def grid(box: Window, patch: int) -> tuple[int, int]:
    """(rows, columns) of patches that cover a box."""
    return -(-box.height // patch), -(-box.width // patch)


def row_windows(unit: Unit, layout: Layout) -> list[Window]:
    """The pixels that each row of a unit stands for."""
    return cut(unit.box, layout.patch, layout.patch) if layout.dense else [unit.box]


def chunks(units: Sequence[Unit], layout: Layout, windows: int) -> Iterator[Sequence[Unit]]:
    """Consecutive units of about `windows` windows together, at least one unit."""
    start = 0
    while start < len(units):
        stop, count = start, 0
        while stop < len(units):
            rows, columns = grid(units[stop].box, layout.window)
            if stop > start and count + rows * columns > windows:
                break
            count += rows * columns
            stop += 1
        yield units[start:stop]
        start = stop
