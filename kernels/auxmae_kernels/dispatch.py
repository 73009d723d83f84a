"""Which implementation runs, and why.

The backend is "auto" (Triton where it was measured to win, else PyTorch), "triton" (or an error that says why not) or "torch".
The environment variable AUXMAE_KERNELS overrules `set_backend`; AUXMAE_KERNEL_TABLE names another table of what was measured.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from auxmae_kernels import boundary

BACKENDS = ("auto", "triton", "torch")
FUNCTIONS = (
    "axial_attention",
    "feed_forward",
    "attention_block",
    "add_norm",
    "embed_visible",
    "assemble",
    "masked_loss",
)
# Functions that have a Triton kernel in this version.
TRITON_FUNCTIONS: frozenset[str] = frozenset(FUNCTIONS)
# Recorded wins of the Triton kernels over every PyTorch provider, by function, architecture and shape class.
MEASURED = Path(__file__).with_name("measured.json")

_FIELDS = {"function", "arch", "dtype", "key", "speedup"}

_chosen = "auto"


class KernelUnavailableError(RuntimeError):
    """The Triton kernel was asked for, and cannot run here.

    Args:
        message: why.
        hint: what to do about it, by the environment.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class Decision:
    """What runs: `backend` is "triton" or "torch"; `reason` says why, for people."""

    backend: str
    reason: str


def set_backend(name: str) -> None:
    """Chooses "auto", "triton" or "torch" for this process; AUXMAE_KERNELS overrules it.

    Raises:
        ValueError: another name.
    """
    global _chosen
    _chosen = _checked(name, "the backend")


def backend() -> str:
    """The backend in force: AUXMAE_KERNELS, else what `set_backend` chose, else "auto".

    Raises:
        ValueError: AUXMAE_KERNELS holds another name.
    """
    return _checked(os.environ.get("AUXMAE_KERNELS") or _chosen, "AUXMAE_KERNELS")


