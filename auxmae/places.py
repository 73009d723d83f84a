"""What the name of a file or folder means that a user gives."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Literal


def expanded(name: str | Path) -> Path:
    """The path with what ~ or ~user, $NAME and ${NAME} stand for: settings, .env and cron jobs come from no shell.

    A ~ that names no user's folder and a $ that names no variable are letters of a name.
    """
    return Path(os.path.expandvars(os.path.expanduser(name)))


def quoted(path: str | Path) -> str:
    """A path as a command line takes it that a message proposes: a name may have spaces."""
    return shlex.quote(str(path))


def absolute_place(name: str, setting: Literal["source", "labels"]) -> str:
    """What data.source or data.labels names, wherever it is said: paths absolute and, but for ".." behind a link,
    without "..", other words as they are."""
    # What is a word in one of them is a folder's name in the other.
    words = ("synthetic",) if setting == "source" else ("auto", "none")
    if name in words or (setting == "labels" and name.startswith(":")):
        return name
    parts = list[str]()
    for part in expanded(name).absolute().parts:
        # What lies above a link is not what stands before it in the path.
        if part == ".." and parts[-1] != ".." and not Path(*parts).is_symlink():
            del parts[max(len(parts) - 1, 1) :]  # above the root is the root
        else:
            parts.append(part)
    return str(Path(*parts))
