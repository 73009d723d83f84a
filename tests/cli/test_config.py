"""`auxmae config` and `auxmae init`."""

from __future__ import annotations

import json

import jsonschema
import pytest
import tomli
import typer
from typer.testing import CliRunner

from auxmae.cli import config, init
from auxmae.errors import AuxMAEError
from auxmae.settings import PRESETS, preset_settings, settings_from_toml

runner = CliRunner()
app = typer.Typer()
app.add_typer(config.app, name="config")
app.command("init")(init.command)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_show_prints_values_and_origins(tmp_path):
    (tmp_path / "auxmae.toml").write_text('[data]\nsource = "[red]x"\n')
    output = run("config", "show", "--set", "train.epochs=3")
    rows = [line.split() for line in output.splitlines()]
    assert any(row[:1] == ["│"] and "train.epochs" in row and "3" in row and "--set" in row for row in rows)
    assert any("data.source" in row and "'[red]x'" in row and "auxmae.toml:2" in row for row in rows)
    assert any("model.width" in row and "96" in row and "'tiny'" in row for row in rows)
    assert str(tmp_path / "auxmae.toml") in output.replace("\n", "")


def test_show_as_json(monkeypatch):
    monkeypatch.setenv("AUXMAE_DATA__NODATA", "nan")
    document = json.loads(run("config", "show", "--json", "--set", "loss.kind=mse"))
    assert document["file"] is None
    assert document["settings"]["loss"] == {"kind": "mse", "normalize": False}
    assert document["settings"]["data"]["nodata"] == "nan"
    assert document["origins"]["loss.kind"] == "--set"
    assert document["origins"]["data.nodata"] == "AUXMAE_DATA__NODATA"


def test_show_raises_what_the_application_prints():
    with pytest.raises(AuxMAEError, match=r"--set: train\.epoch: unknown setting"):
        runner.invoke(app, ["config", "show", "--set", "train.epoch=1"], catch_exceptions=False)


def test_validate(tmp_path):
    assert "no auxmae.toml here" in run("config", "validate")
    run("init")
    assert run("config", "validate") == "auxmae.toml: valid\n"
    (tmp_path / "b.toml").write_text("[train]\nepochs = 1\n")
    assert run("config", "validate", "b.toml") == run("config", "validate", "-c", "b.toml") == "b.toml: valid\n"


def test_validate_tells_every_fault_one_a_line(tmp_path, monkeypatch):
    (tmp_path / "auxmae.toml").write_text('[train]\nepochs = 0\n[loss]\nkind = "l3"\n')
    monkeypatch.setenv("AUXMAE_TRAIN__EPOCHS", "5")  # hides the file's fault from a run, not from validate
    monkeypatch.setenv("AUXMAE_X", "5")
    result = runner.invoke(app, ["config", "validate"])
    assert result.exit_code == 2
    assert result.stdout == ""
    starts = [line.split(": ")[:3] for line in result.stderr.splitlines()]
    assert starts == [
        ["error", "auxmae.toml:2", "train.epochs"],
        ["error", "auxmae.toml:4", "loss.kind"],
        ["error", "AUXMAE_X", "unknown variable, expected AUXMAE_TABLE__KEY"],
    ]


@pytest.mark.parametrize("text", ["[train", None])
def test_validate_a_file_that_cannot_be_read(tmp_path, text):
    if text is not None:
        (tmp_path / "x.toml").write_text(text)
    with pytest.raises(AuxMAEError, match=r"x\.toml"):
        runner.invoke(app, ["config", "validate", "x.toml"], catch_exceptions=False)


def test_schema_accepts_the_starters_and_refuses_faults():
    schema = json.loads(run("config", "schema"))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for preset in PRESETS:
        run("init", "--preset", preset, "--force")
        with open("auxmae.toml", "rb") as file:
            validator.validate(tomli.load(file))
    for wrong in ({"train": {"epoch": 1}}, {"train": {"epochs": 0}}, {"loss": {"kind": "l3"}}, {"train": 3}, {"x": {}}):
        assert not validator.is_valid(wrong), wrong


def test_init_writes_a_preset_and_replaces_nothing_unasked(tmp_path):
    assert "base" in run("init", "--preset", "base")
    path = tmp_path / "auxmae.toml"
    assert settings_from_toml(path) == preset_settings("base")
    before = path.read_text()
    with pytest.raises(AuxMAEError, match=r"exists already.*--force") as caught:
        runner.invoke(app, ["init"], catch_exceptions=False)
    assert caught.value.exit_code == 2
    assert path.read_text() == before
    run("init", "--force")
    assert settings_from_toml(path) == preset_settings("tiny")


def test_init_elsewhere_and_with_faults(tmp_path):
    (tmp_path / "sub").mkdir()
    run("init", "--output", "sub")
    run("init", "-o", "other.toml")
    assert (tmp_path / "sub" / "auxmae.toml").read_text() == (tmp_path / "other.toml").read_text()
    with pytest.raises(AuxMAEError, match="cannot be written"):
        runner.invoke(app, ["init", "-o", "missing/a.toml"], catch_exceptions=False)
    with pytest.raises(AuxMAEError, match="did you mean 'reference'"):
        runner.invoke(app, ["init", "--preset", "referense", "-o", "b.toml"], catch_exceptions=False)
