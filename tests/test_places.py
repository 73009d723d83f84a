"""What ~ and $NAME stand for wherever a file or folder is named, on the command line and in settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from auxmae.cli.app import app
from auxmae.data.opening import open_collection
from auxmae.errors import UsageError
from auxmae.places import expanded
from auxmae.run_data import settings_on_data
from auxmae.settings import load_settings
from auxmae.settings.schema import SettingsTree
from auxmae.training.run import create_run, open_run

# As an editor's backup is called: no user's name.
NOBODY = "~nobody of this name"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; the working directory is another one."""
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_only_a_users_name_stands_for_a_folder(home: Path) -> None:
    assert expanded("~") == home
    assert expanded("~/a/*.tif") == home / "a" / "*.tif"
    assert expanded("~root/a") == Path(os.path.expanduser("~root"), "a")
    for name in (NOBODY, f"{NOBODY}/a", "a~", "a/~", "a/~/b"):
        assert expanded(name) == Path(name)


def test_a_variable_of_the_environment_stands_for_its_value(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_OF_TESTS", str(home / "scratch"))
    monkeypatch.delenv("NO_VARIABLE", raising=False)
    assert expanded("$SCRATCH_OF_TESTS/a") == expanded("${SCRATCH_OF_TESTS}/a") == home / "scratch" / "a"
    for name in ("a$", "$NO_VARIABLE/a", "cost_$5.tif", "${NO_VARIABLE}"):
        assert expanded(name) == Path(name)
    assert create_run("$SCRATCH_OF_TESTS/run", SettingsTree()).path == home / "scratch" / "run"
    with pytest.raises(UsageError, match="NO_VARIABLE, which is not set") as told:
        create_run("$NO_VARIABLE/run", SettingsTree())
    assert "--output" in told.value.hint
    assert not list(Path().iterdir())


def test_files_whose_names_begin_with_a_tilde_are_found(home: Path) -> None:
    Path(NOBODY).mkdir()
    for name in "abcd":
        np.save(Path(NOBODY, f"{name}.npy"), np.zeros((3, 16, 16), np.float32))
    table = Path(f"{NOBODY}.csv")
    table.write_text("image,label\na,x\nb,y\nc,x\nd,y\n")
    for source in (NOBODY, f"{NOBODY}/*.npy"):
        for labels in (str(table), f"{table}:label"):
            assert open_collection(source, labels=labels).class_names == ("x", "y")
    Path(f"{NOBODY}.toml").write_text("[train]\nepochs = 3\n")
    assert load_settings(Path(f"{NOBODY}.toml")).settings.train.epochs == 3
    made = create_run(f"{NOBODY}.run", SettingsTree())
    assert open_run(f"{NOBODY}.run").path.samefile(made.path)
    assert made.path.absolute().parent == Path.cwd()


@pytest.mark.parametrize("named", ["~/own.npy", "full"])
def test_a_runs_own_images_may_be_named_short(home: Path, named: str) -> None:
    (home / "own.npy").touch()
    full = str(home / "own.npy")
    run = create_run(str(home / "run"), SettingsTree.model_validate({"data": {"source": full, "labels": ":gt", "key": "Y"}}))
    found = settings_on_data(run, source=full if named == "full" else named).data
    assert (found.labels, found.key) == (":gt", "Y")


def test_outputs_may_lie_in_the_home_folder(home: Path) -> None:
    def run(*arguments: str) -> None:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.exception or done.output

    run("init", "--output=~/own.toml")
    run("config", "validate", "~/own.toml")
    sizes = {"suite": "model", "case": "quick", "provider": "a", "pass": "step", "backend": "torch", "status": "ok", "reason": ""}
    row = {**sizes, "samples_ms": [1.0], "median_ms": 1.0, "peak_bytes": 1, "images_per_second": 1.0}
    (home / "document.json").write_text(json.dumps({"device": {"type": "cpu", "name": "a processor"}, "rows": [row]}))
    run("benchmark", "--from=~/document.json", "--figures=~/figures")
    run("benchmark", "--compare", "~/document.json", "~/document.json")
    assert (home / "figures" / "benchmark.html").is_file()
    assert not [*Path().iterdir()]
