"""Starts the processes that train one model together on this machine, and makes one command of them again.

Each runs the same command line and finds in its environment which one it is, as under `torchrun`.  The first one has the
terminal; what another one says is shown only where it was the one that failed.  No PyTorch here: it only waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from auxmae.cli.console import one_line
from auxmae.errors import AuxMAEError, PeerLostError
from auxmae.model.folders import RUNS, SETTINGS_NAME, checkpoint_of_run, locate, started
from auxmae.places import quoted
from auxmae.training.stopping import stopping_signals

# Tells a process that somebody waits for it who shows the fault of whichever one failed.
STARTED = "_AUXMAE_STARTED"
# One that was asked to stop is no fault; the first one then has a checkpoint to write.
ORDERLY = (0, 130)
# For the others to notice by themselves that one has failed; then for their end, once they are told.
GRACE_SECONDS = 5.0


def is_one_of_several() -> bool:
    """Whether this process was started to train with others."""
    return os.environ.get("WORLD_SIZE", "") not in ("", "1") and os.environ.get("RANK", "").isdecimal()


def is_silent() -> bool:
    """Whether another process speaks for this one."""
    return is_one_of_several() and os.environ["RANK"] != "0"


def say_fault(error: Exception, words: str) -> None:
    """One line on stderr, with the process that it is about; of several, who lost another one leaves the word to that one."""
    if isinstance(error, PeerLostError) and STARTED in os.environ:
        return
    who = f" (process {int(os.environ['RANK']) + 1} of {os.environ['WORLD_SIZE']})" if is_silent() else ""
    print(f"error{who}: {one_line(words)}", file=sys.stderr)


def run_together(count: int, arguments: Sequence[str], *, run: str, is_new: bool) -> int:
    """Runs `python -m auxmae ARGUMENTS` in `count` processes → the exit code.

    Args:
        count, arguments: how many processes, and of what.
        run: what --resume calls the run that they train.
        is_new: whether they make it.

    Raises:
        AuxMAEError: a process was killed.
        PeerLostError: they lost each other, and none of them says why.
    """
    since = time.time() if is_new else 0.0
    with tempfile.TemporaryDirectory(prefix="auxmae-") as folder:
        said = [Path(folder) / f"{rank}.txt" for rank in range(count)]
        port = _free_port()
        processes: list[subprocess.Popen[bytes]] = []
        try:
            with _passing_on(processes) as passed_on:
                processes.extend(_start(rank, count, port, arguments, said[rank]) for rank in range(count))
                for number in [*passed_on]:
                    # It came while they were started, so some may not have got it; to others twice is the same wish.
                    _tell(processes, number)
                ended_by_us = _wait(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        codes = [process.returncode for process in processes]
        return _conclude(codes, ended_by_us, said, _how_to_go_on(run, since), passed_on)


def _how_to_go_on(run: str, since: float) -> str:
    """A hint, of a run that was made at `since` or later: its folder may not have been made, nor its first checkpoint."""
    try:
        folder = locate(run)
        runs = [path.parent for path in RUNS.glob(f"*/{SETTINGS_NAME}")] if run == "last" and since else [folder]
        if sum(started(path) >= since for path in runs) > 1:
            return f"go on with: auxmae train --resume RUN, one of those in {RUNS}"  # others may have begun meanwhile
        checkpoint_of_run(folder, "last")
        saved = started(folder) >= since
    except (AuxMAEError, OSError):
        saved = False
    return f"go on with: auxmae train --resume {quoted(folder)}" if saved else "nothing was saved yet"


def _start(rank: int, count: int, port: int, arguments: Sequence[str], said: Path) -> subprocess.Popen[bytes]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environment = {
        # Together they have as many threads as there are cores.
        "OMP_NUM_THREADS": str(max(_cores() // count, 1)),
        **os.environ,
        **{name: str(value) for name, value in place.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        STARTED: str(count),
    }
    command = [sys.executable, "-m", "auxmae", *arguments]
    if rank == 0:
        return subprocess.Popen(command, env=environment)
    with said.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def _cores() -> int:
    """How many cores this process may use: a job on a shared machine has some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _passing_on(processes: list[subprocess.Popen[bytes]]) -> Iterator[set[int]]:
    """What asks this one to stop goes to the processes, which finish their step and save.  Yields the signals that came."""
    came = set[int]()

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.add(number)
        _tell(processes, number)

    previous: dict[signal.Signals, Any] = {number: signal.signal(number, pass_on) for number in stopping_signals()}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _tell(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> set[int]:
    """Until all have ended → the ranks that did not by themselves: where one fails, the others cannot go on."""
    told: float | None = None
    failed: float | None = None
    ended_by_us: set[int] = set()
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        now = time.monotonic()
        if failed is None and any(process.returncode not in (None, *ORDERLY) for process in processes):
            failed = now
        if failed is None or now - failed < GRACE_SECONDS:
            continue
        for rank, process in enumerate(processes):
            if process.poll() is not None:
                continue
            if told is None:
                process.terminate()
                ended_by_us.add(rank)
            elif now - told > GRACE_SECONDS:
                process.kill()
        told = told or now
    return ended_by_us


def _conclude(
    codes: Sequence[int], ended_by_us: set[int], said: Sequence[Path], going_on: str, passed_on: Collection[int] = ()
) -> int:
    """The exit code of all: of the first process where it failed by itself, else of another one, whose words are shown.

    That of an interruption where one of the signals that were `passed_on` ended one, as it does before the first step.
    """
    own = [rank for rank, code in enumerate(codes) if code not in (0, PeerLostError.exit_code) and rank not in ended_by_us]
    # One that the system killed while they met leaves others that find no way to it.
    killed = [rank for rank in own if codes[rank] == -getattr(signal, "SIGKILL", 9)]
    if not killed and any(-codes[rank] in passed_on for rank in own):
        if codes[0] != 130:  # else the first one has said so
            print(f"interrupted; {going_on}", file=sys.stderr)
        return 130
    failed = killed or own or [rank for rank, code in enumerate(codes) if code != 0]
    if not failed:
        return 0
    rank = failed[0]
    code = codes[rank]
    if rank > 0:
        sys.stderr.write(said[rank].read_text(encoding="utf-8", errors="replace"))
    if code == PeerLostError.exit_code:
        # Each has left the word to another one.
        raise PeerLostError(
            f"the {len(codes)} processes lost the connection to each other, and none says why",
            hint=going_on,
        )
    if code < 0:
        raise AuxMAEError(
            f"process {rank + 1} of {len(codes)} was killed by {signal.Signals(-code).name}",
            hint=f"was memory short? {going_on}",
        )
    return code
