"""`auxmae doctor`: names everything, tells what is missing or too old with the command that mends it, and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import torch
from auxmae_kernels import dispatch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from auxmae.cli import doctor
from auxmae.cli.app import app
from auxmae.data.readers import READERS


@pytest.fixture
def run(monkeypatch):
    monkeypatch.delenv("AUXMAE_KERNELS", raising=False)

    def call(*arguments):
        return CliRunner().invoke(app, ["doctor", *arguments], catch_exceptions=False)

    return call


@pytest.fixture
def installed(monkeypatch):
    """Pretends that a distribution has another version, or none (None)."""
    real = metadata.version

    def pretend(**versions):
        def version(name):
            if name not in versions:
                return real(name)
            if versions[name] is None:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def line_of(output, word):
    lines = [line for line in output.splitlines() if line.split()[:1] == [word]]
    assert len(lines) == 1, output
    return lines[0]


def test_a_healthy_machine(run):
    done = run()
    assert done.exit_code == 0, done.stdout
    for name in (*READERS, *dispatch.FUNCTIONS):
        line_of(done.stdout, name)
    assert line_of(done.stdout, "torch").split()[1] == metadata.version("torch")
    assert "nothing to mend" in done.stdout


def test_json_is_one_document(run):
    done = run("--json")
    document = json.loads(done.stdout)
    assert done.exit_code == 0
    assert set(document["readers"]) == set(READERS)
    assert set(document["kernels"]) == set(dispatch.FUNCTIONS)
    assert document["versions"]["torch"] == metadata.version("torch")
    assert document["problems"] == document["missing"] == []


def test_a_missing_required_package(run, installed):
    installed(scipy=None)
    done = run()
    assert done.exit_code == 1
    line = next(line for line in done.stdout.splitlines() if "missing: scipy" in line)
    minimum = next(item.minimum for item in doctor.declared_dependencies() if item.name == "scipy")
    assert f"pip install 'scipy>={minimum}'" in line
    assert json.loads(run("--json").stdout)["missing"] == ["scipy"]


def test_a_missing_optional_package(run, installed):
    installed(zarr=None)
    done = run()
    assert done.exit_code == 0
    assert "pip install 'auxmae[zarr]'" in line_of(done.stdout, "zarr")


def test_triton_is_not_required(run, installed):
    installed(triton=None)
    assert run().exit_code == 0


def test_a_required_package_that_is_too_old(run, installed):
    installed(numpy="1.2.3")
    done = run()
    assert done.exit_code == 1
    line = line_of(done.stdout, "numpy")
    minimum = next(item.minimum for item in doctor.declared_dependencies() if item.name == "numpy")
    assert f"needs >= {minimum}" in line
    assert f"pip install 'numpy>={minimum}'" in line
    document = json.loads(run("--json").stdout)
    assert document["too_old"] == ["numpy"]
    assert document["problems"][0].startswith("too old: numpy")


def test_versions_are_compared_as_versions(run, installed):
    # As text, "1.100" is before "1.26".
    installed(numpy="1.100", torch="2.10.0+cu130")
    assert run().exit_code == 0


def test_an_optional_package_that_is_too_old_is_named_and_its_format_is_not_promised(run, installed):
    pytest.importorskip("zarr")
    installed(zarr="2.18.0")
    done = run()
    assert done.exit_code == 0
    assert "too old" in line_of(done.stdout, "zarr")
    assert line_of(done.stdout, ".zarr").split()[1] == "needs"


@pytest.mark.parametrize(("package", "suffix", "code"), [("PIL", ".png", 1), ("zarr", ".zarr", 0)])
def test_a_package_that_is_installed_and_cannot_be_imported(repository, monkeypatch, package, suffix, code):
    pytest.importorskip(package)
    monkeypatch.delenv("AUXMAE_KERNELS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), str(repository / "kernels")]))
    program = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ImportError("built for another machine")

sys.meta_path.insert(0, Blocked())
sys.argv = ["auxmae", "doctor", "--json"]
from auxmae.cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert "built for another machine" in document["readers"][suffix]
    assert "pip install --force-reinstall" in document["readers"][suffix]
    assert len(document["problems"]) == code


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_backend_that_cannot_run(run, monkeypatch, backend):
    monkeypatch.setenv("AUXMAE_KERNELS", backend)
    monkeypatch.setattr(dispatch, "_obstacle", lambda *_: "no kernel runs here")
    done = run()
    assert done.exit_code != 0
    advice = [line for line in done.stdout.splitlines() if "set AUXMAE_KERNELS=auto, or unset it" in line]
    assert len(advice) == 1
    assert backend in advice[0]
    document = json.loads(run("--json").stdout)
    assert [problem.strip() for problem in advice] == document["problems"]


@pytest.mark.parametrize("variable", [None, "torch"])
def test_a_backend_of_the_settings_that_cannot_run(run, monkeypatch, tmp_path, variable):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auxmae.toml").write_text("[kernels]\nbackend = 'triton'\n")
    monkeypatch.setattr(dispatch, "_obstacle", lambda *_: "no kernel runs here")
    if variable is not None:
        monkeypatch.setenv("AUXMAE_KERNELS", variable)
    done = run("--json")
    count = len(dispatch.FUNCTIONS)
    said = f"kernels.backend = 'triton', and {count} of {count} kernels cannot run here; set kernels.backend = 'auto'"
    assert json.loads(done.stdout)["problems"] == ([] if variable else [said])
    assert done.exit_code == (0 if variable else 1)
    # Whoever goes on in this process has the backend that it had.
    monkeypatch.delenv("AUXMAE_KERNELS", raising=False)
    assert dispatch.backend() == "auto"


def test_an_apple_gpu_is_seen(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("auxmae_kernels.dispatch.triton_installed", lambda: True)
    document = json.loads(run("--json").stdout)
    assert document["device"] == "an Apple GPU (MPS)"
    assert all("MPS" in decision for decision in document["kernels"].values())
    assert document["problems"] == []


def test_kernels_are_those_of_the_device_that_is_set(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auxmae.toml").write_text('[kernels]\nbackend = "triton"\n[run]\ndevice = "cpu"\n')
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("auxmae_kernels.dispatch.triton_installed", lambda: True)
    document = json.loads(run("--json").stdout)
    assert any("kernels.backend = 'triton', and" in problem for problem in document["problems"])


def test_settings_that_no_command_takes(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auxmae.toml").write_text("[train]\nepoch = 3\n")
    monkeypatch.setenv("AUXMAE_TRIAN__EPOCHS", "3")
    done = run("--json")
    assert done.exit_code == 1
    problems = json.loads(done.stdout)["problems"]
    assert [problem.partition(": ")[0] for problem in problems] == ["auxmae.toml:2", "AUXMAE_TRIAN__EPOCHS"]


def test_the_dependencies_are_those_of_the_project(repository, monkeypatch):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    parsed = [Requirement(text) for text in project["dependencies"]]
    expected = {
        canonicalize_name(item.name): str(item.specifier).removeprefix(">=")
        for item in parsed
        if item.marker is None or item.marker.evaluate()
    }
    extras = {
        canonicalize_name(Requirement(text).name): extra
        for extra, texts in project["optional-dependencies"].items()
        if extra not in ("all", "dev")
        for text in texts
    }

    from_tree = doctor._source_requirements()

    for _ in range(2):
        found = doctor.declared_dependencies()
        assert {item.name: item.minimum for item in found if item.extra is None} == expected
        assert {item.name: item.extra for item in found if item.extra} == extras
        assert {item.name for item in found if item.required} == set(expected) - doctor.RUNS_WITHOUT
        # The same from metadata, where auxmae is installed without its source tree.
        monkeypatch.setattr(doctor, "_source_requirements", lambda: None)
        monkeypatch.setattr(metadata, "requires", lambda name: from_tree)


def test_markers_and_extras():
    assert doctor._parse("numpy>=2; python_version < '3'") is None
    assert doctor._parse("Some.Package_x>=1.5,<3; extra == 'more'") == doctor.Dependency("some-package-x", "1.5", "more", False)
    assert doctor._parse("auxmae[zarr]; extra == 'all'") is None


def test_neither_metadata_nor_source_tree(run, monkeypatch):
    monkeypatch.setattr(doctor, "_requirements", lambda: None)
    done = run()
    assert done.exit_code == 0
    assert "minimum versions are unknown" in done.stdout
    line_of(done.stdout, ".h5")


def test_without_packaging_the_names_are_still_known(run, installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging", None)
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    monkeypatch.setitem(sys.modules, "packaging.version", None)
    installed(scipy=None, zarr=None)
    done = run()
    assert done.exit_code == 1
    assert "pip install 'scipy'" in done.stdout
    assert "pip install 'auxmae[zarr]'" in done.stdout
    assert "minimum versions are unknown" in done.stdout
