"""`python -m auxmae_kernels.resources` in a process of its own: interpreted kernels cannot be compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def start(*command: str) -> subprocess.Popen[str]:
    """Runs Python on the tree, without the interpreter; "-m auxmae_kernels.resources" by default."""
    paths = os.pathsep.join(str(path) for path in (REPOSITORY / "kernels", REPOSITORY))
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": paths}
    arguments = command or ("-m", "auxmae_kernels.resources")
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def result(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended; fails with what it said of an error."""
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def run(*command: str) -> str:
    """`start`, and what it printed."""
    return result(start(*command))
