"""Linear maps of the PyTorch path: the same product through the faster of two libraries that PyTorch brings along.

On a CPU PyTorch multiplies fp32 matrices with MKL, which uses AVX-512 on Intel's processors alone.  On AMD's, oneDNN, which
PyTorch calls for other things, is faster: twice on Zen 5, a tenth on Zen 4, whose units are half as wide.  Both sum in fp32.
AUXMAE_ONEDNN=0 keeps to MKL, 1 takes oneDNN wherever PyTorch has it.

Shapes: n rows, I inputs, O outputs.
"""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from auxmae_kernels import boundary

# Multiply-adds of a product; one of fewer takes less time than the way to an operator of our own and back. On Zen 4, whose
# units are half as wide, oneDNN gains that less fast.
SMALLEST, SMALLEST_ZEN4 = 2**21, 2**24
ZEN4_FAMILY = 25
# Weights whose gradient is multiplied by oneDNN: it turns both operands first, which does not pay for fewer.
SMALLEST_WEIGHT = 2**15


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def onednn() -> bool:
    """Whether large fp32 products on the CPU go through oneDNN."""
    return explain()[0] == "oneDNN"


def explain() -> tuple[str, str]:
    """What computes large fp32 products on the CPU, "oneDNN" or "PyTorch's default", and why."""
    wanted = os.environ.get("AUXMAE_ONEDNN", "")
    if not _available():
        return "PyTorch's default", "this PyTorch has no oneDNN"
    if wanted in ("0", "1"):
        return "oneDNN" if wanted == "1" else "PyTorch's default", f"AUXMAE_ONEDNN={wanted}"
    if _faster():
        return "oneDNN", "an AMD processor with AVX-512, which MKL does not use there"
    return "PyTorch's default", "no AMD processor with AVX-512"


@cache
def _available() -> bool:
    """Tried, since the operator is none of PyTorch's public ones: another version may lack it, or have it otherwise."""
    one = torch.ones(1, 1, device="cpu")
    try:
        return bool(torch.backends.mkldnn.is_available() and _compute(one, one, one[0]).item() == 2)
    except (AttributeError, RuntimeError, TypeError):
        return False


@cache
def _faster() -> bool:
    """AMD with AVX-512: MKL decides by the vendor what it uses."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def smallest() -> int:
    """Multiply-adds from which on a product goes through oneDNN, where that is the faster library."""
    return _smallest()


@cache
def _smallest() -> int:
    family = re.search(r"^cpu family\s*:\s*(\d+)", _processor(), re.M)
    return SMALLEST_ZEN4 if family and int(family[1]) == ZEN4_FAMILY else SMALLEST


def _processor() -> str:
    """What the system says of the first processor."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return platform.processor()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(…, I) and (O, I) → (…, O): x · weightᵀ + bias, as `torch.nn.functional.linear` has it."""
    compiling = torch.compiler.is_compiling()
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    if _suits(x, weight):
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = _product(rows, weight, None if compiling else bias)
    elif compiling and bias is not None:
        y = torch.matmul(x, weight.t())
    else:
        return F.linear(x, weight, bias)
    y = y.view(*x.shape[:-1], weight.shape[0])
    # Given its bias, a library first copies it over the whole output; the compiler makes it part of the next elementwise loop.
    return y + bias if compiling and bias is not None else y


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """(n, O) and (n, I) → (O, I): gradientᵀ · x."""
    outputs, inputs = gradient.shape[1], x.shape[1]
    if x.device.type != "cpu" or outputs * inputs < SMALLEST_WEIGHT or not _suits(x, gradient.t()):
        return gradient.t() @ x
    # oneDNN is faster with the longer side last, up to a fifth at these shapes.
    if outputs > inputs:
        transposed: Tensor = _product(x.t(), gradient.t(), None)
        return transposed.t()
    y: Tensor = _product(gradient.t(), x.t(), None)
    return y


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= smallest()
        and not torch.is_autocast_enabled("cpu")
        and not boundary.differentiated_otherwise()
        and onednn()
    )


def _compute(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


def _fake(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    # Sums expand one number to all of their gradient; the library wants numbers that lie in memory.
    gradient = gradient.contiguous()
    needs_a, needs_b, needs_bias = ctx.needs_input_grad
    return (
        _product(gradient, b.t(), None) if needs_a else None,
        weight_gradient(gradient, a) if needs_b else None,
        gradient.sum(0) if needs_bias else None,
    )


# a (n, I) · bᵀ (I, O) + bias (O) → (n, O).
_product = boundary.register("product(Tensor a, Tensor b, Tensor? bias) -> Tensor", _compute, _fake, observable=False)
boundary.register_autograd(_product, _setup, _backward)
