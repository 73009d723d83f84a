"""What is saved, atomically, and loaded, safely.

A checkpoint is a folder: `model.safetensors` and `config.json` (see `model.pretrained`), and in `last` also
`training_state.pt` (optimiser, scaler, loader, random generators, early stopping), read with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from auxmae.errors import CheckpointError, first_line
from auxmae.model.folders import find_checkpoint, set_aside
from auxmae.model.mae import AuxMAE

STATE_NAME = "training_state.pt"
# A disk with less free than this is full: a file system keeps a few blocks back.
FULL_BYTES = 2**20


def save_checkpoint(model: AuxMAE, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Writes a checkpoint beside its place and then swaps it in: a crash leaves the old one or the new one, never a part.

    Raises:
        CheckpointError: the disk is full or not writable; the previous checkpoint is untouched.
    """
    fresh, old = folder.with_name(f".{folder.name}.new"), set_aside(folder)
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        model._save_pretrained(fresh)
        if state is not None:
            torch.save(state, fresh / STATE_NAME)
        for path in fresh.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            # Otherwise the one set aside is all that a crash has left, and has to stay until the new one is in place.
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        # Asked before what was written is deleted, as torch.save tells of a full disk in words of its own alone.
        code = _cause(folder, error)
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError":
            raise _unwritable(folder, error, code) from error
        raise


def _cause(folder: Path, error: Exception) -> int | None:
    """The system's error number behind a failed save, as far as it can be known."""
    if isinstance(error, OSError):
        return error.errno
    if told := re.search(r"\(os error (\d+)\)", str(error)):
        return int(told[1])
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder.parent).free < FULL_BYTES:
            return errno.ENOSPC
    return None


def _unwritable(folder: Path, error: Exception, code: int | None) -> CheckpointError:
    reason = first_line(error) if code is None else os.strerror(code)
    # Whichever cannot be written, a run goes on from the last one.
    kept = (
        ", then go on with --resume: the checkpoint from before is untouched"
        if find_checkpoint(folder.with_name("last")).is_dir()
        else ", or choose another --output"
    )
    return CheckpointError(f"{folder}: the checkpoint cannot be written: {reason}", hint=way_to_write(code) + kept)


def way_to_write(code: int | None) -> str:
    """What to do where the system could not write, for that error number of it, None where it is not known."""
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "free some space"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "see to it that you may write there"
    if code is None or code == errno.EFBIG:
        # torch.save says "unexpected pos" of all that ends a file early.
        return "see whether a quota or a limit on file sizes (ulimit -f) is reached, and whether the file system is in order"
    return "see whether the file system is in order"


def load_state(folder: Path, *, mapped: bool = False) -> dict[str, Any]:
    """The training state of a checkpoint.

    Args:
        folder: of the checkpoint.
        mapped: tensors stay in the file, and are read where they are used.

    Raises:
        CheckpointError: missing or broken.
    """
    path = find_checkpoint(folder) / STATE_NAME
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no training state to resume from", hint="use --init-from to take the weights only"
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise CheckpointError(f"{path}: broken: {first_line(error)}", hint="use --init-from to take the weights only") from error
    return state


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the global generators that a device's training draws from (dropout; augmentation and masks have others)."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> bool:
    """Puts the generators back as `random_state` found them; whether the device's own was among them."""
    torch.set_rng_state(state["torch"])
    own = state.get(device.type)
    if isinstance(own, list):
        # Checkpoints of before hold those of all GPUs that there were.
        number = device.index or 0
        own = own[number] if number < len(own) else None
    if own is None:
        return device.type == "cpu"
    if device.type == "cuda":
        torch.cuda.set_rng_state(own, device)
    else:
        torch.mps.set_rng_state(own)
    return True


def seed_from(content: bytes) -> int:
    """A seed that follows from the content, and differs wherever the content does."""
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "big")


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seeds Python, NumPy and PyTorch; `deterministic` refuses operations whose result may vary between runs."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries that draw from the global state)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
