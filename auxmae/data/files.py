"""Which files a source names: a file, a folder, or a glob pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from auxmae.data.exclusion import Exclusion
from auxmae.data.plates import STORE, fields, is_row, series, store_of, wells
from auxmae.errors import DataError
from auxmae.places import expanded

# What every run folder holds from its first moment on.
RUN_MARKS = ("settings.toml", "checkpoints", "figures")
# Endings of images that no reader is for; .gz where it follows another of them.
UNREAD = frozenset({
    ".bmp", ".gif", ".webp", ".jfif", ".j2k", ".jpf", ".jpx", ".pgm", ".ppm", ".pnm", ".tga", ".exr", ".heic", ".avif",
    ".dng", ".cr2", ".nef", ".arw", ".bsq", ".bil", ".bip", ".hdf", ".grib", ".grb", ".grib2", ".grb2", ".fits",
    ".fit", ".fts", ".dcm", ".nii", ".mha", ".mhd", ".nrrd", ".czi", ".lif", ".nd2", ".oib", ".oif", ".vsi", ".svs",
    ".ndpi", ".mrxs",
})  # fmt: skip


def find_files(source: str, exclude: Exclusion, notices: list[str], *, tell_unread: bool = True) -> tuple[Path, list[Path]]:
    """→ (the folder that relative paths start from, the files in the order of their names, plates as their fields, and ENVI
    images as their data).

    Args:
        source: a file, a folder, or a glob pattern.
        exclude: files, and wells and fields of plates, to leave out; an ENVI image by the name of its header or of its data.
        notices: told of run folders that lie within the source, whose figures are no images of it, of links to nothing, and of
            images of kinds that no reader is for, unless `tell_unread` is False.

    Raises:
        DataError: there is nothing that could be read.
    """
    from auxmae.data.readers import export_first, is_readable, path_exists, supported_suffixes
    from auxmae.data.readers.envi import DATA_SUFFIXES, HEADER, pair

    listed = ", ".join(supported_suffixes())
    path = expanded(source)
    exists = path_exists(path)
    if exists:
        _refuse_row(path)
    if exists and path.is_dir() and not is_readable(path):
        candidates = _walk(path, notices)
        root = path
        if not candidates:
            raise DataError(f"{source}: the folder is empty", hint=f"supported: {listed}")
    elif exists:
        return _outside(path.parent), _images(source, [path], exclude, notices)
    elif any(character in str(path) for character in "*?["):
        found = {Path(name) for name in glob.glob(str(path), recursive=True)}
        # A store stands for all that lies within it.
        candidates = sorted(entry for entry in found if not any(one.suffix.lower() == STORE for one in found & {*entry.parents}))
        root = _outside(_fixed(path))
        if not candidates:
            raise DataError(f"{source}: no file matches this pattern", hint=hint_for_place(source, "data.source (--data)"))
    else:
        raise DataError(f"{source}: no such file or folder", hint=hint_for_place(source, "data.source (--data)"))
    runs: dict[Path, bool] = {}
    own = [entry for entry in candidates if not _in_run(entry, root, runs)]
    if any(runs.values()):
        notices.append(f"{source}: run folders of AuxMAE in it are left out: {sum(runs.values())}")
    shown = [entry for entry in own if not any(part.startswith(".") for part in _parts_below(entry, root))]
    usable = [entry for entry in shown if is_readable(entry)]
    paths = [entry for entry in usable if not exclude.leaves_out(entry)]
    if not paths:
        why = "every supported file is excluded by data.exclude" if usable else "no supported file"
        why += " outside of run folders" if any(runs.values()) else ""
        export = next(filter(None, map(export_first, shown)), "")
        raise DataError(f"{source}: {why}", hint="check data.exclude" if usable else f"supported: {listed}{export}")
    if tell_unread and (unread := [entry for entry in shown if _is_unread_image(entry) and not exclude.leaves_out(entry)]):
        kinds = ", ".join(sorted({entry.suffix.lower() for entry in unread}))
        files = "1 file" if len(unread) == 1 else f"{len(unread)} files"
        notices.append(f"left out: {files} of kinds that no reader is for ({kinds}), {relative_path(unread[0], root)} the first")
    # An ENVI header stands for its data file: the pair is one image.
    headers = {entry.with_suffix("") for entry in paths if entry.suffix.lower() == HEADER}

    def described(entry: Path) -> bool:
        return entry in headers or (entry.suffix.lower() in DATA_SUFFIXES and entry.with_suffix("") in headers)

    # The image is called like its data, unless that has a name which says nothing without the header's.
    images = (
        next(one for one in reversed(pair(entry)) if is_readable(one)) if entry.suffix.lower() == HEADER else entry
        for entry in paths
        if not described(entry)
    )
    return root, _images(source, list(dict.fromkeys(images)), exclude, notices)


def hint_for_place(place: str, setting: str) -> str:
    """What to do where nothing is at the place that a setting names."""
    if "://" in place or place.startswith("/vsi"):
        return "addresses are not read: copy or mount the files, and name them by a path of this machine"
    return f"check {setting}"


def _is_unread_image(path: Path) -> bool:
    from auxmae.data.readers import is_readable

    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower() in UNREAD and not is_readable(path)


def would_find(source: str, place: Path) -> bool:
    """Whether a source would find a file that were at an absolute place without links, if it can read it."""
    path = expanded(source)
    folder = path if path.exists() else _fixed(path)
    pattern = ("**",) if path.is_dir() else path.parts[len(folder.parts) :]
    root = folder.resolve()
    if not place.is_relative_to(root) or _in_run(place, root, {}):
        return False
    return _matches(place.relative_to(root).parts, pattern)


def _fixed(pattern: Path) -> Path:
    """The folders before the first of a glob pattern's parts that is one itself."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path's parts are those of a glob pattern, whose ** stands for any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _outside(folder: Path) -> Path:
    """The folder, or that of the Zarr store which it lies in: a field is plate.zarr/A/1/0 however it was named."""
    store = store_of(folder)
    return folder if store is None else store.parent


