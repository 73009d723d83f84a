"""The scaling suite: a training step's cost as channels, positions and width grow, and where the attentions break even.

Only factorised and joint attention take part.  By arithmetic alone, factorised attention saves where C·n − n − C > 2·D with n
visible patches a channel: it has a second set of projections to pay for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from auxmae.benchmark.cases import ModelCase
from auxmae.benchmark.measure import FIRST_VISIT, Visit
from auxmae.benchmark.suites import JOINT, OURS, model_suite

_BASE = {"width": 64, "hidden": 128, "heads": 4, "depth": 2, "decoder_depth": 1}
_GPU_BASE = {"width": 256, "hidden": 512, "heads": 8, "depth": 2, "decoder_depth": 1}
AXES = ("channels", "positions", "width")


def scaling_cases(device: torch.device, *, quick: bool) -> dict[str, list[ModelCase]]:
    """Axis → cases in which only that axis grows."""
    batch, base = (8, _GPU_BASE) if device.type == "cuda" and not quick else (2, _BASE)
    channels: tuple[int, ...]
    sides: tuple[int, ...]
    widths: tuple[int, ...]
    if quick:
        channels, sides, widths = (2, 8), (2, 4), (32, 64)
    elif device.type == "cuda":
        channels, sides, widths = (4, 13, 32, 64, 128, 200), (4, 8, 16, 24, 32), (128, 256, 384, 768)
    else:
        channels, sides, widths = (2, 4, 8, 16, 32), (2, 4, 8, 12), (32, 64, 128, 256)
    patch = 8
    return {
        "channels": [ModelCase(f"C={count}", batch, count, 8 * patch, patch, **base) for count in channels],
        "positions": [ModelCase(f"N={side * side}", batch, 13, side * patch, patch, **base) for side in sides],
        "width": [
            ModelCase(f"D={width}", batch, 13, 8 * patch, patch, **base | {"width": width, "hidden": 2 * width})
            for width in widths
        ],
    }


def size_of(row: dict[str, Any], axis: str) -> int:
    """Where a row lies on an axis: C, N, or D."""
    sizes = row["sizes"]
    return (sizes["image_size"] // sizes["patch_size"]) ** 2 if axis == "positions" else int(sizes[axis])


def name_of(axis: str, case: ModelCase) -> str:
    """What a case is called beside those of the other axes."""
    return f"{axis}/{case.name}"


def scaling_suite(
    *,
    device: torch.device,
    repeats: int,
    quick: bool = False,
    chosen: Callable[[str], bool] = lambda name: True,
    dtype: torch.dtype = torch.float32,
    limits: dict[str, Any] | None = None,
    visit: Visit = FIRST_VISIT,
    progress: Callable[[str], None] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Of one case after another the rows, of the model suite's kind and the pass "step", with "axis"."""
    for axis, cases in scaling_cases(device, quick=quick).items():
        for case in cases:
            named = replace(case, name=name_of(axis, case))
            if chosen(named.name):
                found = model_suite(
                    named, device=device, repeats=repeats, peers=(JOINT,), dtype=dtype, limits=limits, passes=("step",),
                    suite="scaling", visit=visit, progress=progress,
                )  # fmt: skip
                yield [row | {"axis": axis} for row in found]


def curves(rows: list[dict[str, Any]], axis: str) -> dict[str, list[tuple[int, float]]]:
    """Provider → (size, median ms) in the order of size, where it could be measured."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["suite"] == "scaling" and row["axis"] == axis and row["median_ms"] is not None:
            found.setdefault(row["provider"], []).append((size_of(row, axis), row["median_ms"]))
    return {provider: sorted(points) for provider, points in found.items()}


def break_even(rows: list[dict[str, Any]], axis: str) -> float | None:
    """The size from which factorised attention is faster than joint attention up to the largest, interpolated in logarithms.

    None where joint attention is faster at the largest size that both were measured at, or nowhere; or nothing was measured.
    """
    lines = curves(rows, axis)
    ours, joint = dict(lines.get(OURS, [])), dict(lines.get(JOINT, []))
    sizes = sorted(ours.keys() & joint.keys())
    # Above 0 where ours is faster.
    gain = [math.log(joint[size] / ours[size]) for size in sizes]
    for index in range(len(sizes) - 1, 0, -1):
        before, after = gain[index - 1], gain[index]
        if after <= 0:
            return None
        if before <= 0:
            part = -before / (after - before)
            return math.exp(math.log(sizes[index - 1]) + part * math.log(sizes[index] / sizes[index - 1]))
    return None
