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
    data = _data(path)
    if data is None:
        raise DataError(
            f"{path}: the ENVI header's data file is missing", hint=f"expected {path.with_suffix('.img')} or the like"
        )
    return data


def pair(path: Path) -> tuple[Path, ...]:
    """The files that are one image with this one: of a header it and its data, of data it and its headers, else it alone."""
    if path.suffix.lower() == HEADER:
        data = _data(path)
        return (path,) if data is None else (path, data)
    return (path, *_headers(path)) if path.suffix.lower() in DATA_SUFFIXES else (path,)


def has_header(path: Path) -> bool:
    """Whether a header lies beside the data."""
    return bool(_headers(path))


def _data(path: Path) -> Path | None:
    if path.suffix.lower() != HEADER:
        return path
    candidates = (path.with_suffix(spelt) for suffix in DATA_SUFFIXES for spelt in (suffix, suffix.upper()))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _headers(path: Path) -> list[Path]:
    candidates = (
        candidate
        for suffix in (HEADER, HEADER.upper())
        for candidate in (path.with_suffix(suffix), path.with_name(path.name + suffix))
    )
    return [candidate for candidate in candidates if candidate.is_file()]


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
