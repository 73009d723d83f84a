"""From a collection to a file of features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from auxmae.data.collection import Collection
from auxmae.data.digests import digest, digest_files, digest_labels, digest_weights
from auxmae.data.splits import Part
from auxmae.errors import DataError
from auxmae.export.extract import UnitEncoder
from auxmae.export.formats import check_format, open_table, publish
from auxmae.export.units import Unit, chunks, make_layout, plan_units, row_windows
from auxmae.export.workspace import Workspace, writing
from auxmae.model.mae import AuxMAE

# Features looked at in one go.
_BLOCK = 2**22


@dataclass(frozen=True)
class Embedded:
    """What was written: rows and features per row, and how many of the rows an interrupted call had left.

    `not_finite` rows hold NaN or infinity; the first of them is of the image `first_not_finite`.
    """

    output: Path
    rows: int
    width: int
    resumed: int
    not_finite: int = 0
    first_not_finite: str | None = None


def embed(
    model: AuxMAE,
    collection: Collection,
    output: Path,
    *,
    pool: str = "mean",
    dense: bool = False,
    part: Part | None = None,
    about: dict[str, Any] | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Embedded:
    """Writes the features of every image (pooled) or every place (dense) of a collection.

    Memory holds one batch.  Interrupted, in whatever way, the same call goes on; the output appears when it is whole.

    Args:
        model: a trained model.
        collection: with the model's channels, or some of them.
        output: ends in .npy (and a .csv of the same name lists the rows), .parquet or .zarr.
        pool: "mean", "concat", "moments", "moments+embedding", "attention" or "cls".
        dense: one row for each patch.
        part: only these images or blocks; None: all.
        about: what else the features depend on and the output should say.
        batch_size: windows per forward pass.
        device: where to compute.
        overwrite: replace an output that is there.
        restart: forget what an interrupted call left.
        progress: told (rows done, rows in all).

    Raises:
        UsageError: something is there already, or the inputs changed since the interruption.
        AuxMAEError: the output cannot be written, or a file not read.
    """
    check_format(output, overwrite=overwrite)
    device = torch.device(device)
    layout = make_layout(model.image_size, model.patch_size, dense=dense)
    units = plan_units(collection, layout, part)
    total = sum(unit.rows for unit in units)
    if not total:
        raise DataError(f"{collection.source}: there is nothing to embed", hint="name another --part or other --data")
    said = {
        "source": collection.source,
        "channels": list(collection.channel_names),
        "pool": pool,
        "dense": dense,
        "window": layout.window,
        "patch_size": layout.patch,
        **(about or {}),
    }
    identity = {
        **said,
        "the model": digest_weights(model.state_dict()),
        "the files": digest_files(collection),
        "the labels": digest_labels(collection),
        "the rows": digest(f"{unit.item} {unit.box}" for unit in units),
    }
    model = model.to(device).eval()
    extract = UnitEncoder(model, collection, layout, pool=pool, batch_size=batch_size, device=device)
    with Workspace(output, identity, total, restart=restart) as work:
        resumed = work.rows
        if progress is not None:
            progress(work.rows, total)
        for chunk in chunks(units[work.units :], layout, batch_size):
            features, facts = extract(chunk)
            work.append(len(chunk), features, facts)
            if progress is not None:
                progress(work.rows, total)
        work.save()

        def places() -> Iterator[tuple[str, int, int, int, int, int]]:
            for unit in units:
                number, index = (int(value) for value in collection.items[unit.item])
                path = collection.relative_paths[number]
                for window in row_windows(unit, layout):
                    yield path, index, window.top, window.left, window.height, window.width

        # Of the whole file: what an earlier call has left counts too.
        bad = _rows_not_finite(work.features_path)
        first = None if not len(bad) else _unit_of(units, int(bad[0]))

        with writing(output):
            table = open_table(work.features_path, work.facts_path, places=places, class_names=collection.class_names, about=said)
            publish(table, output, work.folder)
            work.remove()
        return Embedded(output, total, work.width, resumed, len(bad), None if first is None else collection.name_of(first.item))


def _rows_not_finite(path: Path) -> NDArray[np.int64]:
    """Which rows of a file of features hold NaN or infinity."""
    features = np.load(path, mmap_mode="r")
    step = max(_BLOCK // max(features.shape[1], 1), 1)
    found = [
        start + np.flatnonzero(~np.isfinite(features[start : start + step]).all(axis=1))
        for start in range(0, len(features), step)
    ]
    return np.concatenate(found)


def _unit_of(units: Sequence[Unit], row: int) -> Unit:
    """The unit that a row is of."""
    ends = np.cumsum([unit.rows for unit in units])
    return units[int(np.searchsorted(ends, row, side="right"))]
