"""What data.exclude leaves out."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path, PurePath

from auxmae.data.readers.envi import pair


class Exclusion:
    """Patterns of files to leave out, and which of them did so.

    Args:
        patterns: of file names; one with a slash is compared with the last parts of paths: "A/2/*".

    Attributes:
        left_out: the files that were left out so far.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._used = dict.fromkeys(patterns, False)
        self.left_out: list[Path] = []

    def leaves_out(self, path: Path) -> bool:
        """Whether a pattern is that of a file; an ENVI image goes by the name of its header and of its data."""
        matches = self._any_of(pair(path), list(self._used))
        self.left_out.extend([path] if matches else [])
        return matches

    def leaves_out_field(self, path: Path) -> bool:
        """The same of a plate's well or field, whose own name, a mere number, is not compared with patterns of file names."""
        return self._any_of((path,), [pattern for pattern in self._used if _has_folders(pattern)])

    def idle(self) -> list[str]:
        """The patterns that have left out nothing."""
        return [pattern for pattern, used in self._used.items() if not used]

    def _any_of(self, names: Sequence[Path], patterns: Sequence[str]) -> bool:
        matching = [pattern for pattern in patterns if any(_matches(name, pattern) for name in names)]
        self._used.update(dict.fromkeys(matching, True))
        return bool(matching)


def _matches(path: PurePath, pattern: str) -> bool:
    return path.match(pattern) if _has_folders(pattern) else fnmatch.fnmatch(path.name, pattern)


def _has_folders(pattern: str) -> bool:
    return "/" in pattern.strip("./")
