"""The model suite's rows, its optional providers, and where the figures come from."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from auxmae.benchmark import suites
from auxmae.benchmark.suites import OURS, PLAIN, ModelCase, environment, model_suite, source_state

CPU = torch.device("cpu")
KEYS = {"suite", "case", "provider", "pass", "median_ms", "samples_ms", "peak_bytes", "images_per_second"}
TINY = ModelCase(
    "tiny", 2, channels=3, image_size=32, patch_size=8, width=32, hidden=64, heads=4, depth=1, decoder_depth=1
)  # fmt: skip
# Large enough for activations, and not weights, to be most of the memory.
MODERATE = ModelCase("moderate", 8, channels=6, width=64, hidden=128, heads=4, depth=4, decoder_depth=2)


@pytest.fixture(autouse=True)
def _one_thread():
    """No threads that wait for each other on a busy machine: the models are small, and no figure depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_key(rows):
    return {(row["pass"], row["provider"]): row for row in rows}


def test_rows_are_complete():
    rows = model_suite(TINY, device=CPU, repeats=3)
    assert set(by_key(rows)) == {(name, provider) for name in ("forward", "step") for provider in (OURS, PLAIN)}
    assert len(rows) == 4
    for row in rows:
        assert set(row) >= KEYS
        assert (row["suite"], row["case"]) == ("model", "tiny")
        assert len(row["samples_ms"]) == 3
        assert min(row["samples_ms"]) > 0
        assert row["median_ms"] == sorted(row["samples_ms"])[1]
        assert row["images_per_second"] == pytest.approx(2000 / row["median_ms"])
        # At least the weights.
        assert row["peak_bytes"] > 4 * row["parameters"]
    found = by_key(rows)
    assert found["step", OURS]["parameters"] == found["step", PLAIN]["parameters"]


def test_a_step_is_charged_for_gradients_and_optimiser():
    found = by_key(model_suite(TINY, device=CPU, repeats=1))
    for provider in (OURS, PLAIN):
        forward, step = found["forward", provider], found["step", provider]
        # Gradients and AdamW's two moments.
        assert step["peak_bytes"] > forward["peak_bytes"] + 2 * 4 * step["parameters"]


def test_recompute_takes_less_memory():
    found = by_key(model_suite(MODERATE, device=CPU, repeats=1, recompute_too=True))
    recomputed = f"{OURS} (recompute)"
    assert found["step", recomputed]["peak_bytes"] < 0.8 * found["step", OURS]["peak_bytes"]
    # Without gradients there is nothing to compute again.
    assert ("forward", recomputed) not in found


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_provider():
    found = by_key(model_suite(TINY, device=CPU, repeats=1, compile_too=True))
    for name in ("forward", "step"):
        assert found[name, f"{OURS} (compiled)"]["parameters"] == found[name, OURS]["parameters"]


def test_environment():
    document = environment(CPU)
    assert set(document) == {"device", "versions", "commit", "dirty"}
    assert document["device"]["type"] == "cpu"
    assert document["versions"]["torch"] == torch.__version__


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
    file = checkout.commit("auxmae/suites.py", "a = 1\n")
    head = checkout.git("rev-parse", "HEAD")
    assert source_state(file) == (head, False)
    (checkout.folder / "notes.txt").write_text("no source\n")
    assert source_state(file) == (head, False)
    file.write_text("a = 2\n")
    assert source_state(file) == (head, True)


def test_a_new_source_file_anywhere_in_the_repository_makes_it_dirty(checkout):
    file = checkout.commit("auxmae/suites.py", "a = 1\n")
    (checkout.folder / "kernels").mkdir()
    (checkout.folder / "kernels" / "new.py").write_text("")
    assert source_state(file) == (checkout.git("rev-parse", "HEAD"), True)


def test_an_installed_copy_has_no_commit_of_the_repository_around_it(checkout, monkeypatch):
    checkout.commit("train.py", "import auxmae\n")
    file = checkout.folder / ".venv" / "auxmae" / "suites.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert source_state(file) == (None, None)
    checkout.commit(".gitignore", ".venv\n")
    assert source_state(file) == (None, None)
    monkeypatch.setattr(suites, "__file__", str(file))
    assert environment(CPU)["commit"] is None


def test_a_git_hook_of_another_repository_is_not_asked(checkout, tmp_path_factory, monkeypatch):
    other = Repository(tmp_path_factory.mktemp("other"))
    other.commit("suites.py", "b = 1\n")
    file = checkout.commit("suites.py", "a = 1\n")
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    found = source_state(file)
    monkeypatch.delenv("GIT_DIR")
    assert found == (checkout.git("rev-parse", "HEAD"), False)


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_state(Path(suites.__file__).resolve()) == (None, None)
