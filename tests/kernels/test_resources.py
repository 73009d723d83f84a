"""Ahead-of-time compilation: every tuned entry for every architecture, and every class of shapes that the interpreter saw."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton as triton_package

# Interpreted kernels cannot be compiled, so compilation has a process of its own.
ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "0"}


def run(code, *arguments, repository):
    paths = os.pathsep.join(str(path) for path in (repository / "kernels", repository))
    environment = {**ENVIRONMENT, "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *code, *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_table_in_the_readme_is_what_the_compiler_says(repository):
    text = (repository / "kernels" / "README.md").read_text(encoding="utf-8")
    (version,) = re.findall(r"Triton (\d+\.\d+\.\d+)", text)
    if triton_package.__version__ != version:
        pytest.skip(f"the table is of Triton {version}, and {triton_package.__version__} is installed")
    done = run(["-m", "auxmae_kernels.resources"], repository=repository)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    for arch, kernel, tile, _, _, spilled, _, matrix in rows:
        assert spilled == "0", (arch, kernel, tile)
        assert int(matrix) > 0, (arch, kernel, tile)


EVERY = """
import sys
from auxmae_kernels import resources
print(sum(1 for _, entry in resources.tuned(sys.argv[1]) if resources.compile_entry(entry, sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("arch", ["sm_89", "sm_100", "sm_120", "gfx942"])
def test_every_tuned_entry_compiles(arch, repository):
    done = run(["-c", EVERY], arch, repository=repository)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 30


SEEN = """
import json, sys
from auxmae_kernels import attention_packed, attention_streaming, resources
for kernel, rows, head_tile, warps, dtype, flags in json.load(sys.stdin if len(sys.argv) < 2 else open(sys.argv[1])):
    function = getattr(attention_packed, kernel, None) or getattr(attention_streaming, kernel)
    resources.compile_entry(resources.attention_entry(function, rows, head_tile, warps, dtype=dtype, **flags), "sm_80")
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_class_that_was_interpreted_compiles(repository, tmp_path):
    """The interpreter accepts shapes that a GPU does not; runs after the interpreter's tests, whose launches it has on record."""
    from kernels.launched import LAUNCHED

    # fp64 is for the interpreter alone: its shapes are compiled for bf16.
    names = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "bf16"}
    classes = set()
    for kernel, constants, types in LAUNCHED:
        value, dtype = dict(constants), dict(types).get("qkv")
        if dtype is None:
            # Not a kernel of `axial_attention`.
            continue
        flags = tuple((name, value[name]) for name in ("ALONG_CHANNELS", "HAS_SLOTS", "HAS_LENGTHS"))
        classes.add((kernel, value["TILE"], value["HEAD_TILE"], value["num_warps"], names[dtype], flags))
    if not classes:
        pytest.skip("the interpreter's tests did not run before this one")
    file = tmp_path / "classes.json"
    file.write_text(json.dumps([[*rest, dict(flags)] for *rest, flags in sorted(classes)]))
    done = run(["-c", SEEN], str(file), repository=repository)
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_triton_the_package_works(repository):
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else real(name, *a)\n"
        "import torch, auxmae_kernels as k\n"
        "x = torch.randn(1, 2, 3, 12)\n"
        "assert k.axial_attention(x, 2, 'patch').shape == (1, 2, 3, 4)\n"
        "assert 'not installed' in k.dispatch.explain('axial_attention', device='cpu').reason\n"
    )
    done = run(["-c", code], repository=repository)
    assert done.returncode == 0, done.stderr[-2000:]


def test_reference_is_used_where_nothing_was_recorded(monkeypatch):
    from auxmae_kernels import dispatch

    monkeypatch.setenv("AUXMAE_KERNELS", "auto")
    monkeypatch.setattr(dispatch, "_obstacle", lambda *_: None)
    monkeypatch.setattr("auxmae_kernels.tuning.architecture", lambda _: "sm_90")
    entry = {
        "function": "axial_attention",
        "arch": "sm_90",
        "dtype": "bfloat16",
        "key": {"axis": "patch", "length": 17, "head_dim": 32},
        "speedup": 3.0,
    }
    monkeypatch.setattr(dispatch, "_entries", lambda: (entry,))

    def decided(length, dtype=torch.bfloat16):
        key = {"axis": "patch", "length": length, "head_dim": 32}
        return dispatch.explain("axial_attention", dtype=dtype, device="cuda", key=key).backend

    assert [decided(17), decided(32), decided(16), decided(17, torch.float32)] == ["triton", "triton", "torch", "torch"]
