"""Ahead-of-time compilation: every default tile for every architecture, and every class of shapes that the interpreter saw."""

from __future__ import annotations

import json
import re

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton as triton_package
from auxmae_kernels import tuning

from tests.kernels import ahead_of_time
from tests.kernels.calls import CALLS

# Bytes a thread that the defaults of sm_80 and sm_90 may spill, by kernel and type: see `kernels/README.md`.
SPILLED = {
    ("streaming_backward", "fp32"): 8,
    ("gelu_backward", "bf16"): 8,
}


def cells(table):
    """(kernel, type, tile, architecture) → cell of a Markdown table of `resources`."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {(*row[:3], arch): cell for row in rows[2:] for arch, cell in zip(rows[0][3:], row[3:], strict=True) if cell != "–"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_table_in_the_readme_is_what_the_compiler_says(repository, compiled_table):
    """Every kernel at its default tiles, for every architecture; nothing spilled where the entries are chosen for it."""
    found = cells(compiled_table)
    assert {arch for *_, arch in found} == set(tuning.ARCHITECTURES)
    assert {kernel.partition(",")[0] for kernel, *_ in found} == every_kernel(repository)
    for (kernel, kind, tile, arch), cell in found.items():
        if arch in ("sm_80", "sm_90"):
            _, _, spilled, _, matrix = re.split(": |/", cell.replace("*", ""))
            assert int(spilled) <= SPILLED.get((kernel, kind), 0), (arch, kernel, kind, tile, cell)
            assert int(matrix) > 0 or not has_products(kernel) or kind == "fp32", (arch, kernel, tile, cell)
    text = (repository / "kernels" / "README.md").read_text(encoding="utf-8")
    (version,) = re.findall(r"Triton (\d+\.\d+\.\d+)", text)
    if triton_package.__version__ != version:
        pytest.skip(f"the table is of Triton {version}, and {triton_package.__version__} is installed")
    shown = cells(text[text.index("| kernel | type |") :].partition("\n\n")[0])
    architectures = {arch for *_, arch in shown}
    assert architectures >= {"sm_80", "sm_90"}
    assert shown == {key: cell for key, cell in found.items() if key[3] in architectures}


def every_kernel(repository):
    """The kernels that some launcher of the package launches."""
    files = (repository / "kernels" / "auxmae_kernels").glob("*.py")
    return {name for file in files for name in re.findall(r"\blaunch\(\s*(\w+), ", file.read_text(encoding="utf-8"))}


def has_products(kernel):
    """Whether a kernel multiplies tiles."""
    return re.match("packed|streaming|embed_forward|fused_linear", kernel) is not None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_class_that_was_interpreted_compiles(tmp_path):
    """The interpreter accepts shapes that a GPU does not; runs after the interpreter's tests, whose calls it has on record.

    Each for sm_89, which has the instructions of sm_80 and the least shared memory of NVIDIA's, and for one of the others in
    turn: all six take about ten minutes of one core, and `python -m auxmae_kernels.resources --calls` does them.
    """
    if not CALLS:
        pytest.skip("the interpreter's tests did not run before this one")
    file = tmp_path / "calls.json"
    file.write_text(json.dumps(list(CALLS)))
    others = [word for arch in tuning.ARCHITECTURES if arch != "sm_89" for word in ("--arch", arch)]
    command = ("-m", "auxmae_kernels.resources", "--spread", "--arch", "sm_89", *others)
    said = ahead_of_time.run(*command, "--calls", str(file))
    done, all_ = re.findall(r"\d+", said)
    assert int(done) == int(all_) >= len(tuning.ARCHITECTURES)


def test_what_does_not_compile_is_said():
    """A head that is no power of two, and a program that has too little shared memory: the checks above can fail."""
    code = (
        "import dataclasses\n"
        "from auxmae_kernels import examples, planning, resources\n"
        "entry = planning.planned('sm_89', next(examples.EXAMPLES['axial_attention']()))[0]\n"
        "odd = dataclasses.replace(entry, constants={**entry.constants, 'HEAD_TILE': 24})\n"
        "resources.SHARED_KIB['sm_89'] = 0.5\n"
        "odd, large, good = resources.compile_all([('sm_80', odd), ('sm_89', entry), ('sm_80', entry)])\n"
        "assert isinstance(odd, Exception) and 'shared' not in str(odd), odd\n"
        "print(large, good, sep='\\n')\n"
    )
    large, good = ahead_of_time.run("-c", code).splitlines()
    assert large == "1.0 KiB of shared memory, where sm_89 has 0.5"
    assert "spilled=0" in good


def test_without_triton_the_package_works():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else real(name, *a)\n"
        "import torch, auxmae_kernels as k\n"
        "x = torch.randn(1, 2, 3, 12)\n"
        "assert k.axial_attention(x, 2, 'patch').shape == (1, 2, 3, 4)\n"
        "assert 'not installed' in k.dispatch.explain('axial_attention', device='cpu').reason\n"
    )
    ahead_of_time.run("-c", code)


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
