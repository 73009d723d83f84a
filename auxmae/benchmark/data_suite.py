"""The data suite: does the loader or the model limit training?

The loader alone, the model's step alone on one batch, and both together, on the embedded data or on the user's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from auxmae.benchmark.environment import architecture
from auxmae.benchmark.measure import synchronize
from auxmae.build import Data, build_model
from auxmae.data.loading import Batch, Loader
from auxmae.settings.schema import SettingsTree
from auxmae.training.optimization import autocast

LOADER, MODEL, TOGETHER = "loader alone", "model alone", "together"


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


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
        settings: data, model and batch size; data: of `build_data`.
        device: where the model is; dtype: of its autocast region.
        repeats: samples, each the mean of `steps` batches.
        progress: is told what goes on.
    """
    model = build_model(settings, data).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type in ("cpu", "cuda"))
    batches = _endless(data.train)
    fixed = _onto(next(batches), device)

    def train(batch: Batch) -> None:
        with autocast(None if dtype is torch.float32 else dtype, device):
            loss = model(batch.image, valid=batch.valid, channels=batch.channels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    works: dict[str, Callable[[], object]] = {
        LOADER: lambda: next(batches),
        MODEL: lambda: train(fixed),
        TOGETHER: lambda: train(_onto(next(batches), device)),
    }
    samples: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats + 1):
        if progress:
            progress(f"data: round {number} of {repeats}" if number else "data: warming up")
        for name, work in works.items():
            elapsed = _seconds(work, steps, device)
            if number:
                samples[name].append(1e3 * elapsed / steps)
    size = fixed.image.shape[0]
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
            "workers": settings.data.workers,
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


def _onto(batch: Batch, device: torch.device) -> Batch:
    return batch._replace(
        image=batch.image.to(device, non_blocking=True),
        valid=batch.valid.to(device, non_blocking=True),
    )


def _seconds(work: Callable[[], object], steps: int, device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        work()
    synchronize(device)
    return time.perf_counter() - began
