"""What `auxmae eval` leaves in the run folder: pictures and maps, and eval.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from auxmae.errors import AuxMAEError

if TYPE_CHECKING:
    from rich.console import Console


def attempt(write: Callable[[], Path], unwritten: list[Path], path: Path, out: Console) -> str | None:
    """Writes a picture or map: the figures, which are worth more, come out even where that fails.

    Args:
        write: what writes it.
        unwritten: gets `path` where it fails, which is said on one line.
        path: of the file.
        out: where to say it.

    Returns:
        The path for the document; None where it failed.
    """
    try:
        write()
    except AuxMAEError as error:
        unwritten.append(path)
        out.print(f"Not written: {error.message}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        return None
    return str(path)
