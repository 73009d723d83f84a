"""Decoded arrays that crops are cut from, kept for the next crop: the last ones used, up to a number of bytes a process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

# Every loader process has a cache of its own.
BUDGET = 256 * 2**20

Arrays = dict[str, NDArray[Any]]


class DecodedCache:
    """Named arrays by key; the least recently used go first when there are more bytes than `budget`.

    What was decoded last is kept even where it is larger than the budget: it is in memory anyway, and the next crop
    most likely comes from it.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.bytes = 0
        self._entries: OrderedDict[Hashable, Arrays] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], Arrays]) -> Arrays:
        """The arrays of `key`, from `decode()` where they are not held."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        arrays = decode()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = arrays
                self.bytes += _bytes(arrays)
            while self.bytes > self.budget and len(self._entries) > 1:
                _, dropped = self._entries.popitem(last=False)
                self.bytes -= _bytes(dropped)
        return arrays


def _bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


decoded = DecodedCache()


def file_key(path: Path) -> tuple[str, int, int]:
    """What changes when a file is written anew: path, time of change, size."""
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size
