"""Time and memory of several ways to do the same work, taken in turn.

Taking single runs of all providers in turn, and starting each round with another one, spreads whatever else the machine does
over all of them: ratios stay true where absolute times do not.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@dataclass
class Work:
    """Something to measure.

    Attributes:
        provider: who does it.
        run: does it once.
        resident: the tensors that live between runs (parameters, optimiser state, the batch), read after the warm-up.
        clear: puts back what a run leaves behind, such as gradients, outside the measured time.
    """

    provider: str
    run: Callable[[], object]
    resident: Callable[[], Iterable[Tensor]]
    clear: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Attributes:
        samples_ms: wall time of every run, milliseconds, in the order taken.
        peak_bytes: the resident tensors, and what one run allocates beside them at its highest.
    """

    provider: str
    samples_ms: tuple[float, ...]
    peak_bytes: int

    @property
    def median_ms(self) -> float:
        """Median wall time, milliseconds."""
        return statistics.median(self.samples_ms)


def measure(
    works: list[Work],
    *,
    device: torch.device,
    steps: int,
    warmup: int = 2,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """Warms every provider up, takes its memory, then times `steps` runs of each, in turn.

    Args:
        works: what to measure.
        device: where it runs; CUDA is synchronised around every run.
        steps: timed runs of each.
        warmup: untimed runs of each, at least 1; compilation happens there.
        progress: told what is going on, one line each.
    """
    peaks = []
    for work in works:
        progress(f"{work.provider}: warm-up and memory")
        for _ in range(max(1, warmup)):
            work.run()
            work.clear()
        peaks.append(_bytes(work.resident()) + transient_peak(work.run, device))
        work.clear()
    samples: list[list[float]] = [[] for _ in works]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for round_ in range(steps):
            for offset in range(len(works)):
                index = (round_ + offset) % len(works)
                _synchronise(device)
                start = time.perf_counter()
                works[index].run()
                _synchronise(device)
                samples[index].append((time.perf_counter() - start) * 1e3)
                works[index].clear()
    finally:
        if collecting:
            gc.enable()
    return [
        Measurement(work.provider, tuple(taken), peak) for work, taken, peak in zip(works, samples, peaks, strict=True)
    ]


def transient_peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that `run` allocates beyond what was there before, at its highest.

    On CUDA from the caching allocator's counters; on the CPU from the profiler's record of every tensor allocation and release,
    which is the same on every run and sees compiled code too.
    """
    if device.type == "cuda":
        _synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    changes = [
        event["args"] for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    ]
    if not changes:
        return 0
    # The counter runs on from earlier profiles, and events of one microsecond may be listed in any order.
    first = min(changes, key=lambda change: change["Ev Idx"])
    before = first["Total Allocated"] - first["Bytes"]
    return int(max(change["Total Allocated"] for change in changes)) - int(before)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind the tensors, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
