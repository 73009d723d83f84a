"""The data suite: does the loader or the model limit training?

The loader alone, the step of `auxmae train` alone on one batch, and both together, on the embedded data or on the user's.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from auxmae.benchmark.environment import architecture
from auxmae.benchmark.measure import synchronize
from auxmae.build import Data, build_model
from auxmae.settings.schema import SettingsTree
from auxmae.training.feed import Feed, Inputs
from auxmae.training.graph import GraphedStep, graphs_wanted
from auxmae.training.step import TrainingStep

_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
LOADER, MODEL, TOGETHER = "loader alone", "model alone", "together"


def data_suite(
    settings: SettingsTree,
    data: Data,
    *,
    device: torch.device,
    repeats: int,
    steps: int = 4,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the data suite, the pass "batch": ms and images a second of loader, model, and both.

    Args:
        settings: data, model, and the step of `auxmae train`; data: of `build_data`.
        device: where the model is; dtype: of its autocast region.
        repeats: samples, each the mean of `steps` batches or more, as many of every loader process.
        progress: is told what goes on.
    """
    train, workers = settings.train, settings.data.workers
    eager = TrainingStep(
        build_model(settings, data).to(device),
        optimizer=train.optimizer,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        betas=train.betas,
        clip_norm=train.clip_norm,
        precision=_PRECISIONS[dtype],
        seed=train.seed,
        device=device,
    )
    graphed = graphs_wanted(settings, device)
    compute = GraphedStep(eager, notify=progress or (lambda text: None)) if graphed else eager
    feed = Feed(data.train, device)
    fixed = next(feed)

    def step(batch: Inputs) -> None:
        compute([batch], train.learning_rate)

    def both() -> None:
        step(next(feed))
        feed.prefetch()

    works: dict[str, Callable[[], object]] = {LOADER: lambda: next(feed), MODEL: lambda: step(fixed), TOGETHER: both}
    # What was made ready while something else was timed would cost nothing: the loader's processes hold two batches each, the
    # feed one.  Processes end their batches at about the same time, so a sample is as many of each.
    ready = 2 * workers + 1
    steps = max(workers, 1) * math.ceil(steps / max(workers, 1))
    samples: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats + 1):
        if progress:
            progress(f"data: round {number} of {repeats}" if number else "data: warming up")
        for name, work in works.items():
            for _ in range(ready if name != MODEL else 0):
                next(feed)
            # The first waits for a batch that those behind it do not wait for, where the loader is the faster one.
            work()
            elapsed = _seconds(work, steps, device)
            if number:
                samples[name].append(1e3 * elapsed / steps)
    size = len(fixed.image)
    return [
        {
            "suite": "data",
            "case": settings.data.source,
            "provider": name,
            "pass": "batch",
            "status": "ok",
            "reason": "",
            "median_ms": statistics.median(values),
            "samples_ms": values,
            "peak_bytes": None,
            "images_per_second": 1e3 * size / statistics.median(values),
            "batch": size,
            "workers": workers,
            "dtype": str(dtype).removeprefix("torch."),
            "arch": architecture(device),
        }
        for name, values in samples.items()
    ]


def limit(rows: list[dict[str, Any]]) -> str:
    """What limits training, in a sentence."""
    median = {row["provider"]: row["median_ms"] for row in rows}
    slower, faster = (LOADER, MODEL) if median[LOADER] > median[MODEL] else (MODEL, LOADER)
    return (
        f"the {slower.split()[0]} limits training: a batch takes it {median[slower]:.3g} ms, the {faster.split()[0]} "
        f"{median[faster]:.3g} ms, and both together {median[TOGETHER]:.3g} ms"
    )


def _seconds(work: Callable[[], object], steps: int, device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        work()
    synchronize(device)
    return time.perf_counter() - began
