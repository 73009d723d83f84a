"""What is told of many files, in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path


def said_once(told: Iterable[tuple[Path, Sequence[str]]]) -> list[str]:
    """Files' notices, each once, with the number of files, where they differ only in the file's name that they start with."""
    first, count = dict[str, str](), Counter[str]()
    for path, notices in told:
        for notice in notices:
            what = notice.removeprefix(f"{path.name}: ")
            first.setdefault(what, notice)
            count[what] += 1
    return [notice if count[what] == 1 else f"{notice} ({count[what]} files)" for what, notice in first.items()]


def first_of(names: Sequence[str]) -> str:
    """The first three of names, for a sentence."""
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
