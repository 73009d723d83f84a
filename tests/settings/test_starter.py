"""Settings as TOML: the starter file and a run's settings."""

from __future__ import annotations

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from auxmae.errors import AuxMAEError, SettingsError
from auxmae.settings import (
    PRESETS,
    SettingsTree,
    load_settings,
    preset_settings,
    settings_from_toml,
    starter_text,
    write_settings,
)
from auxmae.settings.starter import _value


def test_the_repository_ships_the_starter(repository):
    assert (repository / "auxmae.toml").read_text(encoding="utf-8") == starter_text("tiny")


@pytest.mark.parametrize("preset", PRESETS)
def test_starters_are_the_preset_with_every_key_explained(tmp_path, preset):
    path = tmp_path / "auxmae.toml"
    path.write_text(starter_text(preset), encoding="utf-8")
    assert settings_from_toml(path) == preset_settings(preset)
    lines = path.read_text(encoding="utf-8").splitlines()
    for name, table in SettingsTree():
        for key in type(table).model_fields:
            where = next(i for i, line in enumerate(lines) if line.lstrip("#").startswith(f"{key} = "))
            assert lines[where - 1].startswith("# "), (name, key)


def test_starters_leave_the_preset_free(tmp_path):
    (tmp_path / "auxmae.toml").write_text(starter_text("tiny"), encoding="utf-8")
    loaded = load_settings(cwd=tmp_path, environ={}, overrides=["model.preset=reference"])
    assert loaded.settings == preset_settings("reference")


def test_settings_commented_out_are_right_when_uncommented(tmp_path):
    path = tmp_path / "a.toml"
    text = starter_text("large")
    path.write_text("\n".join(line[1:] if line[:1] == "#" and line[1:2] != " " else line for line in text.split("\n")))
    assert len(tomli.loads(path.read_text())["model"]) == len(SettingsTree().model.__class__.model_fields)
    assert settings_from_toml(path) == preset_settings("large")


def test_written_settings_read_back_equal(tmp_path, monkeypatch):
    settings = SettingsTree.model_validate(
        {
            "data": {
                "source": 'C:\\x "y" \n é # ]',
                "channels": ["a b", "ü"],
                "wavelengths": [443.0, 1e-3],
                "nodata": -3.4028234663852886e38,
                "exclude": ["*_mask.tif"],
                "size": [3, 4],
            },
            "model": {"preset": "reference", "channel_groups": [["a b"], ["ü"]], "width": 12},
            "masking": {"strategy": "mixed", "mixture": {"block": 1 / 3}},
            "train": {"learning_rate": 1e-7, "min_learning_rate": 1e-20, "max_minutes": 1e5},
        }
    )
    path = write_settings(settings, tmp_path / "settings.toml")
    monkeypatch.setenv("AUXMAE_TRAIN__EPOCHS", "1")
    assert settings_from_toml(path) == settings
    assert [file.name for file in tmp_path.iterdir()] == ["settings.toml"]


@given(
    st.recursive(
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
        max_leaves=8,
    )
)
def test_whatever_is_written_reads_back(value):
    back = tomli.loads(f"key = {_value(value)}\n")["key"]
    assert back == value
    assert repr(back) == repr(value)


def test_faults_of_writing(tmp_path):
    with pytest.raises(AuxMAEError, match="cannot be written"):
        write_settings(SettingsTree(), tmp_path / "missing" / "settings.toml")
    with pytest.raises(SettingsError, match="did you mean 'small'"):
        starter_text("smal")
