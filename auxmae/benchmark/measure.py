"""Timing in turn, and memory that does not depend on the allocator's mood.

Peak memory is the resident tensors (weights, optimiser state, batch) plus what one pass allocates beside them, from the caching
allocator's counters on a GPU and from the profiler's record of allocations on a CPU.  Unlike the process' high-water mark that is
the same on every run; unlike a dispatch mode it leaves compiled code compiled.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device, resident: Iterable[torch.Tensor] = ()) -> int:
    """Peak memory of one call, bytes: the resident tensors, and what the call allocates beside them at its highest."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in resident}
    return sum(storages.values()) + _allocated(work, device)


def _allocated(work: Callable[[], object], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        # Other providers' models live on the same device.
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    changes = [event["args"] for event in events if event.get("name") == "[memory]"]
    changes = [change for change in changes if change["Device Type"] == 0]
    if not changes:
        return 0
    # The counter runs on from earlier profiles.
    first = min(changes, key=lambda change: change["Ev Idx"])
    return int(max(change["Total Allocated"] for change in changes) - (first["Total Allocated"] - first["Bytes"]))


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
    resident: Mapping[str, Callable[[], Iterable[torch.Tensor]]],
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
    return {name: Timing(samples[name], peak_bytes(work, device, resident[name]())) for name, work in works.items()}
