"""The kernel suite: every function that `auxmae_kernels.reference` specifies beside other ways to compute the same.

The specification is compared with plain formulas, at small sizes and at each that is timed, and each provider with the
specification at the gate; then forward pass, backward pass and both are timed in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import auxmae_kernels
import torch
import torch._functorch.config
from auxmae_kernels import KernelUnavailableError, dispatch, reference
from torch import Tensor

from auxmae.benchmark import formulas
from auxmae.benchmark.backend import forced
from auxmae.benchmark.device import graph_ms, kernel_clock, occupation
from auxmae.benchmark.environment import architecture
from auxmae.benchmark.gate import EXACT, Results, exact, judge, outputs, results
from auxmae.benchmark.kernel_cases import KernelCase, Shape, kernel_cases
from auxmae.benchmark.measure import FIRST_VISIT, Visit, attempt, held_bytes, interleaved
from auxmae.benchmark.roofline import achieved, flops, size_in_bytes
from auxmae.benchmark.sdpa import sdpa_providers

OURS = "auxmae"
EAGER = "eager"
COMPILED = "compiled"
TRITON = "triton"
PASSES = ("forward", "backward", "both")
Function = Callable[..., Any]

# What the specification is checked at.  Attention takes other ways along more tokens or channels, and with more of both.
CHECKED_SHAPES = [Shape("few", 2, 3, 32, 8, 16, 2), Shape("many", 1, 39, 48, 8, 8, 2)]
QUICK_SHAPES = [Shape("quick", 2, 3, 32, 8, 32, 4)]
CPU_SHAPES = [Shape("reference", 8, 13, 64, 16, 256, 8), Shape("many-channels", 1, 64, 64, 8, 128, 4)]
GPU_SHAPES = [
    Shape("reference", 128, 13, 64, 16, 256, 8),
    Shape("c200-p8", 2, 200, 128, 8, 256, 8),
    Shape("d128", 128, 13, 64, 16, 128, 4),
    Shape("c13-p8", 32, 13, 128, 8, 256, 8),
    Shape("c64-p8", 8, 64, 128, 8, 256, 8),
    Shape("d384", 64, 13, 64, 16, 384, 6),
    Shape("d768", 64, 13, 64, 16, 768, 12),
]


@dataclass
class _Provider:
    function: Function
    status: str = "ok"
    reason: str = ""
    error: float | None = None


def shapes_for(device: torch.device, *, quick: bool) -> list[Shape]:
    """The sizes that suit the machine."""
    return QUICK_SHAPES if quick else GPU_SHAPES if device.type == "cuda" else CPU_SHAPES


def kernel_suite(
    shapes: list[Shape],
    *,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    chosen: Callable[[str], bool] = lambda name: True,
    compile_too: bool = False,
    limits: dict[str, Any] | None = None,
    extra: Mapping[str, Mapping[str, Function]] | None = None,
    visit: Visit = FIRST_VISIT,
    progress: Callable[[str], None] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one case of the kernel suite after another.

    Args:
        shapes: sizes; device, dtype: of every tensor.
        repeats: samples of each provider and pass; visit: which of several this is, all but the first give only times.
        chosen: says whether a case of that name is measured.
        compile_too: measure `torch.compile` of the reference.
        limits: of `roofline.ceilings`, for the rows' parts of them.
        extra: function → provider → a further implementation, called with the public function's arguments.
        progress: is told what goes on.

    Yields:
        Rows with the keys of the model suite's, and "status" ("ok", "wrong", "failed", "out of memory", "unchecked": the
        specification is wrong, so nobody can be judged) with its "reason",
        "error" (over what the gate allows), "function", "key", "shapes" of the arguments, "dtype", "arch", "backend", "flops",
        "bytes", their rates and parts of the ceilings, "graph_ms", "kernel_launches", "device_idle_share", "host_idle_share".
        Only a row with the status "ok" has figures.
    """
    faults: dict[str, str] = {}
    for name, build in kernel_cases(shapes, device, dtype).items():
        if not chosen(name):
            continue
        if progress:
            progress(name)
        case = build()
        if visit.first and case.function not in faults:
            faults[case.function] = specification_fault(case.function, device)
            if progress and faults[case.function]:
                progress(faults[case.function])
        further = dict((extra or {}).get(case.function, {}))
        yield _measure(case, device, dtype, repeats, compile_too, limits, further, visit, faults.get(case.function, ""))


def specification_fault(function: str, device: torch.device) -> str:
    """How the specification of a function departs from `formulas` in fp64, forward and backward; empty where it does not."""
    # Not every device has fp64.
    device = device if device.type == "cuda" else torch.device("cpu")
    for name, build in kernel_cases(CHECKED_SHAPES, device, torch.float64).items():
        case = build()
        if case.function == function:
            upstream = _upstream(case)
            expected = results(getattr(formulas, function), case, case.tensors, upstream)
            found = results(getattr(reference, function), case, case.tensors, upstream)
            verdict = judge(found, expected, expected, EXACT)
            if not verdict.correct:
                return f"the reference of {function} is wrong itself, {name}: {verdict.reason}"
    return ""


