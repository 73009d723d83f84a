"""Fixtures shared by every test."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from auxmae.__main__ import spin_briefly

spin_briefly()

import torch  # noqa: E402 (it reads how long to spin when it is imported)

REPOSITORY = Path(__file__).resolve().parent.parent

# Tensors of tests are so small that a second thread costs more than it does, five times as much on a machine that others use.
torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # A shell starts what runs in the background so, and a training that inherits it would not heed the tests' Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    # Whether a kernel is interpreted is settled for the whole process when it is defined, so they are all defined here, ahead
    # of any test that would import one of them without the variable.
    os.environ["TRITON_INTERPRET"] = "1"
    for name in ("attention", "attention_block_operator", "feed_forward_operator", "norm", "embed", "assembly", "loss"):
        importlib.import_module(f"auxmae_kernels.{name}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Without a GPU one of pytest-xdist's processes runs all tests of kernels: the last ones compile what the others have called.

    Each other test goes to whichever process is free.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "kernels" if nodeid.startswith("tests/kernels/") else nodeid

    return None if torch.cuda.is_available() else Scheduling(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """A test marked `alone` waits until pytest-xdist's other processes have ended theirs, and they wait for it.

    Waiting comes before pytest-timeout's clock, which an outer hook does not start.
    """
    if not hasattr(item.config, "workerinput") or sys.platform == "win32":
        return (yield)
    import fcntl

    alone = item.get_closest_marker("alone") is not None
    shared = item.config._tmp_path_factory.getbasetemp().parent  # one folder for all processes
    # Who waits for the machine holds the queue, or the others would pass the machine on among themselves.
    with (shared / "queue.lock").open("w") as queue, (shared / "machine.lock").open("w") as machine:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real multi-channel images that the project does not ship; tests that need it are skipped without it."""
    folder = Path(os.environ.get("AUXMAE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real test images are not at {folder}: set AUXMAE_TEST_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def _clean_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller's environment reaches a test; kernels are interpreted in their own tests alone.

    Short tests have one thread in their commands too; long ones are as a user would run them.
    """
    if request.path.parent.name != "kernels":
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for name in list(os.environ):
        if name.startswith("AUXMAE_") and name not in ("AUXMAE_TEST_DATA", "AUXMAE_KERNELS"):
            monkeypatch.delenv(name)
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
