"""Whether images' names look like several of one thing (fields, time points), and the `data.group_pattern` that joins them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

# What counts the images of one thing, in names of microscopes and of image series.
_COUNTED = "f|fov|field|s|site|t|time|frame|l|z|slice|section|v|view|p|pos|position|r|rep|scan|crop|patch|tile"
# What data.channel_pattern leaves of a channel's name where its group is the number alone, and what Opera writes behind it.
_LEFT = "(?:[_. -]?(?:ch|[cdw]))?(?:sk[0-9]+fk[0-9]+fl[0-9]+)?"
_END = r"(?:[.][^/]*)?$"
_PATTERNS = (
    # plate1_A01_f2, r01c01f03, donor4_s1_t003.
    rf"(?i)^(.*?[0-9][^/]*?)(?:(?:[_. -]|(?<=[0-9]))(?:{_COUNTED})[_-]?[0-9]{{1,4}})+{_LEFT}{_END}",
    # donor3_1, but not tile_3_1, whose numbers may be places on a grid.
    rf"(?i)^((?:.*[/_. -])?[a-z]+[0-9]+[a-z]?)[_. -][0-9]{{1,4}}{_END}",
)
# Fewer or larger sets may as well be classes, cameras or scenes cut into tiles.
_FEWEST, _LARGEST = 5, 10


class Sets(NamedTuple):
    """A `data.group_pattern`, how many sets it makes of the images, and two images of one set."""

    pattern: str
    number: int
    example: tuple[str, str]


def suggest_groups(relative_paths: Sequence[str], classes: int = 0) -> Sets | None:
    """What keeps images together whose names differ in a last number alone; None where names do not look like that.

    All names have to end so, four of five images in sets of two and more; the sets are at least five, twice as many as the
    `classes`, and hold ten images on average, or as many as there are sets, at most.
    """
    for pattern in _PATTERNS:
        expression = re.compile(pattern)
        sets: dict[str, list[str]] = defaultdict(list)
        for path in relative_paths:
            match = expression.search(path)
            if match is None:
                break
            sets[match.group(1)].append(path)
        else:
            several = [members for members in sets.values() if len(members) > 1]
            held = sum(map(len, several))
            few = len(several) < max(_FEWEST, 2 * classes) or held > len(several) * max(_LARGEST, len(several))
            if not few and 5 * held >= 4 * len(relative_paths):
                return Sets(pattern, len(sets), (several[0][0], several[0][1]))
    return None
