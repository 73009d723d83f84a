"""Where figures come from, for the record: device, clocks, versions, and the commit of AuxMAE's own source."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from auxmae_kernels import products, tuning

from auxmae import __version__

# What tells processors apart whose name is the same ("AMD EPYC"); the last two are those of ARM.
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")
_GPU_FIELDS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "driver_version")


def environment(device: torch.device) -> dict[str, Any]:
    """Where figures come from.

    Returns:
        {"device", "versions", "commit", "dirty"}: `commit` and `dirty` as `source_state` tells them of AuxMAE's own source.
    """
    commit, dirty = source_state(Path(__file__).resolve())
    return {
        "device": _device(device),
        "versions": {
            "auxmae": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("triton", "transformers")},
        },
        "commit": commit,
        "dirty": dirty,
    }


def architecture(device: torch.device) -> str:
    """ "sm_90", "gfx942" and the like on a GPU, by which dispatch finds its recorded wins, else the device's type."""
    return tuning.architecture(device) if device.type == "cuda" else device.type


def _device(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    cpu = _cpu_facts()
    name = torch.cuda.get_device_name(device) if cuda else _processor_name(cpu)
    facts: dict[str, Any] = {"type": device.type, "name": name, "arch": architecture(device), "threads": torch.get_num_threads()}
    if device.type == "cpu":
        facts["processor"] = {key: cpu[key] for key in _CPU_FIELDS if key in cpu}
        facts["products"] = products.explain()[0]
    facts["cores"], facts["load"] = os.cpu_count(), _load()
    if cuda:
        facts["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        facts["clocks"] = _gpu_facts(device)
    return facts


def _cpu_facts() -> dict[str, str]:
    """What Linux says of the first processor ("model name", "cpu family", …); empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    parts = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in parts}


def _processor_name(cpu: dict[str, str]) -> str:
    return cpu.get("model name") or platform.processor() or platform.machine()


def _load() -> float | None:
    """Processes that wanted a core in the last minute, before anything was measured; None where the system does not count."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _gpu_facts(device: torch.device) -> dict[str, str] | None:
    """Clocks (MHz), power limit (W) and driver as nvidia-smi tells them; None where it is not there."""
    chosen = torch.cuda.get_device_properties(device)
    identity = getattr(chosen, "uuid", None)
    select = [] if identity is None else [f"--id=GPU-{identity}"]
    command = ["nvidia-smi", *select, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.partition("\n")[0].split(",")]
    return dict(zip(_GPU_FIELDS, values, strict=True)) if done.returncode == 0 and len(values) == len(_GPU_FIELDS) else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_state(file: Path) -> tuple[str | None, bool | None]:
    """The commit that a source file belongs to, and whether Python files of its repository differ from that commit.

    Args:
        file: absolute path.

    Returns:
        (hash, dirty); (None, None) where git does not track the file: an installed copy may lie in a virtual environment
        inside a repository that is another project's.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", "--", file.name) is None:
        return None, None
    commit = _git(file.parent, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    # New files count too: they are imported like the others.
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=all", "--", ":(top)*.py")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not there."""
    # Set inside git's hooks, where they would stand for the repository that is being committed to.
    hidden = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    variables = {key: value for key, value in os.environ.items() if key not in hidden}
    # Without its optional locks git does not get in the way of what the user does in the repository meanwhile.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