def _checked(name: str, what: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{what} must be one of {', '.join(BACKENDS)}, not {name!r}")
    return name


@cache
def triton_installed() -> bool:
    """Whether Triton can be imported; it is not, on systems that it has no wheel for."""
    return importlib.util.find_spec("triton") is not None


def explain(
    function: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    key: Mapping[str, int | str] | None = None,
) -> Decision:
    """What would run for these inputs, and why.

    Args:
        function: one of `FUNCTIONS`.
        dtype, device: of the first argument; None stands for any.
        key: the shape class, of which what is left out stands for any: for attention {"axis", "length", "head_dim"}: tokens of
            a sequence, channels of a head; for other functions {"width"}, for the attention block all four, for the feed-forward
            sublayer {"hidden"} too; for the embedding {"width", "pixels"}, of a token; for the loss {"pixels"}, and
            {"image_gradient"}: 1 where the image asks for one.

    Raises:
        ValueError: an unknown function or backend.
        KernelUnavailableError: the backend is "triton" and the kernel cannot run here.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"unknown function {function!r}: one of {', '.join(FUNCTIONS)}")
    chosen = backend()
    if chosen == "torch":
        return Decision("torch", "PyTorch was asked for")
    if function not in TRITON_FUNCTIONS:
        return Decision("torch", f"{function} has no Triton kernel in this version")
    where = None if device is None else torch.device(device)
    obstacle = _obstacle(function, dtype, where, key or {})
    if chosen == "triton":
        if obstacle is not None:
            raise KernelUnavailableError(
                f"the Triton kernel of {function} cannot run: {obstacle}", "set AUXMAE_KERNELS=auto or torch"
            )
        return Decision("triton", "Triton was asked for")
    if obstacle is not None:
        return Decision("torch", obstacle)
    return _measured(function, dtype, where, key or {})


def _obstacle(function: str, dtype: torch.dtype | None, device: torch.device | None, key: Mapping[str, int | str]) -> str | None:
    """Why the Triton kernel cannot run, or None."""
    if not triton_installed():
        return "Triton is not installed"
    if device is not None and device.type != "cuda" and (device.type != "cpu" or not boundary.interpreting()):
        return (
            f"the tensors are on the {device.type.upper()}, and Triton needs a CUDA or ROCm GPU (or, for tests on a CPU, "
            "TRITON_INTERPRET=1 from the start)"
        )
    if dtype == torch.float64 and not boundary.interpreting():
        return "float64 tiles are too large for a GPU (Triton's interpreter alone takes them, for tests)"
    if boundary.differentiated_otherwise():
        return "a transform of torch.func or forward-mode differentiation is at work, which only PyTorch's own operators follow"
    if function in ("axial_attention", "attention_block"):
        from auxmae_kernels.attention import obstacle

        found = obstacle(int(key.get("head_dim", 1)), dtype or torch.float32)
        if found is not None or function == "axial_attention":
            return found
    if dtype not in (None, torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return f"{dtype} is none of the kernel's types"
    if function in ("add_norm", "feed_forward", "attention_block"):
        from auxmae_kernels.norm import MAX_WIDTH

        if int(key.get("width", 1)) > MAX_WIDTH:
            return f"a width of {key['width']} is beyond {MAX_WIDTH}"
    if function == "masked_loss":
        from auxmae_kernels.loss import MAX_PIXELS

        if int(key.get("pixels", 1)) > MAX_PIXELS:
            return f"{key['pixels']} pixels per token are beyond {MAX_PIXELS}"
        if key.get("image_gradient"):
            return "the image asks for a gradient, which the kernel does not compute"
    return None


def _measured(function: str, dtype: torch.dtype | None, device: torch.device | None, key: Mapping[str, int | str]) -> Decision:
    """Triton where a recorded run on this architecture shows that it wins for this shape class."""
    if device is None or device.type != "cuda":
        return Decision("torch", "a CPU only interprets Triton, for tests: AUXMAE_KERNELS=triton does so")
    from auxmae_kernels.tuning import architecture

    arch = architecture(device)
    here = [entry for entry in _entries() if entry["function"] == function and entry["arch"] == arch]
    if not here:
        return Decision(
            "torch", f"no win of {function} has been recorded on {arch}; AUXMAE_KERNELS=triton runs its Triton kernel"
        )
    alike = [
        entry
        for entry in here
        if (dtype is None or entry["dtype"] == str(dtype).removeprefix("torch.")) and _same_class(entry["key"], key)
    ]
    if not alike:
        return Decision("torch", f"no win of the Triton kernel has been recorded on {arch} for this shape")
    if dtype is None or not key:
        types = ", ".join(sorted({entry["dtype"] for entry in alike}))
        best = max(entry["speedup"] for entry in alike)
        return Decision(
            "triton",
            f"at the sizes and types ({types}) of recorded wins on {arch}, up to {best:.2f} × as fast as PyTorch's best; "
            "PyTorch's at others",
        )
    return Decision("triton", f"{alike[0]['speedup']:.2f} × as fast as PyTorch's best, as measured for such sizes on {arch}")


def _same_class(recorded: Mapping[str, Any], asked: Mapping[str, int | str]) -> bool:
    """Sizes count as alike up to the next power of two, which is what a tile is padded to."""

    def size(value: Any) -> Any:
        return (value - 1).bit_length() if isinstance(value, int) else value

    return all(size(recorded[name]) == size(value) for name, value in asked.items() if name in recorded)


def _entries() -> tuple[dict[str, Any], ...]:
    return _read_table(Path(os.environ.get("AUXMAE_KERNEL_TABLE") or MEASURED))


@cache
def _read_table(path: Path) -> tuple[dict[str, Any], ...]:
    """The entries that `benchmarks/measured.py` wrote.

    Raises:
        KernelUnavailableError: the file cannot be read, or holds something else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list) or not all(entry.keys() >= _FIELDS for entry in entries):
            raise ValueError(f"it is a list of entries with {', '.join(sorted(_FIELDS))}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise KernelUnavailableError(
            f"{path}: no table of measured kernels ({error}); unset AUXMAE_KERNEL_TABLE, or write it with benchmarks/measured.py"
        ) from error
    return tuple(entries)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose(function: str, dtype: torch.dtype, device: torch.device, key: tuple[tuple[str, int | str], ...]) -> str:
    """`explain` for a call: "triton" or "torch"; a constant for `torch.compile`, which must not trace what it asks for.

    The batch size is no part of the question, so that a graph serves every one.
    """
    return explain(function, dtype=dtype, device=device, key=dict(key)).backend
