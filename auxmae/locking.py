"""One writer at a time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

if sys.platform != "win32":
    import fcntl


def take_lock(path: Path) -> TextIO:
    """Locks a file, which is made where there is none, until it is closed or its process has ended, however that ends.

    On Windows, and where the file system has no locks, nothing is locked.

    Raises:
        BlockingIOError: another one has the lock.
        OSError: the file cannot be opened for writing.
    """
    file = path.open("a", encoding="utf-8")
    if sys.platform == "win32":
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        pass  # no locks here, as on some network file systems
    return file
