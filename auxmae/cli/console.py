"""Where output goes: results on stdout, and with --json one document there and everything else on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from auxmae.errors import UsageError

# Columns of the terminal: the most that a table takes, and the fewest that names are folded to.
_WIDEST, _NARROWEST_NAME = 200, 8


class _EnduringConsole(Console):
    """Falls silent where the pipe that it speaks to is closed, as `head` does, so that the work goes on to its end."""

    work = ""

    def on_broken_pipe(self) -> None:
        # Rich would turn stdout off, whichever of the two was closed, and exit.
        raise

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except BrokenPipeError:
            self.quiet = True
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
            with contextlib.suppress(OSError):
                print(f"note: the output is closed; {self.work} goes on without it", file=sys.stderr, flush=True)


def console(*, json_output: bool = False, quiet: bool = False, work: str = "") -> Console:
    """A rich console on stdout, or on stderr where stdout belongs to a JSON document.

    Brackets and colons are what they are: markers and files are called CD3[Sm154] or :gt.

    Args:
        json_output: whether stdout belongs to a JSON document.
        quiet: print nothing.
        work: what goes on where the output is closed, such as "the measurement"; "": the command ends.
    """
    out = (_EnduringConsole if work else Console)(stderr=json_output, quiet=quiet, markup=False, emoji=False)
    if isinstance(out, _EnduringConsole):
        out.work = work
    return out


def print_table(out: Console, table: Table) -> None:
    """Prints a table whose figures, which stand in columns of `no_wrap`, are never cut.

    On a narrow terminal the other columns, which hold names, fold; where that is not enough, lines run on.
    """
    options = out.options.update(width=_WIDEST)
    widest = Measurement.get(out, options, table).maximum
    names = [column for column in table.columns if not column.no_wrap]
    for column in names:
        column.overflow, column.max_width = "fold", _NARROWEST_NAME
    narrowest = Measurement.get(out, options, table).maximum
    for column in names:
        column.max_width = None
    # A pipe or a file has no width to fit.
    table.width = min(widest, max(narrowest, out.width if out.is_terminal else _WIDEST))
    out.print(table, crop=False)


def require_stdout() -> None:
    """Says that a JSON document, which is to go to stdout, cannot.

    Raises:
        UsageError: stdout is closed.
    """
    if sys.stdout is None:
        raise UsageError("stdout is closed, and the JSON document goes there", hint="leave out >&-, or send it to a file: > FILE")


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout, escaped where stdout cannot encode it: JSON loses nothing by that."""
    require_stdout()
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2, allow_nan=False)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def replace_unencodable() -> None:
    """Lets stdout write "?" for what it cannot encode, as "…" in Latin-1 or a file's name in other bytes than UTF-8."""
    # stderr writes escapes for that by itself.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def one_line(text: str) -> str:
    """The text with escapes in place of control characters and of bytes that are no UTF-8, which a file's name may hold."""

    def shown(character: str) -> str:
        kind, number = unicodedata.category(character), ord(character)
        if kind == "Cs" and 0xDC80 <= number <= 0xDCFF:  # a byte, as Python keeps it in a name
            return f"\\x{number - 0xDC00:02x}"
        return character.encode("unicode_escape").decode() if kind in ("Cc", "Cs") else character

    return "".join(map(shown, text))


def settings_line(file: Path | None) -> str:
    """Which settings file was read, for people."""
    if file is None:
        return "settings: built-in defaults (no auxmae.toml here; `auxmae init` writes one)"
    return f"settings: {file}"
