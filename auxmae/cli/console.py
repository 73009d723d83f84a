"""Where output goes: results on stdout, and with --json one document there and everything else on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console


def console(*, json_output: bool = False, quiet: bool = False) -> Console:
    """A rich console on stdout, or on stderr where stdout belongs to a JSON document.

    Brackets and colons are what they are: markers and files are called CD3[Sm154] or :gt.
    """
    return Console(stderr=json_output, quiet=quiet, markup=False, emoji=False)


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def settings_line(file: Path | None) -> str:
    """Which settings file was read, for people."""
    if file is None:
        return "settings: built-in defaults (no auxmae.toml here; `auxmae init` writes one)"
    return f"settings: {file}"
