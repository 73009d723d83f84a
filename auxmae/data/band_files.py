"""Whether files look like the channels of images, and what `data.channel_pattern` would join them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from auxmae.data.image import ImageFile
from auxmae.data.joining import join_channels
from auxmae.errors import DataError

_BEFORE, _BEHIND = "(?:^|[/_. -])", "(?=[/_. -])"
# How channels are called in the paths of what is delivered one file a channel, each with the flags that it needs.
_CHANNELS = (
    # Sentinel-2's B01 and B8A, Landsat's B4, SR_B4 and ST_B10.
    ("", "(?:S[RT]_)?B[0-9]{1,2}A?"),
    ("(?i)", "(?:channel|chan|ch|band)[_-]?[0-9]{1,2}"),
    ("(?i)", "coastal|blue|green|yellow|red(?:[_-]?edge)?[0-9]?|nir[0-9]?|swir[0-9]?|tir[0-9]?"),
    # What microscopes write: C01, w2.  Last, since c may be a column.
    ("(?i)", "[cw][0-9]{1,2}"),
)


def suggest_pattern(files: Sequence[ImageFile], relative_paths: Sequence[str]) -> str | None:
    """A `data.channel_pattern` that joins most of the files into images of two channels or more; None where none does.

    Files that it does not find may hold anything, such as a composite in colours beside the bands.

    Args:
        files: the images as they were opened.
        relative_paths: of the files, below their source.
    """
    for flags, channel in _CHANNELS:
        pattern = f"{flags}{_BEFORE}({channel}){_BEHIND}"
        expression = re.compile(pattern)
        found = [path for path in relative_paths if expression.search(path)]
        if 2 * len(found) <= len(files):
            continue
        try:
            images, _ = join_channels(files, relative_paths, pattern, False, [])
        except DataError:
            continue
        if images[0].channels > 1:
            return pattern
    return None
