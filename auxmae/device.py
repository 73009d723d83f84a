"""Where to compute, and what is global to the process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from auxmae_kernels import dispatch

from auxmae.errors import SettingsError
from auxmae.settings.schema import SettingsTree


def select_device(name: str, local_rank: int | None = None) -> torch.device:
    """ "auto", "cpu", "mps", "cuda" or "cuda:N" → a device that is there.

    Args:
        name: what run.device says.
        local_rank: where several processes train together, which one this is on its machine: each takes the GPU of its number.

    Raises:
        SettingsError: it is not.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise SettingsError(f"there is no device {name!r}", hint="one of auto, cpu, mps, cuda, cuda:N")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SettingsError(
            f"the device is to be {name!r}, and PyTorch sees no CUDA GPU",
            hint="say 'auto' or 'cpu' in its place; see `auxmae doctor`",
        )
    if local_rank is not None and name.startswith("cuda"):
        if name != "cuda":
            raise SettingsError(
                f"run.device = {name!r} is one GPU, and every process takes one of its own",
                hint="set run.device = 'auto' or 'cuda'",
            )
        if local_rank >= torch.cuda.device_count():
            raise SettingsError(
                f"this machine has {torch.cuda.device_count()} GPUs, too few for a process {local_rank + 1}",
                hint="start as many processes as there are GPUs, or set run.device = 'cpu'",
            )
        name = f"cuda:{local_rank}"
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise SettingsError(f"the device is to be {name!r}, and there are {torch.cuda.device_count()} GPUs")
    if name == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("the device is to be 'mps', and PyTorch sees no such device", hint="say 'auto' or 'cpu' in its place")
    return torch.device(name)


def make_current(device: torch.device) -> None:
    """A GPU chosen by number becomes the process' current one, on which events, captures and waits that name none take place."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Puts back, in the end, what a training sets for the process: threads, deterministic algorithms, kernels' backend, GPU.

    Gradients are on within it, whatever the caller has switched off.
    """
    threads = torch.get_num_threads()
    # Asking would set CUDA up.
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    backend = None if os.environ.get("AUXMAE_KERNELS") else dispatch.backend()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        if backend is not None:
            dispatch.set_backend(backend)
        if torch.cuda.is_initialized():
            torch.cuda.set_device(gpu)


def check_backend() -> None:
    """Says before any work that AUXMAE_KERNELS names no backend.

    Raises:
        SettingsError: it does not.
    """
    try:
        dispatch.backend()
    except ValueError as error:
        raise SettingsError(str(error), hint="unset it, or set AUXMAE_KERNELS=auto") from error


def overruled(settings: SettingsTree) -> list[str]:
    """That AUXMAE_KERNELS stands over a chosen kernels.backend, in a sentence for people; nothing where it does not."""
    wanted, used = settings.kernels.backend, os.environ.get("AUXMAE_KERNELS") or settings.kernels.backend
    return [] if wanted in (used, "auto") else [f"AUXMAE_KERNELS={used} stands over kernels.backend = {wanted!r}"]


def configure(settings: SettingsTree, local_rank: int | None = None) -> torch.device:
    """Applies what is global to the process: threads, kernels' backend, GPU.  Returns the device (see `select_device`).

    Raises:
        SettingsError: the device is not there, or AUXMAE_KERNELS names no backend.
    """
    check_backend()
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    if not os.environ.get("AUXMAE_KERNELS"):
        dispatch.set_backend(settings.kernels.backend)
    device = select_device(settings.run.device, local_rank)
    make_current(device)
    return device
