"""Where the figures come from."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from auxmae_kernels import tuning

from auxmae.benchmark import environment as module
from auxmae.benchmark.environment import environment, source_state

CPU = torch.device("cpu")


def test_an_amd_gpus_figures_have_the_name_that_dispatch_looks_for(monkeypatch):
    tuning._architecture_of.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "7.0")
    # An MI250 tells the capability of an H100.
    properties = SimpleNamespace(gcnArchName="gfx90a:sramecc+:xnack-", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert module.architecture(torch.device("cuda", 0)) == "gfx90a"
    tuning._architecture_of.cache_clear()


def test_environment():
    document = environment(CPU)
    assert set(document) == {"device", "versions", "commit", "dirty"}
    assert document["device"]["type"] == "cpu"
    assert document["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("text", "name", "processor"),
    [
        (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\n"
            "processor\t: 1\nvendor_id\t: Other\nmodel\t\t: 9\nmodel name\t: Other\n",
            "AMD EPYC",
            {"vendor_id": "AuthenticAMD", "cpu family": "25", "model": "17"},
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", None, {"CPU implementer": "0x41", "CPU part": "0xd0c"}),
        (None, None, {}),
    ],
    ids=["AMD", "ARM", "no Linux"],
)
def test_a_processor_is_told_by_more_than_its_name(tmp_path, monkeypatch, text, name, processor):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(module, "Path", lambda path: file if path == "/proc/cpuinfo" else Path(path))
    device = environment(CPU)["device"]
    assert device["processor"] == processor
    assert device["name"] == (name or platform.processor() or platform.machine())


class Repository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.git("add", name)
        self.git("commit", "--quiet", "--message", name)
        return file


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    return Repository(tmp_path)


def test_the_commit_of_a_tracked_source_file(checkout):
    file = checkout.commit("auxmae/environment.py", "a = 1\n")
    head = checkout.git("rev-parse", "HEAD")
    assert source_state(file) == (head, False)
    (checkout.folder / "notes.txt").write_text("no source\n")
    assert source_state(file) == (head, False)
    file.write_text("a = 2\n")
    assert source_state(file) == (head, True)


def test_a_new_source_file_anywhere_in_the_repository_makes_it_dirty(checkout):
    file = checkout.commit("auxmae/environment.py", "a = 1\n")
    (checkout.folder / "kernels").mkdir()
    (checkout.folder / "kernels" / "new.py").write_text("")
    assert source_state(file) == (checkout.git("rev-parse", "HEAD"), True)


def test_an_installed_copy_has_no_commit_of_the_repository_around_it(checkout, monkeypatch):
    checkout.commit("train.py", "import auxmae\n")
    file = checkout.folder / ".venv" / "auxmae" / "environment.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert source_state(file) == (None, None)
    checkout.commit(".gitignore", ".venv\n")
    assert source_state(file) == (None, None)
    monkeypatch.setattr(module, "__file__", str(file))
    assert environment(CPU)["commit"] is None


def test_a_git_hook_of_another_repository_is_not_asked(checkout, tmp_path_factory, monkeypatch):
    other = Repository(tmp_path_factory.mktemp("other"))
    other.commit("environment.py", "b = 1\n")
    file = checkout.commit("environment.py", "a = 1\n")
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    found = source_state(file)
    monkeypatch.delenv("GIT_DIR")
    assert found == (checkout.git("rev-parse", "HEAD"), False)


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_state(Path(module.__file__).resolve()) == (None, None)
