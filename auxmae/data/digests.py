"""What tells whether the files and labels of a collection, or a model's weights, are those of an earlier call."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from auxmae.data.collection import Collection
from auxmae.data.opening import SYNTHETIC
from auxmae.data.readers.geotiff import read_beside


def digest(parts: Iterable[Any]) -> str:
    """Hex digest of bytes, and of anything else as text."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else f"{part}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """Hex digest of a model's weights, from its `state_dict()`."""
    return digest(
        piece
        for name in sorted(state)
        for piece in (name, state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    )


def digest_labels(collection: Collection) -> str:
    """Hex digest of the classes' names, the values that they stand for, and the class of every image."""
    values = {raster.values for raster in collection.label_rasters if raster is not None}
    per_image = b"" if collection.labels is None else collection.labels.tobytes()
    return digest([collection.class_names, sorted(values), per_image])


def digest_names(collection: Collection) -> str:
    """Hex digest of the files' names and sizes, which a copy of a data set shares with it."""

    def facts() -> Iterator[bytes]:
        for file in collection.files:
            for path in file.paths:
                size = path.stat().st_size if path.is_file() else 0
                yield os.fsencode(path.name) + f" {size}\n".encode()

    return digest(facts())[:16]


def digest_files(collection: Collection) -> str:
    """Hex digest of the names, sizes and times of the files, label rasters among them, and of the files beside them that say how
    they are read; their pixels are not read.
    """
    paths = {path for file in collection.files for path in file.paths}
    paths |= {raster.file.path for raster in collection.label_rasters if raster is not None}
    paths |= {beside for path in paths for beside in read_beside(path)}

    def facts() -> Iterator[str]:
        yield f"{len(collection)}"
        if collection.source == SYNTHETIC:
            yield str(collection.read(len(collection) - 1).pixels.sum())
            return
        for path in sorted(paths):
            for entry in sorted(path.rglob("*")) if path.is_dir() else [path]:
                status = entry.stat()
                yield f"{os.path.abspath(entry)} {status.st_size} {status.st_mtime_ns}"

    return digest(facts())
