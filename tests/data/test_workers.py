"""Signals to loader processes: only what the main process sends them, or its end, ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

PROGRAM = """
import os, signal, sys
from auxmae.data.loading import Loader
from tests.data.test_loading import make

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    print("starting", flush=True)
    batches = iter(Loader(make(40), 1, shuffle=True, workers=2))
    next(batches)
    print("loading", flush=True)
    sys.stdin.readline()
    {then}
"""


LATE = """
import multiprocessing, os, signal, sys, time
from auxmae.data.workers import obey_main

def begin(main):
    print("starting", flush=True)
    while os.getppid() == main:
        time.sleep(0.01)
    obey_main(0)
    time.sleep(100)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=begin, args=(os.getpid(),)).start()
    sys.stdin.readline()
    {then}
"""


def start(folder: Path, repository: Path, then: str, text: str = PROGRAM) -> subprocess.Popen[str]:
    """A program that loads with two processes, and the first process of a group; on a line of input it does `then`."""
    program = folder / "program.py"
    program.write_text(text.format(then=then))
    return subprocess.Popen(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), str(repository / "kernels")])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(120)  # one that dies before it has read its work leaves the main process waiting for ever
def test_batches_go_on_whatever_the_group_is_sent(tmp_path: Path, repository: Path) -> None:
    process = start(tmp_path, repository, "print(len(list(batches)))")
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    for _ in range(5):  # while the loader processes are starting
        for number in SIGNALS:
            os.killpg(process.pid, number)
        time.sleep(0.2)
    assert process.stdout.readline() == "loading\n"
    for number in SIGNALS:
        os.killpg(process.pid, number)
    assert process.communicate("\n", timeout=60) == ("39\n", "")
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "code"), [("sys.exit(3)", 3), ("raise KeyboardInterrupt", -2), ("os.kill(os.getpid(), signal.SIGKILL)", -9)]
)
def test_loader_processes_end_with_the_main_one(tmp_path: Path, repository: Path, then: str, code: int) -> None:
    process = start(tmp_path, repository, then)
    # Which has an end only when none of the processes is left that could write.
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode in (code, 128 - code)
    assert "worker" not in said


@pytest.mark.slow
def test_loader_processes_end_with_a_main_one_that_went_while_they_started(tmp_path: Path, repository: Path) -> None:
    process = start(tmp_path, repository, "os.kill(os.getpid(), signal.SIGKILL)", LATE)
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    process.communicate("\n", timeout=60)
    assert process.returncode == -9
