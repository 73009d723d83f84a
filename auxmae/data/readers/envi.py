"""ENVI's two files: a header NAME.hdr (or NAME.img.hdr) and the data beside it under many names."""

from __future__ import annotations

from pathlib import Path

from auxmae.errors import DataError

HEADER = ".hdr"
# Names of the data; of these only .img means anything without a header (Erdas Imagine).
DATA_SUFFIXES = ("", ".img", ".dat", ".raw", ".bsq", ".bil", ".bip")


def data_file(path: Path) -> Path:
    """The data of a header; any other path as it is.

    Raises:
        DataError: a header without data.
    """
    if path.suffix.lower() != HEADER:
        return path
    for suffix in DATA_SUFFIXES:
        for candidate in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
            if candidate.is_file():
                return candidate
    raise DataError(f"{path}: the ENVI header's data file is missing", hint=f"expected {path.with_suffix('.img')} or the like")


def has_header(path: Path) -> bool:
    """Whether a header lies beside the data."""
    return any(
        candidate.is_file()
        for suffix in (HEADER, HEADER.upper())
        for candidate in (path.with_suffix(suffix), path.with_name(path.name + suffix))
    )


def classification(path: Path) -> tuple[str, ...] | None:
    """The names of the classes, by number, of a map of classes with an ENVI header; None where it is no such map.

    They are empty where the header has none.  ENVI's class 0 is "unclassified".
    """
    if path.suffix.lower() != HEADER and not has_header(path):
        return None
    import rasterio

    with rasterio.open(data_file(path)) as source:
        header = source.tags(ns="ENVI")
        if source.driver != "ENVI" or "classification" not in header.get("file_type", "").lower():
            return None
    names = tuple(name.strip() for name in header.get("class_names", "").strip(" {}").split(","))
    return names if all(names) and len(set(names)) == len(names) else ()
