"""benchmarks/gpu.sh: its dry run goes through every stage, and without a GPU it says so on one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def script(repository):
    def call(*arguments, **variables):
        environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variables}
        return subprocess.run(
            ["bash", str(repository / "benchmarks" / "gpu.sh"), *map(str, arguments)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_fails_with_a_clear_line(script, tmp_path):
    done = script(tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: PyTorch sees no CUDA GPU; AUXMAE_GPU_SH_DEVICE=cpu makes a dry run without one"
    ]  # fmt: skip


def test_wrong_calls(script, tmp_path):
    assert script().returncode == 2
    done = script(tmp_path, AUXMAE_GPU_SH_DEVICE="tpu")
    assert done.returncode == 2
    assert "cuda or cpu, not tpu" in done.stderr
    done = script(tmp_path, AUXMAE_GPU_SH_DEVICE="cpu", AUXMAE_GPU_SH_SECONDS="10m")
    assert done.returncode == 2
    assert done.stderr == "error: AUXMAE_GPU_SH_SECONDS=10m: no number of seconds\n"
    (tmp_path / "file").write_text("")
    done = script(tmp_path / "file" / "out")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    (tmp_path / "old" / "run").mkdir(parents=True)
    done = script(tmp_path / "old", AUXMAE_GPU_SH_DEVICE="cpu")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'old'} holds what an earlier call measured; name another folder\n"


@pytest.mark.slow
@pytest.mark.alone
def test_the_dry_run_goes_through_every_stage(script, tmp_path):
    done = script(tmp_path, AUXMAE_GPU_SH_DEVICE="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    for suite in ("model", "scaling", "data", "kernels"):
        (path,) = tmp_path.glob(f"*-dry-run-{suite}.json")
        document = json.loads(path.read_text())
        assert document["complete"]
        assert {row["suite"] for row in document["rows"]} == {suite}
    assert json.loads((tmp_path / "measured.json").read_text()) == []
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_red_tests_stop_the_figures(script, tmp_path):
    # A module that fails on import, found before pytest's own dependencies.
    (tmp_path / "break").mkdir()
    (tmp_path / "break" / "sitecustomize.py").write_text(
        "import sys\nif 'pytest' in sys.argv[0] or '-m' in sys.orig_argv and 'pytest' in sys.orig_argv:\n    sys.exit(3)\n"
    )
    done = script(tmp_path / "out", AUXMAE_GPU_SH_DEVICE="cpu", PYTHONPATH=str(tmp_path / "break"))
    assert done.returncode == 1
    assert "no figure is measured" in done.stderr
    assert not list((tmp_path / "out").glob("*.json"))
