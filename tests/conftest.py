"""Fixtures shared by every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real multi-channel images that the project does not ship; tests that need it are skipped without it."""
    folder = Path(os.environ.get("AUXMAE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real test images are not at {folder}: set AUXMAE_TEST_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def _clean_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller's environment reaches a test; kernels are interpreted in their own tests alone."""
    if request.path.parent.name != "kernels":
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for name in list(os.environ):
        if name.startswith("AUXMAE_") and name not in ("AUXMAE_TEST_DATA", "AUXMAE_KERNELS"):
            monkeypatch.delenv(name)