def _fault_here(case: KernelCase, found: Results) -> str:
    """As `specification_fault`, at the very size that is timed, given what the specification returns in fp64.

    Without gradients: the formulas' loops would keep more for them than fits.
    """
    doubled = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in case.tensors.items()}
    with torch.no_grad():
        returned = outputs(getattr(formulas, case.function), doubled, case)
    expected = {f"output {index}": tensor for index, tensor in enumerate(returned)}
    verdict = judge(found, expected, expected, EXACT)
    return "" if verdict.correct else f"the reference of {case.function} is wrong itself, {case.name}: {verdict.reason}"


def _providers(case: KernelCase, device: torch.device, compile_too: bool) -> dict[str, _Provider]:
    public: Function = getattr(auxmae_kernels, case.function)
    plain: Function = getattr(reference, case.function)
    providers = {OURS: _Provider(public), EAGER: _Provider(plain)}
    if _triton_runs(case, device):
        providers[TRITON] = _Provider(_with_triton(public))
    if compile_too:
        # A cache of its own, so that no case runs code that another one's shapes made general.
        torch.compiler.reset()
        providers[COMPILED] = _Provider(torch.compile(plain, dynamic=False))
    if case.function == "axial_attention" and "slots" not in case.tensors:
        providers |= {name: _Provider(function) for name, function in sdpa_providers().items()}
    return providers


def _triton_runs(case: KernelCase, device: torch.device) -> bool:
    """Whether the Triton kernel can be measured as itself, whatever "auto" chooses."""
    if dispatch.backend() != "auto":
        return False
    first = next(iter(case.tensors.values()))
    try:
        return bool(
            _with_triton(dispatch.explain)(case.function, dtype=first.dtype, device=device, key=case.key).backend == TRITON
        )
    except KernelUnavailableError:
        return False


def _with_triton(function: Function) -> Function:
    def run(*arguments: Any, **named: Any) -> Any:
        with forced(TRITON):
            return function(*arguments, **named)

    return run


def _upstream(case: KernelCase) -> Results:
    """Gradients of the outputs, drawn once for all providers."""
    with torch.no_grad():
        shapes = outputs(getattr(reference, case.function), case.tensors, case)
    generator = torch.Generator(shapes[0].device).manual_seed(1)
    return {
        f"output {index}": torch.randn(tensor.shape, generator=generator, device=tensor.device).to(tensor.dtype)
        for index, tensor in enumerate(shapes)
    }


def _run(case: KernelCase, provider: _Provider, upstream: Results) -> Results:
    """What the provider computes, and whether it can: sets its status."""
    found: Results = {}
    device = next(iter(case.tensors.values())).device
    provider.status, provider.reason = attempt(
        lambda: found.update(results(provider.function, case, case.tensors, upstream)), device
    )
    return found


def _check(case: KernelCase, providers: dict[str, _Provider], upstream: Results, dtype: torch.dtype) -> None:
    """The gate: sets the status of every provider."""
    plain = getattr(reference, case.function)
    expected: Results = {}
    eager: Results = {}
    faults: list[str] = []

    def specify() -> None:
        expected.update(exact(case, plain, case.tensors, upstream))
        faults.append(_fault_here(case, expected))
        eager.update(results(plain, case, case.tensors, upstream))

    status, reason = attempt(specify, next(iter(case.tensors.values())).device)
    if status == "ok":
        status, reason = ("unchecked" if faults[0] else "ok"), faults[0]
    else:
        # Nobody is wrong, and nobody can be compared.
        reason = f"the reference that all are compared with, in fp64: {reason}"
    if status != "ok":
        for provider in providers.values():
            provider.status, provider.reason = status, reason
        return
    for provider in providers.values():
        found = _run(case, provider, upstream)
        if provider.status == "ok":
            verdict = judge(found, eager, expected, torch.finfo(dtype).eps)
            provider.error = verdict.error
            if not verdict.correct:
                provider.status, provider.reason = "wrong", verdict.reason


@dataclass
class _Works:
    """Pass → work; what builds a graph for the backward pass; and the tensors that all of it holds."""

    passes: dict[str, Callable[[], object]]
    build: Callable[[], object]
    held: list[Tensor]