def _images(source: str, paths: list[Path], exclude: Exclusion, notices: list[str]) -> list[Path]:
    """The same, with the fields of a plate or a well, or the series of a store, in its place; wells without a list of fields as
    they are: opening them tells.
    """
    images, field_count, well_count, numbered = list[Path](), 0, 0, list[list[Path]]()
    for path in paths:
        within = store_of(path) is not None and path.is_dir()
        listed = wells(path) if within else None
        own = series(path) if within and listed is None else None
        if own is not None:
            numbered.append([one for one in own if not exclude.leaves_out_field(one)])
            images.extend(numbered[-1])
        elif listed is None:
            _refuse_row(path)
            images.append(path)
        for well in listed or ():
            if exclude.leaves_out_field(well):
                continue
            found = fields(well)
            if found is None:
                images.append(well)
                continue
            kept = [field for field in found if not exclude.leaves_out_field(field)]
            images.extend(kept)
            field_count += len(kept)
            well_count += bool(kept)
    if well_count:
        notices.append(
            f"{source}: each of the {field_count} fields of {well_count} well{'s' * (well_count > 1)} is an image; "
            r"data.group_pattern = '([^/]+/[^/]+)/[^/]+$' keeps a well's together"
        )
    if any(len(kept) > 1 for kept in numbered):
        notices.append(
            f"{source}: each of the {sum(map(len, numbered))} series that bioformats2raw has numbered is an image; "
            r"data.group_pattern = '([^/]+)/[^/]+$' keeps a store's together"
        )
    if not images:
        raise DataError(
            f"{source}: the store has no images, or data.exclude leaves out all of them",
            hint="check data.source (--data) and data.exclude",
        )
    return images


def _refuse_row(path: Path) -> None:
    """Raises DataError for a row of a plate, which is neither an image nor lists its wells."""
    if store_of(path.parent) is not None and is_row(path):
        raise DataError(f"{path}: is a row of a plate", hint=f"name the plate, {path.parent}, or the row's wells, {path}/*")


def _walk(folder: Path, notices: list[str]) -> list[Path]:
    """Every file below a folder, linked folders' too; a Zarr store, a folder that is one file to us, as a whole."""
    from auxmae.data.readers import READERS, is_readable

    found, seen = [], {folder.resolve()}

    def pass_over(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        notices.append(f"left out: {error.filename} cannot be looked into: {error.strerror}")

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=pass_over):
        inner = []
        for name in sorted(folders):
            path = Path(parent, name)
            if path.suffix.lower() == STORE:
                found.append(path)
                continue
            if path.suffix.lower() in READERS:
                notices.append(f"{path} is a folder, and no image in spite of its name")
            if path.resolve() not in seen:
                # A link may lead to a folder above it, or to one that is there by its own name.
                seen.add(path.resolve())
                inner.append(name)
        folders[:] = inner
        for name in files:
            path = Path(parent, name)
            if path.is_file():
                found.append(path)
            elif path.is_symlink():
                notices.append(f"left out: {path} is a link to nothing")
            elif is_readable(path):
                notices.append(f"left out: {path} is no regular file")
    return sorted(found)


def _in_run(path: Path, root: Path, runs: dict[Path, bool]) -> bool:
    """Whether a file lies in a run folder below the root; `runs` keeps which folders are one."""
    within = False
    for folder in path.parents:
        if folder == root:
            break
        if folder not in runs:
            runs[folder] = all((folder / mark).exists() for mark in RUN_MARKS)
        within |= runs[folder]
    return within


def _parts_below(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parts if path.is_relative_to(root) else path.parts


def relative_path(path: Path, root: Path) -> str:
    """A file's path below the root, with slashes; as it is where it lies elsewhere; bytes that are no UTF-8 as \\xe9."""
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return os.fsencode(relative.as_posix()).decode("utf-8", errors="backslashreplace")
