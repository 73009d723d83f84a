"""Which image a name means: a table's rows and a folder's label rasters name images each in their own way."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import dropwhile
from pathlib import Path, PurePosixPath

from auxmae.data.plates import store_of
from auxmae.errors import DataError

# The last words of the names of label files: one that is left out beside images is none of these.
_LABEL_WORDS = frozenset({"gt", "groundtruth", "label", "labels", "mask", "masks", "seg", "segmentation", "truth"})
# A well, perhaps behind its plate: A01, A1, A-1, and A/1 as plates of OME-Zarr have it.
_WELL = re.compile(r"(?:(.*)[^A-Za-z0-9])?([A-Za-z]{1,2})[/_-]?([0-9]{1,2})")


class ImageNames:
    """Looks images up by path, file name, or file name without its ending; groups of them by their name, as `composed` has it.

    Args:
        relative_paths: of the images, below their source, with slashes.
        root: the folder that these start from: a name may hold some of its folders too.
        group_pattern: regular expression on the relative paths, whose first group names the group that an image is of; "": none.
        parts: of images that are joined from several files, the relative paths of these, which mean the image as well.
        left_out: relative paths of images that are not used: their label rasters are no others'.  Label files among them count
            for nothing.

    Attributes:
        relative_paths: as given.
        groups: the indices of each group's images.
    """

    def __init__(
        self,
        relative_paths: Sequence[str],
        root: Path = Path(),
        group_pattern: str = "",
        parts: Sequence[Sequence[str]] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        left_out = [path for path in left_out if re.split(r"[\W_]", PurePosixPath(path).stem.lower())[-1] not in _LABEL_WORDS]
        self._left_out = ImageNames(left_out, root) if left_out else None
        self.relative_paths, self._root, self._parts = tuple(relative_paths), root, parts
        self._above = PurePosixPath(composed(root.absolute().as_posix()))
        self.groups: dict[str, list[int]] = {}
        for index, text in enumerate(relative_paths if group_pattern else ()):
            if (match := re.search(group_pattern, text)) is not None and match.group(1):
                self.groups.setdefault(composed(match.group(1)), []).append(index)
        # By each name the images' indices, and where below the source the file lies that is called so.
        self._by_name: dict[str, list[tuple[int, PurePosixPath]]] = {}
        self._by_stem: dict[str, list[tuple[int, PurePosixPath]]] = {}
        for index, text in enumerate(relative_paths):
            for path in {PurePosixPath(composed(one)) for one in (text, *(parts[index] if parts else ()))}:
                self._by_name.setdefault(path.name, []).append((index, path.parent))
                self._by_stem.setdefault(path.stem, []).append((index, path.parent))

    @cached_property
    def in_small_letters(self) -> ImageNames:
        """The same images and groups with all names in small letters."""
        parts = [[path.lower() for path in paths] for paths in self._parts]
        small = ImageNames([path.lower() for path in self.relative_paths], Path(str(self._root.absolute()).lower()), parts=parts)
        small.groups = {name.lower(): indices for name, indices in self.groups.items()}
        return small

    @cached_property
    def wells(self) -> dict[str, list[int]]:
        """The groups that are wells, by `well`, but for those that are the same one."""
        named = [(well(name), indices) for name, indices in self.groups.items()]
        count = Counter(name for name, _ in named)
        return {name: indices for name, indices in named if name is not None and count[name] == 1}

    def is_file_name(self, name: str) -> bool:
        """Whether an image's file is called exactly so."""
        return _path(name).name in self._by_name

    def find(self, name: str) -> list[int]:
        """The indices of the images that a name may mean: one, none, or several with the same file name.

        Folders in the name are the last ones of the image's own.  Of an absolute path, which may be of another machine, they
        only decide between several.
        """
        path = _path(name)
        # A name without an ending may hold dots all the same, and what stands behind a number's is no ending.
        found = self._by_name.get(path.name) or self._by_stem.get(path.name) or []
        if not found and path.suffix[1:2].isalpha():
            found = self._by_stem.get(path.stem, [])
        if len(path.parts) == 1:
            # Fields of a plate are called 0, 1, …: alone that is rather a number.
            found = [(index, folder) for index, folder in found if store_of(Path(self._above / folder)) is None]
        if not _is_absolute(path):
            found = [one for one in found if _same_end((self._above / one[1]).parts, path.parent.parts)]
        elif len({index for index, _ in found}) > 1:
            found = [one for one in found if _same_end(one[1].parts, path.parent.parts)]
        return list(dict.fromkeys(index for index, _ in found))

    def one(self, name: str) -> int | None:
        """The one image that a name means; None: there is none.

        Raises:
            DataError: it means several.
        """
        found = self.find(name)
        if len(found) > 1:
            listed = " or ".join(self.relative_paths[index] for index in found[:3])
            raise DataError(f"{name} may be {listed}", hint="name images by their paths below the source")
        return found[0] if found else None

    def called_like(self, raster: str) -> str | None:
        """The longest of a label raster's `shorter_names` that may mean an image; None: there is none, or it is one left out."""
        names, name = self._longest(raster)
        return name if names is self else None

    def left_out_like(self, raster: str) -> str | None:
        """The relative path of an image left out that a label raster is called like; None: of none, or rather like one in use.

        So are an image's whose name goes on after that of the one left out: x_gt is of x_corrected where x is left out.
        """
        names, name = self._longest(raster)
        if names is None or names is self:
            return None
        stem = PurePosixPath(name).name
        if any(stem == PurePosixPath(shorter).name for path in self.relative_paths for shorter in shorter_names(path)[1:]):
            return None
        return names.relative_paths[names.find(name)[0]]

    def _longest(self, raster: str) -> tuple[ImageNames | None, str]:
        """The images, those in use or those left out, and the longest of a label raster's `shorter_names` that may mean one."""
        for name in shorter_names(raster):
            for names in (self, self._left_out):
                if names is not None and names.find(name):
                    return names, name
        return None, ""


def composed(text: str) -> str:
    """A text with letters and their accents in one, as most programs write it: macOS stores file names with them apart."""
    return unicodedata.normalize("NFC", text)


def well(name: str) -> str | None:
    """One way to write a well, whichever of the usual ones the name has; None where it names none."""
    found = _WELL.fullmatch(name.strip())
    return None if found is None else f"{found[1] or ''}/{found[2]}{int(found[3])}"


def _is_absolute(path: PurePosixPath) -> bool:
    return path.is_absolute() or (path.parts[:1] != () and path.parts[0].endswith(":"))


def _path(name: str) -> PurePosixPath:
    """The path that a name is, without what leads to folders above: "../images/a.tif", as seen from a table, is images/a.tif."""
    parts = PurePosixPath(posixpath.normpath(composed(name).strip().replace("\\", "/"))).parts
    return PurePosixPath(*dropwhile(lambda part: part == "..", parts))


def _same_end(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the shorter of two paths of folders is the end of the longer one."""
    common = min(len(one), len(other))
    return one[len(one) - common :] == other[len(other) - common :]


def shorter_names(name: str) -> list[str]:
    """A name, and what is left of it without the words behind its first ones: a_b_mask.png, a_b, a."""
    path = PurePosixPath(name)
    ends = [end for end in range(len(path.stem) - 1, 0, -1) if not path.stem[end].isalnum()]
    return [name, *(str(path.with_name(path.stem[:end])) for end in ends)]
