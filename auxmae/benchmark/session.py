"""One benchmark: the suites that were asked for, and the document that says what they found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

import torch

from auxmae.benchmark import data_suite, kernel_suite, scaling, suites
from auxmae.benchmark.environment import environment
from auxmae.benchmark.joint import has_vit_mae
from auxmae.benchmark.kernel_cases import kernel_cases
from auxmae.benchmark.measure import Key, Visit
from auxmae.benchmark.roofline import achieved, ceilings
from auxmae.build import Data, build_data
from auxmae.errors import UsageError
from auxmae.settings.schema import SettingsTree

# Names of cases that a message proposes.
_PROPOSED = 6

# What only a row with the status "ok" has.
_FIGURES = (
    "median_ms", "peak_bytes", "images_per_second", "graph_ms", "kernel_launches", "device_idle_share", "host_idle_share",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        suites: some of "kernels", "model", "scaling", "data"; quick: small sizes.
        patterns: shell patterns or parts of case names; none: every case.
        visits: times that everything is built anew, see `measure.Visit`; repeats: samples of everything in each of them.
        batch_size, channels: of the model suite's cases, where they are to be others.
        compile_too, recompute_too: variants.
        dtype: of kernels' tensors and the models' autocast regions.
        settings: of the data suite.
    """

    suites: Sequence[str]
    quick: bool = False
    patterns: Sequence[str] = ()
    visits: int = 7
    repeats: int = 2
    batch_size: int | None = None
    channels: int | None = None
    compile_too: bool = False
    recompute_too: bool = False
    dtype: torch.dtype = torch.float32
    settings: SettingsTree | None = None

    def chosen(self, name: str) -> bool:
        """Whether a case of that name is measured."""
        return is_chosen(name, self.patterns)


def is_chosen(name: str, patterns: Sequence[str]) -> bool:
    """Whether a case of that name is one of those that the patterns mean; without any, all are."""
    return not patterns or any(pattern in name or fnmatchcase(name, pattern) for pattern in patterns)


