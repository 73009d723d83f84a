"""The correctness gate: nobody who computes something else gets a figure.

Each provider's results, with and without a backward pass to come, and gradients are compared with the specification in fp64,
and may be off by little more than the specification itself is in the type that is measured: Dao et al. test FlashAttention so
(arXiv 2205.14135, code).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auxmae.benchmark.kernel_cases import KernelCase

# A provider's error may be this many times the eager reference's in the same type …
ALLOWANCE = 3.0
# … plus this many units of rounding of the result's size; and the reference itself stays below this many.
ROUNDING = {"max": 8.0, "rms": 2.0}
SANE = {"max": 512.0, "rms": 64.0}
# Unit of rounding for two ways to compute the same in fp64: far above what the order of sums explains, far below any fault.
EXACT = 1e-12
# Of the name of what is computed under `no_grad`, where functions may take another way, and forward passes are timed.
FREE = ", no gradients"

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """`correct`, and where it is not, `reason`; `error` is the largest deviation over what is allowed."""

    correct: bool
    reason: str
    error: float | None


def outputs(function: Callable[..., Any], tensors: Mapping[str, Tensor], case: KernelCase) -> tuple[Tensor, ...]:
    """What a function returns, always as a tuple."""
    result = function(**tensors, **case.constants)
    return result if isinstance(result, tuple) else (result,)


def results(function: Callable[..., Any], case: KernelCase, tensors: Mapping[str, Tensor], upstream: Results) -> Results:
    """As `learned`, and with `FREE` behind their names the outputs of a call that no backward pass follows."""
    with torch.no_grad():
        found = outputs(function, tensors, case)
    return learned(function, case, tensors, upstream) | {f"output {index}{FREE}": tensor for index, tensor in enumerate(found)}


def learned(function: Callable[..., Any], case: KernelCase, tensors: Mapping[str, Tensor], upstream: Results) -> Results:
    """Outputs "output 0", … and gradients "gradient of NAME" under the given gradients of the outputs."""
    leaves = {
        name: tensor.detach().requires_grad_() if name in case.differentiable else tensor for name, tensor in tensors.items()
    }
    found = outputs(function, leaves, case)
    wanted = [leaves[name] for name in case.differentiable]
    # An input that is left out has a gradient of 0, which is wrong but no failure.
    gradients = torch.autograd.grad(found, wanted, list(upstream.values()), materialize_grads=True)
    named = {f"output {index}": tensor.detach() for index, tensor in enumerate(found)}
    return named | {f"gradient of {name}": tensor for name, tensor in zip(case.differentiable, gradients, strict=True)}


def exact(case: KernelCase, reference: Callable[..., Any], tensors: Mapping[str, Tensor], upstream: Results) -> Results:
    """What `results` should be: `learned` of the specification in fp64, with and without gradients alike.

    Where images do not depend on each other it goes image by image: in fp64 scores of all at once would not fit a GPU.
    """
    if not case.separable:
        return _with_free(learned(reference, case, _double(tensors), _double(upstream)))
    batch = next(tensors[name].shape[0] for name in case.batched)
    parts: list[Results] = []
    for item in range(batch):
        cut = {name: tensor[item : item + 1] if name in case.batched else tensor for name, tensor in tensors.items()}
        seen = {name: tensor[item : item + 1] for name, tensor in upstream.items()}
        parts.append(learned(reference, case, _double(cut), _double(seen)))
    joined: Results = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        of_weights = name.startswith("gradient of ") and name.removeprefix("gradient of ") not in case.batched
        joined[name] = torch.stack(values).sum(0) if of_weights else torch.cat(values)
    return _with_free(joined)


def _with_free(found: Results) -> Results:
    return found | {f"{name}{FREE}": tensor for name, tensor in found.items() if name.startswith("output")}


def _double(tensors: Mapping[str, Tensor]) -> Results:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _errors(found: Tensor, expected: Tensor) -> dict[str, float]:
    difference = (found.double() - expected).abs()
    return {"max": float(difference.max()), "rms": float(difference.square().mean().sqrt())}


def judge(found: Results, eager: Results, expected: Results, epsilon: float) -> Verdict:
    """Whether `found` is as near to `expected` as `eager` is; `epsilon` is the measured type's unit of rounding."""
    worst = 0.0
    for name, truth in expected.items():
        if found[name].shape != truth.shape:
            return Verdict(False, f"{name} has the shape {tuple(found[name].shape)}, not {tuple(truth.shape)}", None)
        if not bool(torch.isfinite(found[name]).all()):
            return Verdict(False, f"{name} is not finite", None)
        size = {"max": float(truth.abs().max()), "rms": float(truth.square().mean().sqrt())}
        own, other = _errors(found[name], truth), _errors(eager[name], truth)
        for kind in ("max", "rms"):
            floor = epsilon * size[kind] + 1e-300
            allowed = min(ALLOWANCE * other[kind] + ROUNDING[kind] * floor, SANE[kind] * floor)
            worst = max(worst, own[kind] / allowed)
            if not own[kind] <= allowed:
                return Verdict(False, f"{name}: {kind} error {own[kind]:.3g}, allowed {allowed:.3g}", own[kind] / allowed)
    return Verdict(True, "", worst)
