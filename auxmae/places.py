"""What the name of a file or folder means that a user gives."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(name: str | Path) -> Path:
    """The path with the home folder that ~ or ~user stands for; as in a shell, a ~ that names no user's is a name's letter."""
    return Path(os.path.expanduser(name))
