"""What the tests of this process launched."""

from __future__ import annotations

# (kernel, constants, types) of every launch.
LAUNCHED: set[tuple[str, tuple[tuple[str, object], ...], tuple[tuple[str, str], ...]]] = set()
