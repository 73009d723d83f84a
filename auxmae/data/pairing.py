"""Which image a name means: a table's rows and a folder's label rasters name images each in their own way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from auxmae.errors import DataError


class ImageNames:
    """Looks images up by path, file name, or file name without its ending; groups of them by their name.

    Args:
        relative_paths: of the images, below their source, with slashes.
        group_pattern: regular expression on these paths, whose first group names the group that an image is of; "": none is.
    """

    def __init__(self, relative_paths: Sequence[str], group_pattern: str = "") -> None:
        self.paths = [PurePosixPath(path) for path in relative_paths]
        self.groups: dict[str, list[int]] = {}
        for index, text in enumerate(relative_paths if group_pattern else ()):
            if (match := re.search(group_pattern, text)) is not None and match.group(1):
                self.groups.setdefault(match.group(1), []).append(index)
        self.by_name: dict[str, list[int]] = {}
        self.by_stem: dict[str, list[int]] = {}
        for index, path in enumerate(self.paths):
            self.by_name.setdefault(path.name, []).append(index)
            self.by_stem.setdefault(path.stem, []).append(index)

    def is_file_name(self, name: str) -> bool:
        """Whether an image's file is called exactly so."""
        return _path(name).name in self.by_name

    def find(self, name: str) -> list[int]:
        """The indices of the images that a name may mean: one, none, or several with the same file name.

        The folders before the file name decide between those.
        """
        path = _path(name)
        # A name without an ending may hold dots all the same, and what stands behind a number's is no ending.
        found = self.by_name.get(path.name) or self.by_stem.get(path.name) or []
        if not found and path.suffix[1:2].isalpha():
            found = self.by_stem.get(path.stem, [])
        if len(found) > 1:
            found = [index for index in found if _same_end(self.paths[index].parent.parts, path.parent.parts)]
        return found

    def one(self, name: str) -> int | None:
        """The one image that a name means; None: there is none.

        Raises:
            DataError: it means several.
        """
        found = self.find(name)
        if len(found) > 1:
            listed = " or ".join(str(self.paths[index]) for index in found[:3])
            raise DataError(f"{name} may be {listed}", hint="name images by their paths below the source")
        return found[0] if found else None


def _path(name: str) -> PurePosixPath:
    return PurePosixPath(name.strip().replace("\\", "/"))


def _same_end(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the shorter of two paths of folders is the end of the longer one."""
    common = min(len(one), len(other))
    return one[len(one) - common :] == other[len(other) - common :]


def shorter_names(name: str) -> list[str]:
    """A name, and what is left of it without the words behind its first ones: a_b_mask.png, a_b, a."""
    path = PurePosixPath(name)
    ends = [end for end in range(len(path.stem) - 1, 0, -1) if not path.stem[end].isalnum()]
    return [name, *(str(path.with_name(path.stem[:end])) for end in ends)]