def run(
    request: Request,
    device: torch.device,
    progress: Callable[[str], None] | None = None,
    record: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measures.

    Args:
        request: what; device: where.
        progress: is told what goes on.
        record: is given the document after every case, and every pass of a model, so that a run that is stopped loses little.

    Returns:
        {"device", "versions", "commit", "dirty", "suites", "cases", "intended", "ceilings", "complete", "rows"}: "cases" are the
        patterns, "intended" each suite's cases that they mean; see the suites for the rows.  Each has the samples of all
        visits, one visit's after the other's, and "samples_a_visit".

    Raises:
        UsageError: a pattern means no case, or the device cannot run a suite.
        MissingDependencyError: transformers is installed, and cannot be imported.
    """
    if "kernels" in request.suites and device.type == "mps":
        raise UsageError("the suite kernels compares with results in fp64, which MPS does not have", hint="give --device cpu")
    settings = request.settings or SettingsTree()
    names = _names(request, device, settings)
    _check_names(request, [name for those in names.values() for name in those])
    data = functools.cache(lambda: build_data(settings))
    if "data" in request.suites and request.chosen(settings.data.source):
        # Before anything else: what cannot be read is to cost no measurement of other suites.
        if progress:
            progress("opening the data")
        data()
    if "model" in request.suites:
        # Likewise a peer that cannot be imported.
        has_vit_mae()
    if progress:
        progress("measuring the machine's ceilings")
    limits = ceilings(device, request.dtype, quick=request.quick)
    intended = {suite: [name for name in those if request.chosen(name)] for suite, those in names.items()}
    asked = {"suites": list(request.suites), "cases": list(request.patterns), "intended": intended}
    document: dict[str, Any] = {**environment(device), **asked, "ceilings": limits, "complete": False, "rows": []}
    known: dict[Key, dict[str, Any]] = {}
    with _never_eager_instead() if request.compile_too else nullcontext():
        for number in range(request.visits):
            if progress and request.visits > 1:
                progress(f"visit {number + 1} of {request.visits}")
            able = {key for key, row in known.items() if row["status"] == "ok"}
            for rows in _cases(request, device, limits, Visit(number, able if number else None), settings, data, progress):
                for row in rows:
                    key = (row["suite"], row["case"], row["provider"], row["pass"])
                    if number:
                        _add(known[key], row, limits)
                    else:
                        known[key] = row | {"samples_a_visit": len(row["samples_ms"])}
                        document["rows"].append(known[key])
                if record:
                    record(document)
    document["complete"] = True
    if record:
        record(document)
    return document


def _never_eager_instead() -> AbstractContextManager[Any]:
    """What torch.compile has compiled too often is an error, and no figure of eager code."""
    import torch._dynamo.config

    patched: AbstractContextManager[Any] = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
    return patched


def wrong_providers(document: dict[str, Any]) -> list[str]:
    """Each of ours, "suite · case · provider", that computes something else, or whose specification is wrong."""
    found = [
        (row["suite"], row["case"], row["provider"])
        for row in document["rows"]
        if row["status"] in ("wrong", "unchecked")
        and (row["provider"].startswith(suites.OURS) or row["provider"] == kernel_suite.TRITON)
    ]
    return [" · ".join(key) for key in dict.fromkeys(found)]


def _names(request: Request, device: torch.device, settings: SettingsTree) -> dict[str, list[str]]:
    """Suite → the name of every case that it has, whichever are chosen."""
    quick = request.quick
    names: dict[str, list[str]] = {}
    if "kernels" in request.suites:
        names["kernels"] = list(kernel_cases(kernel_suite.shapes_for(device, quick=quick), device, request.dtype))
    if "model" in request.suites:
        names["model"] = [case.name for case in suites.cases_for(device, quick=quick)]
    if "scaling" in request.suites:
        names["scaling"] = [
            scaling.name_of(axis, case) for axis, cases in scaling.scaling_cases(device, quick=quick).items() for case in cases
        ]
    if "data" in request.suites:
        names["data"] = [settings.data.source]
    return names


def _check_names(request: Request, names: Sequence[str]) -> None:
    """Raises UsageError where a pattern means no case, with the names that are most like it."""
    lost = [pattern for pattern in request.patterns if not any(is_chosen(name, [pattern]) for name in names)]
    if not lost:
        return

    def likeness(name: str) -> float:
        return max(SequenceMatcher(None, pattern, name).ratio() for pattern in lost)

    nearest = sorted(names, key=likeness, reverse=True)[:_PROPOSED]
    more = f" and {len(names) - _PROPOSED} more" if len(names) > _PROPOSED else ""
    raise UsageError(
        f"no case of {', '.join(request.suites)} is called {' or '.join(lost)}",
        hint=f"there {'is' if len(names) == 1 else 'are'} {', '.join(nearest)}{more}",
    )


def _add(row: dict[str, Any], later: dict[str, Any], limits: dict[str, Any]) -> None:
    """Adds a later visit's samples to a row, and brings up to date what follows from them."""
    if later["status"] != "ok":
        # What fails now and then has no figure.
        row |= {"status": later["status"], "reason": later["reason"], "samples_ms": []}
        row |= {key: None for key in _FIGURES if key in row}
    else:
        before, row["samples_ms"] = row["median_ms"], row["samples_ms"] + later["samples_ms"]
        row["median_ms"] = median(row["samples_ms"])
        if row["images_per_second"] is not None:
            row["images_per_second"] *= before / row["median_ms"]
    if "flops" in row:
        row |= achieved(row, limits)


def _cases(
    request: Request,
    device: torch.device,
    limits: dict[str, Any],
    visit: Visit,
    settings: SettingsTree,
    data: Callable[[], Data],
    progress: Callable[[str], None] | None,
) -> Iterator[list[dict[str, Any]]]:
    """One visit: the rows of one case after another; of a model's, of one pass after another."""
    common: dict[str, Any] = {"device": device, "dtype": request.dtype, "repeats": request.repeats, "progress": progress}
    timed: dict[str, Any] = common | {"limits": limits, "visit": visit}
    if "kernels" in request.suites:
        shapes = kernel_suite.shapes_for(device, quick=request.quick)
        yield from kernel_suite.kernel_suite(shapes, chosen=request.chosen, compile_too=request.compile_too, **timed)
    if "model" in request.suites:
        for case in suites.cases_for(device, quick=request.quick):
            if request.chosen(case.name):
                case = replace(case, batch=request.batch_size or case.batch, channels=request.channels or case.channels)
                yield from suites.model_passes(
                    case, compile_too=request.compile_too, recompute_too=request.recompute_too,
                    graph_too=device.type == "cuda", **timed,
                )  # fmt: skip
    if "scaling" in request.suites:
        yield from scaling.scaling_suite(quick=request.quick, chosen=request.chosen, **timed)
    if "data" in request.suites and request.chosen(settings.data.source):
        yield data_suite.data_suite(settings, data(), **common)
