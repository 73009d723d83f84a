"""Loader processes and signals: Ctrl-C and its like go to every process of a command, and only the main one is to heed them.

It then finishes its step with the batches that it still gets, and ends the others.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker

# Where the sender of a signal is not told, as on macOS, processes would not end for the main one either.
_TOLD = hasattr(signal, "sigwaitinfo")


@contextmanager
def deaths_told_in_order() -> Iterator[None]:
    """Of processes that PyTorch starts within, a death is told where their next batch is asked for, within five seconds.

    Otherwise PyTorch raises wherever the main thread is when it hears of one, in the middle of an optimiser step too.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None:  # not of Python
            signal.signal(signal.SIGCHLD, before)


@contextmanager
def shielded() -> Iterator[None]:
    """Processes that are started within get no signal that asks to stop, from their first instruction on; nor does this thread.

    What comes meanwhile reaches this process afterwards.
    """
    if not _TOLD:
        yield
        return
    asking_to_stop = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, asking_to_stop)
    try:
        # Python's own helper of such processes: SIGHUP would end it too, and where it is started now it unblocks the others here.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, asking_to_stop)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_main(worker: int) -> None:
    """To be called in a process that was started `shielded`: SIGTERM ends it where the main process sends it, or is gone.

    Args:
        worker: its number, which `DataLoader` gives.
    """
    threading.Thread(target=_end_with_main, daemon=True).start()
    if _TOLD:
        threading.Thread(target=_await_end, daemon=True).start()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_main() -> None:
    """PyTorch would not notice that the main process is gone where it went while this one was still starting."""
    main = parent_process()
    if main is not None:
        main.join()
        os._exit(0)


def _await_end() -> None:
    main = parent_process()
    while main is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid and main.is_alive():
        pass
    os._exit(0)
