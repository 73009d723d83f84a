"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from auxmae.errors import AuxMAEError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what then takes the place of `path`; what lies there stays until that is whole.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    if path.exists() and not path.is_file():
        # A device or a pipe is no file to replace, nor is a folder, which says so itself.
        yield path
        return
    # What a link points to is replaced, not the link.
    place = Path(os.path.realpath(path))
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(place)
    except OSError as error:
        # The draft's name says nothing to the user, and a full disk comes without any.
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Writes a UTF-8 text file, whole or not at all; bytes of a file's name that are no UTF-8 become escapes.

    Raises:
        AuxMAEError: the file cannot be written.
    """
    try:
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise AuxMAEError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path
