"""What the tests of this process called."""

from __future__ import annotations

from typing import Any

# Every forward operator with the shapes and types of its arguments, as `auxmae_kernels.planning.described` gives them.
CALLS: dict[tuple[str, tuple[Any, ...]], None] = {}
