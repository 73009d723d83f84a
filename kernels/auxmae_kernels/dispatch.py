"""Which implementation runs, and why.

The backend is "auto" (Triton where it is known to win, else PyTorch), "triton" (or an error that says why not) or "torch".
The environment variable AUXMAE_KERNELS overrules `set_backend`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

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
TRITON_FUNCTIONS: frozenset[str] = frozenset()

_chosen = "auto"


class KernelUnavailableError(RuntimeError):
    """The Triton kernel was asked for, and cannot run here."""


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


def explain(
    function: str,
    *,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Decision:
    """What would run for these inputs, and why.

    Args:
        function: one of `FUNCTIONS`.
        shape, dtype, device: of the first argument; None stands for any.

    Raises:
        ValueError: an unknown function or backend.
        KernelUnavailableError: the backend is "triton" and the kernel cannot run here.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"unknown function {function!r}: one of {', '.join(FUNCTIONS)}")
    chosen = backend()
    if chosen == "torch":
        return Decision("torch", "PyTorch was asked for")
    obstacle = _obstacle(function, device)
    if obstacle is None:
        return Decision("triton", "the Triton kernel runs here")
    if chosen == "triton":
        raise KernelUnavailableError(f"the Triton kernel of {function} cannot run: {obstacle}; set AUXMAE_KERNELS=auto or torch")
    return Decision("torch", obstacle)


def _obstacle(function: str, device: torch.device | str | None) -> str | None:
    """Why the Triton kernel cannot run, or None."""
    if function not in TRITON_FUNCTIONS:
        return f"{function} has no Triton kernel in this version"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device is not None and torch.device(device).type != "cuda":
        return f"the tensors are on the {torch.device(device).type.upper()}, and Triton needs a CUDA or ROCm GPU"
    return None
