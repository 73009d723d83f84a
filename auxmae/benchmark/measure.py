"""Timing in turn, and memory that does not depend on the allocator's mood.

Peak memory is the resident tensors (weights, optimiser state, batch) plus what one pass allocates beside them, from the caching
allocator's counters on a GPU and from the profiler's record of allocations on a CPU.  Unlike the process' high-water mark that is
the same on every run; unlike a dispatch mode it leaves compiled code compiled.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from auxmae_kernels import KernelUnavailableError
from torch.profiler import ProfilerActivity, profile


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_bytes(work: Callable[[], object], device: torch.device, resident: Iterable[torch.Tensor] = ()) -> int | None:
    """Peak memory of one call, bytes: the resident tensors, and what the call allocates beside them at its highest.

    None on a device that has no counter of it: MPS.
    """
    if device.type not in ("cpu", "cuda"):
        return None
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in resident}
    return sum(storages.values()) + _allocated(work, device)[0]


def held_bytes(work: Callable[[], object], device: torch.device) -> int:
    """What a call leaves allocated for as long as its result lives, bytes; on a CPU or a CUDA device."""
    return _allocated(work, device)[1]


def _allocated(work: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Bytes that one call allocates, at its highest and at its end."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        # Other providers' models live on the same device.
        before = torch.cuda.memory_allocated(device)
        result = work()
        torch.cuda.synchronize(device)
        found = torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
        del result
        return found
    with _quiet_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = work()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    changes = [event["args"] for event in events if event.get("name") == "[memory]"]
    changes = [change for change in changes if change["Device Type"] == 0]
    if not changes:
        return 0, 0
    # The counter runs on from earlier profiles.
    first, last = (choose(changes, key=lambda change: change["Ev Idx"]) for choose in (min, max))
    before = first["Total Allocated"] - first["Bytes"]
    peak = max(0, int(max(change["Total Allocated"] for change in changes) - before))
    return peak, max(0, int(last["Total Allocated"] - before))


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """The profiler's library tells on stderr that it starts and stops; it reads its log level when it is first used."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    # Above every severity of the library; what goes wrong is raised by PyTorch all the same.
    os.environ[name] = "99"
    try:
        yield
    finally:
        del os.environ[name]


# Suite, case, provider, pass.
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Visit:
    """One of several times that everything is built anew and timed.

    Where weights and activations happen to lie makes one provider a few per cent faster or slower for as long as they live.
    Rounds on the same tensors repeat that; only building them again shows how much of a difference is chance.

    Attributes:
        number: from 0; the first also checks results and measures what does not change: memory, arithmetic, launches.
        again: (suite, case, provider, pass) of what the later ones time; None on the first, which tries everything.
    """

    number: int = 0
    again: Collection[Key] | None = None

    @property
    def first(self) -> bool:
        return self.again is None

    def wants(self, key: Key) -> bool:
        """Whether this is timed in this visit."""
        return self.again is None or key in self.again


FIRST_VISIT = Visit()


@dataclass
class Timing:
    """Samples in the order in which they were taken, ms; peak memory, bytes, where it was measured."""

    samples_ms: list[float]
    peak_bytes: int | None

    @property
    def median_ms(self) -> float:
        """Of an even number of samples: the mean of the middle two."""
        return statistics.median(self.samples_ms)


def turns(count: int, number: int) -> list[int]:
    """The order in which `count` providers take their turns in round `number` (from 0).

    A Williams design (Aust. J. Sci. Res. A 2, 1949): over `count` rounds (2 · count where it is odd) every provider takes
    every turn equally often, and follows every other provider equally often, so that what one leaves behind (warm caches,
    a hot processor) is no other's lot alone.
    """
    zigzag = [(step + 1) // 2 * (1 if step % 2 else -1) for step in range(count)]
    mirror = -1 if count % 2 and number % 2 else 1
    return [(mirror * step + number) % count for step in zigzag]


def interleaved(
    works: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    repeats: int,
    resident: Mapping[str, Callable[[], Iterable[torch.Tensor]]],
    warmup: int = 2,
    visit: Visit = FIRST_VISIT,
    clock: Callable[[Callable[[], object]], float] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Times every piece of work in turn, so that a slow moment of the machine hits all alike.

    Args:
        works: what each provider does.
        device: where it is done.
        repeats: rounds; the order changes from one to the next, and goes on from visit to visit, see `turns`.
        resident: what each provider holds during its work, for its peak memory.
        warmup: samples of each provider that are not kept.
        visit: which of several this is.
        clock: runs work and returns ms; by default the time of one call, the device waited for after it.
        progress: is told what goes on.

    Returns:
        Provider → `repeats` samples in the order in which they were taken, and in the first visit peak memory, measured after
        all rounds.
    """

    def wall(work: Callable[[], object]) -> float:
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        return 1e3 * (time.perf_counter() - began)

    once = clock or wall

    for name, work in works.items():
        if progress:
            progress(f"warming up {name}")
        for _ in range(warmup):
            once(work)
    names = list(works)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats):
        if progress:
            progress(f"round {number + 1} of {repeats}")
        for turn in turns(len(names), visit.number * repeats + number):
            samples[names[turn]].append(once(works[names[turn]]))
    return {
        name: Timing(samples[name], peak_bytes(work, device, resident[name]()) if visit.first else None)
        for name, work in works.items()
    }


class WrongResultError(RuntimeError):
    """A provider computes something else."""


def attempt(work: Callable[[], object], device: torch.device) -> tuple[str, str]:
    """Runs work once: ("ok", ""); ("out of memory" or "failed", why, on one line) where it cannot run; or ("wrong", why).

    Raises:
        KernelUnavailableError: Triton was asked for, and cannot run here: of that no benchmark is to be made.
    """
    try:
        work()
        synchronize(device)
    except KernelUnavailableError:
        raise
    except WrongResultError as error:
        status, text = "wrong", str(error)
    except torch.OutOfMemoryError as error:
        status, text = "out of memory", str(error)
    except Exception as error:
        if not (isinstance(error, RuntimeError) or _is_compilers(error)):
            raise
        # The CPU's allocator has no exception of its own.
        status, text = "out of memory" if "can't allocate memory" in str(error) else "failed", str(error)
    else:
        return "ok", ""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return status, " ".join(text.split())[:200]


def _is_compilers(error: Exception) -> bool:
    """Whether Triton or torch.compile tells so that a kernel cannot be built or launched: not all of theirs are RuntimeErrors."""
    return any(kind.__module__.startswith(("triton.", "torch._dynamo.")) for kind in type(error).__mro__)
