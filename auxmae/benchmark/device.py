"""Clocks for short work, and what the device and its host do meanwhile.

On a GPU a kernel is timed between two events with the L2 cache flushed before, as it would find the cache in a model whose
other layers have run; the same work replayed as a CUDA graph tells what is left without the host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from auxmae.benchmark.measure import synchronize
from auxmae.training.graph import capture_cuda_graph

Work = Callable[[], object]

# A sample on a CPU repeats the work until it lasts about this long, ms: the clock and a call cost microseconds …
SAMPLE_MS = 5.0
# … in parts, of which the fastest counts: the others are those in which something else had the processor.  Work that lasts longer
# is done as often as the fewest parts.
MOST_PARTS, FEWEST_PARTS = 5, 3
# Calls of a GPU sample, each between events of its own, behind a flushed cache.
GPU_CALLS = 5
# A GPU's clock at its fastest; a slower one waits longer.
CYCLES_A_SECOND = 2e9
GRAPH_CALLS = 20


def kernel_clock(device: torch.device) -> Callable[[Work], float]:
    """A function that runs work several times and returns ms for one call."""
    return _event_clock(device) if device.type == "cuda" else _repeating_clock(device)


def _repeating_clock(device: torch.device) -> Callable[[Work], float]:
    calls: dict[int, int] = {}

    def elapsed(work: Work, number: int) -> float:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(number):
            work()
        synchronize(device)
        return 1e3 * (time.perf_counter() - began)

    def clock(work: Work) -> float:
        if id(work) not in calls:
            # The first call can be many times slower than others, and says nothing.
            work()
            # The next ones may be slow too, so the number is found step by step.
            number, taken = 1, elapsed(work, 1)
            while taken < SAMPLE_MS:
                number = min(10 * number, max(number + 1, math.ceil(1.2 * SAMPLE_MS * number / max(taken, 1e-3))))
                taken = elapsed(work, number)
            calls[id(work)] = max(number, FEWEST_PARTS)
        number = calls[id(work)]
        parts = min(number, MOST_PARTS)
        sizes = [number // parts + (index < number % parts) for index in range(parts)]
        return min(elapsed(work, size) / size for size in sizes)

    return clock


def _event_clock(device: torch.device) -> Callable[[Work], float]:
    size = max(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0), 2**25)
    flush = torch.empty(4 * size, dtype=torch.int8, device=device)
    waits: dict[int, int] = {}

    def clock(work: Work) -> float:
        if id(work) not in waits:
            work()
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            work()
            launching = time.perf_counter() - began
            waits[id(work)] = round(CYCLES_A_SECOND * (2 * launching + 1e-4))
        events = []
        for _ in range(GPU_CALLS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            # The GPU waits for as long as the host needs to launch all of the work, so that its launches cost the work nothing.
            torch.cuda._sleep(waits[id(work)])
            flush.zero_()
            start.record()
            work()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize(device)
        return float(sum(start.elapsed_time(end) for start, end in events)) / GPU_CALLS

    return clock


def graph_ms(work: Work, device: torch.device) -> float | None:
    """ms of one replay of the work as a CUDA graph, cache warm; None where there is no GPU or it cannot be captured.

    Backward passes run on the stream of what they are the gradient of, so the work must not have run before on another one.
    """
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            work()
        replay = capture_cuda_graph(work, (), stream)
    except RuntimeError:
        # A host synchronisation inside the work, for one.
        torch.cuda.synchronize(device)
        return None
    replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(GRAPH_CALLS):
        replay()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / GRAPH_CALLS


def occupation(work: Work, device: torch.device, calls: int = 5) -> dict[str, Any]:
    """What the device and its host do during `calls` successive calls.

    Returns:
        {"kernel_launches", "device_idle_share", "host_idle_share"}: kernels a call; the part of the time in which no kernel
        runs; the part of the time in which the host has nothing left to enqueue and waits for the device.  On a CPU, where
        there is no queue, all are None.
    """
    if device.type != "cuda":
        return {"kernel_launches": None, "device_idle_share": None, "host_idle_share": None}
    work()
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(calls):
        work()
    enqueued = time.perf_counter() - began
    torch.cuda.synchronize(device)
    total = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(calls):
            work()
        torch.cuda.synchronize(device)
    spans = []
    launches = 0
    for event in profiler.events() or []:
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            spans.append((event.time_range.start, event.time_range.end))
            launches += not event.name.startswith(("Memcpy", "Memset"))
    return {
        "kernel_launches": round(launches / calls),
        "device_idle_share": idle_share(spans),
        "host_idle_share": max(0.0, 1 - enqueued / total),
    }


def idle_share(spans: list[tuple[float, float]]) -> float | None:
    """Part of the time between the first start and the last end that no (start, end) covers; None without spans."""
    if not spans:
        return None
    busy, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    whole = reached - min(start for start, _ in spans)
    return 1 - busy / whole if whole > 0 else 0.0
