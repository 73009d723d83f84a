"""What every kernel's proof shares: Triton's interpreter, poisoned outputs, and a record of what was launched."""

from __future__ import annotations

import pytest
import torch
from kernels.launched import LAUNCHED


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> str:
    """Kernels run, on a GPU or in the interpreter, into memory full of NaN; gives the device."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from auxmae_kernels import boundary

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not boundary.interpreting():
        pytest.skip("no GPU, and Triton was imported without TRITON_INTERPRET=1")
    plain = boundary.empty

    def poisoned(shape, like, dtype=None):
        memory = plain(shape, like, dtype)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    for module in list(vars(__import__("auxmae_kernels")).values()):
        if getattr(module, "empty", None) is plain:
            monkeypatch.setattr(module, "empty", poisoned)
    monkeypatch.setenv("AUXMAE_KERNELS", "triton")
    monkeypatch.setattr(boundary, "observers", [_record])
    return device


def _record(kernel, programs, arguments, options) -> None:
    """Keeps what decides a binary: the constants, and which type each tensor has."""
    names = [name for name in kernel.arg_names if name not in options]
    types = tuple(
        (name, str(value.dtype).removeprefix("torch."))
        for name, value in zip(names, arguments, strict=False)
        if isinstance(value, torch.Tensor)
    )
    kept = tuple(sorted((name, value) for name, value in options.items() if name not in ("ACC", "PRECISION", "UPCAST")))
    LAUNCHED.add((kernel.__name__, kept, types))
