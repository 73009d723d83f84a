"""Ctrl-C that no command has an answer to: one line and exit code 130, whatever it strikes."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from auxmae.cli.processes import is_silent


def watch() -> None:
    """Ends at once where Ctrl-C strikes an import; where it is ignored, it stays so."""
    own = os.getpid()

    def strike(number: int, frame: FrameType | None) -> NoReturn:
        # Compiled code that imports a module does not always survive an exception, or goes on with half a module.
        if os.getpid() == own and _is_import(frame):
            _say()
            os._exit(130)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, strike)


def end() -> NoReturn:
    """Says that it was interrupted, and exits."""
    _say()
    sys.exit(130)


def _say() -> None:
    if not is_silent():
        print("interrupted", file=sys.stderr, flush=True)


def _is_import(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None
