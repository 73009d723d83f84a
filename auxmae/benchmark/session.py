"""One benchmark: the suites that were asked for, and the document that says what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from auxmae.benchmark import data_suite, kernel_suite, scaling, suites
from auxmae.benchmark.environment import environment
from auxmae.benchmark.roofline import ceilings
from auxmae.errors import UsageError
from auxmae.settings.schema import SettingsTree


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        suites: some of "kernels", "model", "scaling", "data"; quick: small sizes.
        patterns: shell patterns or parts of case names; none: every case.
        repeats: samples of everything.
        batch_size, channels: of the model suite's cases, where they are to be others.
        compile_too, recompute_too: variants.
        dtype: of kernels' tensors and the models' autocast regions.
        settings: of the data suite.
    """

    suites: Sequence[str]
    quick: bool = False
    patterns: Sequence[str] = ()
    repeats: int = 5
    batch_size: int | None = None
    channels: int | None = None
    compile_too: bool = False
    recompute_too: bool = False
    dtype: torch.dtype = torch.float32
    settings: SettingsTree | None = None

    def chosen(self, name: str) -> bool:
        """Whether a case of that name is measured."""
        return not self.patterns or any(pattern in name or fnmatchcase(name, pattern) for pattern in self.patterns)


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
        {"device", "versions", "commit", "dirty", "ceilings", "complete", "rows"}; see the suites for the rows.

    Raises:
        UsageError: no case has a name that was asked for.
    """
    if progress:
        progress("measuring the machine's ceilings")
    limits = ceilings(device, request.dtype, quick=request.quick)
    document: dict[str, Any] = {**environment(device), "ceilings": limits, "complete": False, "rows": []}
    for rows in _cases(request, device, limits, progress):
        document["rows"] += rows
        if record:
            record(document)
    if not document["rows"]:
        raise UsageError(
            f"no case of {', '.join(request.suites)} is called {' or '.join(request.patterns)}",
            hint="leave --case out to see the names",
        )
    document["complete"] = True
    if record:
        record(document)
    return document


def _cases(
    request: Request, device: torch.device, limits: dict[str, Any], progress: Callable[[str], None] | None
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one case after another; of a model's, of one pass after another."""
    common: dict[str, Any] = {"device": device, "dtype": request.dtype, "repeats": request.repeats, "progress": progress}
    if "kernels" in request.suites:
        shapes = kernel_suite.shapes_for(device, quick=request.quick)
        yield from kernel_suite.kernel_suite(
            shapes, chosen=request.chosen, compile_too=request.compile_too, limits=limits, **common
        )  # fmt: skip
    if "model" in request.suites:
        for case in suites.cases_for(device, quick=request.quick):
            if request.chosen(case.name):
                case = replace(case, batch=request.batch_size or case.batch, channels=request.channels or case.channels)
                yield from suites.model_passes(
                    case, compile_too=request.compile_too, recompute_too=request.recompute_too,
                    graph_too=device.type == "cuda", limits=limits, **common,
                )  # fmt: skip
    if "scaling" in request.suites:
        yield from scaling.scaling_suite(quick=request.quick, chosen=request.chosen, limits=limits, **common)
    if "data" in request.suites:
        settings = request.settings or SettingsTree()
        if request.chosen(settings.data.source):
            yield data_suite.data_suite(settings, **common)
