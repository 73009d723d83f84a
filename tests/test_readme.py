"""Every command block of the README runs; CONTRIBUTING.md says what the marks before a block mean."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"(?:<!-- test: (?P<mark>[^>]*?) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.S)


def blocks():
    for number, found in enumerate(BLOCK.finditer(README.read_text(encoding="utf-8"))):
        mark = found["mark"] or ""
        marks = [pytest.mark.slow] if mark in ("slow", "fresh-install") else []
        if mark.startswith("skip "):
            marks.append(pytest.mark.skip(reason=mark.removeprefix("skip ")))
        elif mark not in ("", "slow", "fresh-install"):
            raise ValueError(f"unknown mark in the README: {mark!r}")
        name = f"{number}-{found['code'].split()[0]}"
        yield pytest.param(found["language"], mark, found["code"], id=name, marks=marks)


def environment():
    """The commands of the interpreter that runs the tests come first; no setting leaks in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AUXMAE_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("language", "mark", "code"), list(blocks()))
def test_block_of_the_readme(language, mark, code, tmp_path, repository):
    if mark == "fresh-install":
        tracked = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
        for name in tracked.splitlines():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, tmp_path / name)
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if mark == "fresh-install":
        assert list(tmp_path.glob("runs/*/figures/reconstruction.png"))
