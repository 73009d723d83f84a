"""Timing in turn, and memory that does not depend on the allocator's mood.

On a CPU the peak is that of the bytes held by live tensor storages during one pass, counted as operations create them:
the process' own high-water mark also counts caches and fragments, and varies from run to run.  On a GPU it is PyTorch's
`max_memory_allocated`.  Both count the model's weights, gradients and optimiser state where they live during the pass.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveBytes(TorchDispatchMode):
    """Sums the bytes of all storages that operations return, until they are freed."""

    def __init__(self, present: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = present
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.seen:
                    self.seen.add(key)
                    size = storage.nbytes()
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._freed, key, size)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Peak memory of one call, bytes (see the module's text)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    counter = _LiveBytes(0)
    with counter:
        work()
    return counter.peak


@dataclass
class Timing:
    """Samples in the order in which they were taken, ms; peak memory, bytes."""

    samples_ms: list[float]
    peak_bytes: int

    @property
    def median_ms(self) -> float:
        return float(torch.tensor(self.samples_ms, dtype=torch.float64).median())


def interleaved(
    works: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    repeats: int,
    warmup: int = 2,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Times every piece of work in turn, so that a slow moment of the machine hits all alike."""

    def once(work: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - began)

    for name, work in works.items():
        if progress:
            progress(f"warming up {name}")
        for _ in range(warmup):
            once(work)
    samples: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats):
        if progress:
            progress(f"round {number + 1} of {repeats}")
        for name, work in works.items():
            samples[name].append(once(work))
    return {name: Timing(samples[name], peak_bytes(work, device)) for name, work in works.items()}
