"""Training and benchmarks run where there is PyTorch, the command line's packages and little else: on a bare GPU machine.

The other interpreter sees no site-packages, only links to the packages that are named here and to what those require.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

LIGHT = (
    "torch", "triton", "numpy", "safetensors", "huggingface_hub",
    "typer", "rich", "pydantic", "pydantic-settings", "tomli", "pytest",
)  # fmt: skip
HEAVY = (
    "rasterio", "shapely", "h5py", "scipy", "sklearn", "zarr",
    "matplotlib", "tifffile", "PIL", "hypothesis", "pyarrow", "tomlkit",
)  # fmt: skip


def distributions():
    """The light packages that are installed, with all that they require."""
    found, waiting = {}, list(LIGHT)
    while waiting:
        name = re.sub("[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        required = [Requirement(text) for text in found[name].requires or []]
        waiting += [each.name for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def light(repository, tmp_path_factory):
    """Runs Python with the light packages alone."""
    folder = tmp_path_factory.mktemp("light")
    for distribution in distributions():
        for top in {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))

    def call(*arguments, cwd=None):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AUXMAE_")}
        environment |= {"PYTHONPATH": f"{repository}:{repository / 'kernels'}:{folder}", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-S", *map(str, arguments)],
            cwd=cwd or repository, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


def test_what_trains_and_measures_can_be_imported(light):
    code = (
        "import importlib.util, sys\n"
        f"assert not any(importlib.util.find_spec(name) for name in {HEAVY})\n"
        "import auxmae.cli.app, auxmae.training.session, auxmae.evaluation.reconstruction, auxmae.visuals.report\n"
        "import auxmae.benchmark.session, auxmae.benchmark.joint, auxmae.benchmark.compare\n"
    )
    done = light("-c", code)
    assert done.returncode == 0, done.stderr


def test_what_needs_more_says_so_on_one_line(light, tmp_path):
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({"rows": []}))
    done = light("-m", "auxmae", "benchmark", "--from", path, "--figures", tmp_path / "figures")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --figures needs matplotlib, which is not installed")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_training_and_every_suite_run(light, tmp_path):
    settings = ["--set", "data.synthetic_images=64", "--set", "train.batch_size=8"]
    done = light("-m", "auxmae", "train", "--max-steps", 2, "--output", tmp_path / "run", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "matplotlib is not installed" in done.stdout + done.stderr
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
    output = tmp_path / "benchmark.json"
    arguments = ["--suite", "all", "--quick", "--repeats", 1, "--recompute", "--output", output]
    done = light("-m", "auxmae", "benchmark", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert {row["suite"] for row in rows} == {"kernels", "model", "scaling", "data"}
    # A name that `measured.py` writes the table of, which has no package of its own.
    done = light("benchmarks/measured.py", output, "--output", tmp_path / "measured.json")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_gpu_tests_can_be_collected(light, repository):
    files = [path for path in (repository / "tests").rglob("test_*.py") if re.search(r"mark\.gpu\b", path.read_text())]
    chosen = [path for path in files if path != repository / "tests" / "test_light_dependencies.py"]
    done = light("-m", "pytest", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=", *chosen)
    assert done.returncode == 0, done.stdout
    assert "test_the_real_graph" in done.stdout
