"""How a training is asked to stop: by which signals, and that it finishes its step first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# A second signal within these seconds is the same wish: whoever started several processes passes on what they got already.
PATIENCE_SECONDS = 1.0


def stopping_signals() -> list[signal.Signals]:
    """The signals that ask a training to stop.

    None that is ignored, as nohup has it for a closed terminal, and a shell's script for Ctrl-C where it starts something in the
    background.  None that a host program of another language handles: its handler could not be put back.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one not on Windows
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) not in (signal.SIG_IGN, None)]


@contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, SIGTERM and a closed terminal finish the step; a second one stops at once.  Yields whether one came.

    See `stopping_signals` for those that are ignored.
    """
    asked = threading.Event()
    previous: dict[signal.Signals, Any] = {}
    since = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if not asked.is_set():
            since = time.monotonic()
        elif time.monotonic() - since > PATIENCE_SECONDS:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is threading.main_thread():
        for asked_by in stopping_signals():
            previous[asked_by] = signal.signal(asked_by, ask)
    try:
        yield asked.is_set
    finally:
        for asked_by, handler in previous.items():
            signal.signal(asked_by, handler)
