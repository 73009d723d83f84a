"""What the entry point settles before anything else is imported."""

import os
import subprocess
import sys

import pytest

gnu = pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's wheels bring GNU OpenMP on Linux only")


def openmp_says(**variables: str) -> str:
    """What GNU OpenMP, as it is loaded with PyTorch by a command, prints of its settings."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-m", "auxmae", "doctor"]
    done = subprocess.run(command, env={**kept, "OMP_DISPLAY_ENV": "verbose", **variables}, capture_output=True, text=True)
    return done.stderr


@gnu
def test_threads_do_not_spin_for_long_where_the_user_says_nothing() -> None:
    assert "GOMP_SPINCOUNT = '3000'" in openmp_says()


@gnu
@pytest.mark.parametrize(
    ("variables", "expected"),
    [({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "OMP_WAIT_POLICY = 'ACTIVE'")],
)
def test_what_the_user_says_of_waiting_stays(variables: dict[str, str], expected: str) -> None:
    said = openmp_says(**variables)
    assert expected in said
    assert "'3000'" not in said
