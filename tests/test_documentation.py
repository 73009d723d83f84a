"""Every command block of the README and of `docs` runs, and every link there leads somewhere.

CONTRIBUTING.md says what the marks before a block mean.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(?:<!-- test: (?P<mark>[^>]*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```\n", re.S)
FRESH = ("fresh-install", "fresh-tests")
MARKS = ("", "slow", "own-files", *FRESH)
FEW_STEPS, FEW_IMAGES = "12", "400"


def blocks():
    for page in PAGES:
        for number, found in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8"))):
            mark = found["mark"] or ""
            name = f"{page.stem}-{number}-{mark or found['code'].split()[0]}"
            marks = [pytest.mark.slow] if mark else []
            if mark == "fresh-install":
                marks.append(pytest.mark.alone)
            yield pytest.param(found["language"], mark, found["code"], id=name, marks=marks)


def environment(mark):
    """The commands of the interpreter that runs the tests come first; no setting leaks in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUXMAE_", "PYTEST_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if mark == "own-files":
        kept["AUXMAE_TRAIN__MAX_STEPS"] = FEW_STEPS
    if mark == "slow":
        kept["AUXMAE_DATA__SYNTHETIC_IMAGES"] = FEW_IMAGES
    if mark == "fresh-tests":
        kept["PYTEST_ADDOPTS"] = "tests/settings -k starter"
    return kept


def own_files(folder):
    """Files of the names that the README uses: Sentinel-2 tiles, and MATLAB scenes stored as the real ones are."""
    rng = np.random.default_rng(0)
    (folder / "my" / "images").mkdir(parents=True)
    bands = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
    for number in range(20):
        smooth = np.cumsum(rng.normal(size=(13, 40, 40)), axis=2)
        pixels = (3000 + 100 * smooth).clip(1, 10000).astype(np.uint16)
        tifffile.imwrite(
            folder / "my" / "images" / f"tile_{number}.ome.tif", pixels, metadata={"axes": "CYX", "Channel": {"Name": bands}}
        )
    pines, truth = np.cumsum(rng.normal(size=(45, 45, 60)), axis=0), rng.integers(0, 17, (45, 45)).astype(np.uint8)
    scipy.io.savemat(folder / "Indian_pines_corrected.mat", {"indian_pines_corrected": pines})
    scipy.io.savemat(folder / "Indian_pines_gt.mat", {"indian_pines_gt": truth})
    scene = np.cumsum(rng.normal(size=(90, 90, 6)), axis=0)
    scipy.io.savemat(folder / "muufl.mat", {"Y": scene, "DSM": scene[..., 0], "label": rng.dirichlet(np.ones(5), (90, 90))})
    flat = np.cumsum(rng.normal(size=(6, 100, 100)), axis=1).transpose(0, 2, 1).reshape(6, 10000)
    scipy.io.savemat(folder / "jasper.mat", {"Y": flat, "S_GT": rng.dirichlet(np.ones(4), (100, 100))})


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("language", "mark", "code"), list(blocks()))
def test_block_runs(language, mark, code, tmp_path, repository):
    assert language in ("bash", "python"), "a block that no test can run"
    assert mark in MARKS, f"unknown mark: {mark!r}"
    if mark in FRESH:
        tracked = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
        for name in tracked.splitlines():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, tmp_path / name)
    if mark == "own-files":
        own_files(tmp_path)
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment(mark), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if mark == "fresh-install":
        (run,) = (tmp_path / "runs").glob("20*")
        assert (run / "figures" / "reconstruction.png").is_file()
        learned = json.loads((run / "result.json").read_text(encoding="utf-8"))
        # 0.63 to 0.66 on two quiet cores; a busy machine has time for fewer steps.
        assert learned["masked_l1"] < 0.9 * min(learned["floors"].values())
    if mark == "fresh-tests":
        assert re.search(r"\d+ passed", done.stdout)
        assert "failed" not in done.stdout


@pytest.mark.parametrize("folder", [".", "docs", "kernels", "benchmarks"])
def test_links_lead_somewhere(folder):
    pages = list((ROOT / folder).glob("*.md"))
    links = [(page, link) for page in pages for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))]
    assert pages
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
