"""Finished features → npy with a CSV beside it, Parquet, or Zarr; each in bounded memory, each swapped in whole."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.collection import Collection
from auxmae.data.exclusion import Exclusion
from auxmae.data.files import would_find
from auxmae.data.readers import is_readable
from auxmae.errors import MissingDependencyError, UsageError
from auxmae.export.extract import FACTS
from auxmae.export.workspace import has_all_rows
from auxmae.places import expanded, quoted

COLUMNS = ("path", "index", "top", "left", "height", "width", "label", "class", "valid")
# Bytes of features that are read at a time.
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Table:
    """Everything that a format writes.

    Attributes:
        features: (n, D) memory-mapped.
        facts: (n,) memory-mapped label and share of valid pixels.
        places: yields for every row (path, index, top, left, height, width).
        class_names: names of the labels.
        about: what the features are, JSON-able.
        features_path: the npy file behind `features`.
    """

    features: NDArray[np.float32]
    facts: NDArray[np.void]
    places: Callable[[], Iterator[tuple[str, int, int, int, int, int]]]
    class_names: tuple[str, ...]
    about: Mapping[str, Any]
    features_path: Path

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], dict[str, list[Any]]]]:
        """Features and columns of consecutive rows."""
        size = max(_BLOCK_BYTES // (4 * self.features.shape[1]), 1)
        places = self.places()
        for start in range(0, len(self.features), size):
            features, facts = self.features[start : start + size], self.facts[start : start + size]
            columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
            for fact, place in zip(facts.tolist(), places, strict=False):
                label, valid = fact
                known = label >= 0
                name = self.class_names[label] if 0 <= label < len(self.class_names) else None
                values = (*place, label if known else None, name, round(valid, 6))
                for column, value in zip(COLUMNS, values, strict=True):
                    columns[column].append(value)
            yield np.asarray(features), columns


def check_format(output: Path, *, overwrite: bool) -> None:
    """Says before any work whether the output can be written.

    Raises:
        UsageError: an unknown ending, or something is there already.
        MissingDependencyError: the format's package is not installed.
    """
    suffix = output.suffix.lower()
    if suffix not in _WRITERS:
        raise UsageError(f"{output}: features are written as {', '.join(_WRITERS)}", hint="choose --output by its ending")
    package = {".parquet": "pyarrow", ".zarr": "zarr"}.get(suffix)
    if package:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingDependencyError(
                f"{output}: writing {suffix} needs {package}, which is not installed", hint=f"pip install 'auxmae[{suffix[1:]}]'"
            ) from error
    # An interruption between the two, when all rows are there, may have left the CSV alone: it is this export's own.
    beside = [sidecar(output)] if suffix == ".npy" and not has_all_rows(output) else []
    for path in () if overwrite else (output, *beside):
        if path.exists():
            raise UsageError(f"{path} exists", hint="choose another --output, or add --overwrite")


def check_apart(output: Path, collection: Collection, *, labels: str = "none", exclude: Sequence[str] = ()) -> None:
    """Says before any work that an output would destroy an input, or become one.

    Args:
        output: as for `embed`.
        collection: the opened images.
        labels: what data.labels names.
        exclude: file name patterns that the source leaves out.

    Raises:
        UsageError: it, or the CSV beside it, is an image or label file, or a later call would read it as an image.
    """
    inputs = [path for file in collection.files for path in file.paths]
    inputs += [raster.file.path for raster in collection.label_rasters if raster is not None]
    if labels not in ("auto", "none"):
        inputs += [expanded(labels), expanded(labels.rpartition(":")[0])]
    # A store is a folder, and what lies within it is part of it; so is a file within an output that is a folder.
    known = {path.resolve() for path in inputs if path.is_file() or is_readable(path)}
    for path in (output, *([sidecar(output)] if output.suffix.lower() == ".npy" else [])):
        place = path.resolve()
        if known.intersection((place, *place.parents)) or any(place in one.parents for one in known):
            raise UsageError(f"{path} is what is embedded, or its labels", hint="choose another --output")
    place = output.resolve()
    # A pattern may reach a folder by a link too.
    beside = fnmatch(place.name, Path(collection.source).name) and place.parent in {path.parent for path in known}
    within = beside or would_find(collection.source, place)
    if within and is_readable(output) and not Exclusion(exclude).leaves_out(place):
        # --set replaces the whole list, and a JSON one is TOML.
        patterns = json.dumps([*exclude, output.name], ensure_ascii=False)
        raise UsageError(
            f"{output} lies among the images, and would be read as one of them the next time",
            hint=f"choose another --output, or leave it out with --set {quoted(f'data.exclude={patterns}')}",
        )


def sidecar(output: Path) -> Path:
    """The CSV beside an npy file: one line for each row."""
    return output.with_suffix(".csv")


def publish(table: Table, output: Path, folder: Path) -> None:
    """Writes a format into the workspace and swaps it into its place."""
    _WRITERS[output.suffix.lower()](table, output, folder)


def _write_npy(table: Table, output: Path, folder: Path) -> None:
    path = folder / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for _, columns in table.blocks():
            writer.writerows(zip(*columns.values(), strict=True))
        file.flush()
        os.fsync(file.fileno())
    path.replace(sidecar(output))
    _swap(table.features_path, output)


def _write_parquet(table: Table, output: Path, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = dict.fromkeys(COLUMNS, pa.int64()) | {"path": pa.string(), "class": pa.string(), "valid": pa.float32()}
    feature = pa.list_(pa.float32(), table.features.shape[1])
    schema = pa.schema(
        [*((name, kinds[name]) for name in COLUMNS), ("features", feature)],
        metadata={"auxmae": json.dumps(table.about)},
    )
    path = folder / "features.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for features, columns in table.blocks():
            arrays = [pa.array(columns[name], kinds[name]) for name in COLUMNS]
            values = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
            writer.write_table(pa.Table.from_arrays([*arrays, values.cast(feature)], schema=schema))
    _swap(path, output)


def _write_zarr(table: Table, output: Path, folder: Path) -> None:
    import zarr

    path = folder / "features.zarr"
    shutil.rmtree(path, ignore_errors=True)
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    rows, width = table.features.shape
    size = max(min(_BLOCK_BYTES // 8 // (4 * width), rows), 1)
    kinds: dict[str, Any] = dict.fromkeys(COLUMNS, "int64") | {"valid": "float32"}
    del kinds["class"]
    arrays = {
        name: group.create_array(name, shape=(rows,), chunks=(max(min(rows, 2**16), 1),), dtype=kinds[name]) for name in kinds
    }
    features_array = group.create_array("features", shape=(rows, width), chunks=(size, width), dtype="float32")
    # Paths and classes as numbers: strings are no part of the version 3 specification yet.
    paths: dict[str, int] = {}
    start = 0
    for features, columns in table.blocks():
        stop = start + len(features)
        features_array[start:stop] = features
        columns["path"] = [paths.setdefault(name, len(paths)) for name in columns["path"]]
        columns["label"] = [-1 if label is None else label for label in columns["label"]]
        for name, array in arrays.items():
            array[start:stop] = np.asarray(columns[name], dtype=kinds[name])
        start = stop
    group.attrs.update({"auxmae": dict(table.about), "paths": list(paths), "class_names": list(table.class_names)})
    _swap(path, output)


def _swap(fresh: Path, output: Path) -> None:
    """`output` becomes `fresh`; a folder that was there is moved aside first, and goes last."""
    old = output.with_name(f".{output.name}.old")
    if output.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
    fresh.replace(output)
    shutil.rmtree(old, ignore_errors=True)


def open_table(features_path: Path, facts_path: Path, **rest: Any) -> Table:
    """The table of a complete workspace."""
    return Table(
        features=np.load(features_path, mmap_mode="r"),
        facts=np.memmap(facts_path, dtype=FACTS, mode="r"),
        features_path=features_path,
        **rest,
    )


_WRITERS: dict[str, Callable[[Table, Path, Path], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".zarr": _write_zarr,
}
