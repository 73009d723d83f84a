"""Which implementation of the hot functions a piece of work takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Makes `auxmae_kernels` take "triton" or "torch", whatever else chooses: the variable overrules all of it."""
    before = os.environ.get("AUXMAE_KERNELS")
    os.environ["AUXMAE_KERNELS"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["AUXMAE_KERNELS"]
        else:
            os.environ["AUXMAE_KERNELS"] = before