def _works(case: KernelCase, function: Function, upstream: Results) -> _Works:
    leaves = {
        name: tensor.detach().requires_grad_() if name in case.differentiable else tensor for name, tensor in case.tensors.items()
    }
    wanted = [leaves[name] for name in case.differentiable]
    gradients = list(upstream.values())

    @torch.no_grad()
    def forward() -> None:
        outputs(function, case.tensors, case)

    def build() -> tuple[Tensor, ...]:
        return outputs(function, leaves, case)

    def both() -> None:
        torch.autograd.grad(build(), wanted, gradients)

    graph: list[tuple[Tensor, ...]] = []

    def backward() -> None:
        if not graph:
            graph.append(build())
        torch.autograd.grad(graph[0], wanted, gradients, retain_graph=True)

    passes: dict[str, Callable[[], object]] = {"forward": forward, "backward": backward, "both": both}
    return _Works(passes, build, [*case.tensors.values(), *gradients])


def _traffic(case: KernelCase, upstream: Results, pass_: str) -> int:
    """Bytes that must be read and written once: inputs and outputs, and the gradients of both."""
    inputs = sum(size_in_bytes([tensor]) * case.shares.get(key, 1.0) for key, tensor in case.tensors.items())
    returned = size_in_bytes(upstream.values())
    gradients = size_in_bytes(case.tensors[key] for key in case.differentiable)
    forward, backward = inputs + returned, inputs + returned + gradients
    return round({"forward": forward, "backward": backward, "both": forward + backward}[pass_])


def _measure(
    case: KernelCase,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    compile_too: bool,
    limits: dict[str, Any] | None,
    extra: dict[str, Function],
    visit: Visit,
    fault: str,
) -> list[dict[str, Any]]:
    providers = _providers(case, device, compile_too) | {name: _Provider(function) for name, function in extra.items()}
    # A provider that the gate let through has a figure for every pass.
    providers = {name: provider for name, provider in providers.items() if visit.wants(("kernels", case.name, name, PASSES[0]))}
    upstream = _upstream(case)
    # The backward pass is timed again and again on one graph, which compiled code must not eat up.
    with torch._functorch.config.patch(donated_buffer=False):
        if fault:
            for provider in providers.values():
                provider.status, provider.reason = "unchecked", fault
        elif visit.first:
            _check(case, providers, upstream, dtype)
        else:
            for provider in providers.values():
                _run(case, provider, upstream)
        works = {
            name: _works(case, provider.function, upstream) for name, provider in providers.items() if provider.status == "ok"
        }
        arithmetic = _arithmetic(case, upstream) if visit.first and works else dict.fromkeys(PASSES)
        rows = []
        for pass_ in PASSES:
            timings = interleaved(
                {name: work.passes[pass_] for name, work in works.items()},
                device=device,
                repeats=repeats,
                resident={name: _always(work.held) for name, work in works.items()},
                visit=visit,
                clock=kernel_clock(device),
            )
            for name, provider in providers.items():
                row = _row(case, name, provider, pass_, dtype, device)
                row |= {"flops": arithmetic[pass_], "bytes": _traffic(case, upstream, pass_)}
                if name in timings:
                    timing = timings[name]
                    row |= {
                        "median_ms": timing.median_ms,
                        "samples_ms": timing.samples_ms,
                        "peak_bytes": timing.peak_bytes,
                    }
                    if visit.first:
                        fresh = _works(case, provider.function, upstream).passes[pass_]
                        row |= {"graph_ms": graph_ms(fresh, device)} | occupation(works[name].passes[pass_], device)
                    if visit.first and pass_ == "backward" and timing.peak_bytes is not None:
                        # Whoever keeps little for the way back, and computes it again there, is not to look the heavier for it.
                        row["peak_bytes"] += held_bytes(works[name].build, device)
                rows.append(row | achieved(row, limits))
    return rows


def _always(held: list[Tensor]) -> Callable[[], list[Tensor]]:
    return lambda: held


def _arithmetic(case: KernelCase, upstream: Results) -> Mapping[str, int | None]:
    """FLOPs of the specification, which are every provider's: one that does more gets no credit for it."""
    works = _works(case, getattr(reference, case.function), upstream).passes
    forward, both = flops(works["forward"]), flops(works["both"])
    return {"forward": forward, "backward": both - forward, "both": both}


def _row(
    case: KernelCase, name: str, provider: _Provider, pass_: str, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    backend = TRITON if name == TRITON else "torch"
    if name == OURS:
        first = next(iter(case.tensors.values()))
        backend = dispatch.explain(case.function, dtype=first.dtype, device=device, key=case.key).backend
    return {
        "suite": "kernels",
        "case": case.name,
        "provider": name,
        "pass": pass_,
        "status": provider.status,
        "reason": provider.reason,
        "error": provider.error,
        "median_ms": None,
        "samples_ms": [],
        "peak_bytes": None,
        "images_per_second": None,
        "graph_ms": None,
        "kernel_launches": None,
        "device_idle_share": None,
        "host_idle_share": None,
        "function": case.function,
        "key": case.key,
        "shapes": {name: list(tensor.shape) for name, tensor in case.tensors.items()},
        "dtype": str(dtype).removeprefix("torch."),
        "arch": architecture(device),
        "backend": backend,
    }
