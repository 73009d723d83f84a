"""Whether files look like the channels of images, and what `data.channel_pattern` would join them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from auxmae.data.image import ImageFile
from auxmae.data.joining import join_channels
from auxmae.errors import DataError

_BEFORE, _BEHIND = "(?:^|[/_. -])", "(?=[/_. -])"
# How channels are called in the paths of what is delivered one file a channel.
_PATTERNS = (
    # Opera and Operetta: r01c01f01p01-ch1sk1fk1fl1.
    "(?i)-(ch[0-9]{1,2})(?=sk[0-9])",
    # ImageXpress: A01_s1_w1 and an identifier of the file; MetaMorph: w1DAPI.
    "(?i)_(w[0-9])([0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12})(?=[.])",
    "(?i)_(w[0-9][a-z]{2}[^/_]*)(?=_|[.][a-z]+$)",
    # ArrayScan: A01f00d0.  CellVoyager: T0001F001L01A01Z01C01, whose action may differ with the channel.
    "(?i)f[0-9]{2,}(d[0-9])(?=[.])",
    "F[0-9]{3}L[0-9]{2}(A[0-9]{2})Z[0-9]{2}(?P<channel>C[0-9]{2})(?=[.])",
    f"(?i){_BEFORE}((?:channel|chan|ch|band|camera|cam)[_-]?[0-9]{{1,2}}|w[0-9]{{1,2}}){_BEHIND}",
    # Dyes, and what is stained, which as a folder may be a class.
    f"(?i){_BEFORE}((?:dapi|hoechst[0-9]*|[bcgry]fp|fitc|tritc|cy[357]|texas-?red|alexa-?[0-9]{{3}}|phalloidin){_BEHIND}|"
    "(?:dna|rna|er|agp|mito(?:tracker)?|actin|(?:beta-?)?tubulin)(?=[_. -][^/]*$))",
    f"(?i){_BEFORE}(coastal|blue|green|yellow|red(?:[_-]?edge)?[0-9]?|nir[0-9]?|swir[0-9]?|tir[0-9]?){_BEHIND}",
    # Sentinel-2's B01 and B8A, Landsat's B4, SR_B4 and ST_B10: behind microscopes' names, since B02 may be a well.
    f"{_BEFORE}((?:S[RT]_)?B[0-9]{{1,2}}A?){_BEHIND}",
    # Last, since it may be a column.
    f"(?i){_BEFORE}(c[0-9]{{1,2}}){_BEHIND}",
)
# Sentinel-2 as delivered, L2A and L1C: among masks, previews and each band in several resolutions, bands may be the fewest files.
_DELIVERED = (
    r"(R[126]0m)/[^/]*_(?P<channel>B[0-9A]+)(_[126]0m)\.\w+$",
    r"[0-9]T[0-9]+_(B[0-9A]+)\.\w+$",
)


def suggest_pattern(files: Sequence[ImageFile], relative_paths: Sequence[str]) -> str | None:
    """A `data.channel_pattern` that joins most of the files, or the bands of a delivery, into images; None where none does.

    Files that it does not find may hold anything, such as a composite in colours beside the bands.

    Args:
        files: the images as they were opened.
        relative_paths: of the files, below their source.
    """
    # ImageXpress stores a thumbnail beside each file.
    whole = sum("_thumb" not in path for path in relative_paths)
    patterns = [(pattern, 0) for pattern in _DELIVERED] + [(pattern, whole // 2) for pattern in _PATTERNS]
    for pattern, fewest in patterns:
        expression = re.compile(pattern)
        if sum(expression.search(path) is not None for path in relative_paths) <= fewest:
            continue
        try:
            images, _ = join_channels(files, relative_paths, pattern, False, [])
        except DataError:
            continue
        if images[0].channels > 1:
            return pattern
    return None
