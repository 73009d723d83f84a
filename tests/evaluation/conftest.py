"""What the tests of `auxmae eval` share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.small_run import make_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")
