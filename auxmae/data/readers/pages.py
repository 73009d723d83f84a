"""Which pages of a TIFF are its image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from auxmae.errors import DataError


def full_pages(path: Path, kinds: Sequence[tuple[int, int, str]]) -> tuple[list[int], list[str]]:
    """The pages that make up the image: all where they are alike; the largest where the others are its pyramid.

    Args:
        path: the file.
        kinds: for each page height and width in px, and in words what else pages of one image have in common.

    Returns:
        Places of the pages, and what the user should be told.

    Raises:
        DataError: pages of several kinds, of which none is plainly the image.
    """
    if len(set(kinds)) <= 1:
        return list(range(len(kinds))), []
    ranked = sorted(range(len(kinds)), key=lambda page: -kinds[page][0] * kinds[page][1])
    areas = [kinds[page][0] * kinds[page][1] for page in ranked]
    # Bands of another resolution come several of one size; thumbnails and overviews do not.
    if all(larger >= 2 * smaller for larger, smaller in pairwise(areas)):
        return ranked[:1], [f"{path.name}: only its largest page is read; the {len(kinds) - 1} smaller are taken for thumbnails"]
    listed = ", ".join(dict.fromkeys(f"{height} × {width} px of {rest}" for height, width, rest in kinds))
    raise DataError(
        f"{path}: its {len(kinds)} pages are not alike ({listed}): which of them are the channels?",
        hint="store the channels as pages of one size and type, or each image in a file of its own",
    )
