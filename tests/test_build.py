"""Settings become the model that they describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from auxmae.build import left_behind, model_arguments, settings_on_data
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import DataSettings, ModelSettings, SettingsTree
from auxmae.training.run import RunFolder, create_run


@pytest.mark.parametrize(
    ("channels", "sizes"),
    [(1, [1]), (5, [1] * 5), (8, [1] * 8), (13, [2] * 6 + [1]), (64, [8] * 8), (198, [25] * 7 + [23])],
)
def test_automatic_groups_hold_all_channels_in_eight_at_most(channels: int, sizes: list[int]) -> None:
    settings = ModelSettings(channel_groups="auto", width=8, heads=2, depth=1, decoder_depth=1)
    names = [f"band {number}" for number in range(channels)]
    model = AuxMAE(names, image_size=8, **model_arguments(settings, channels))
    assert [len(group) for group in model.groups] == sizes
    assert [name for group in model.groups for name in group] == names
    # A checkpoint holds what was chosen, so that it means the same wherever it is opened.
    assert model.config["channel_groups"] == sizes[0]


def test_given_groups_stay_as_they_are() -> None:
    listed = (("a", "c"), ("b",))
    assert model_arguments(ModelSettings(channel_groups=listed), 3)["channel_groups"] == listed
    assert model_arguments(ModelSettings(channel_groups=2), 3)["channel_groups"] == 2


READING = {
    "layout": "scenes",
    "split": "group",
    "group_pattern": "(.*)",
    "key": "Y",
    "axes": "HWC",
    "size": (4, 5),
    "nodata": 7.0,
    "exclude": ("*_mask.tif",),
    "allow_broken": True,
    "ignored_labels": (2,),
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "own.mat").touch()
    data = {"source": str(tmp_path / "own.mat"), "labels": ":gt", "wavelengths": (1.0, 2.0), "test_fraction": 0.3, **READING}
    return create_run(str(tmp_path / "run"), SettingsTree.model_validate({"data": data}))


def test_how_the_runs_own_files_are_read_is_not_said_of_other_files(run: RunFolder, tmp_path: Path) -> None:
    kept = settings_on_data(run).data
    assert {name: getattr(kept, name) for name in READING} == READING
    default = DataSettings()
    for arguments in ({"source": "other"}, {"overrides": ["data.source=other"]}):
        other = settings_on_data(run, **arguments).data
        assert (other.source, other.labels) == ("other", "auto")
        assert all(getattr(other, name) == getattr(default, name) for name in READING)
        # The model's channels and the way of holding out are not about the files.
        assert (other.wavelengths, other.test_fraction) == ((1.0, 2.0), 0.3)
    again = ["data.key=X", "data.ignored_labels=[5]", "data.labels=:other"]
    named = settings_on_data(run, source="other", overrides=again).data
    assert (named.key, named.ignored_labels, named.labels, named.axes) == ("X", (5,), ":other", "auto")
    assert left_behind(run, settings_on_data(run)) == []
    (told,) = left_behind(run, settings_on_data(run, source="other", overrides=again))
    assert told.startswith("the run's data.layout, data.axes, data.size, data.split, data.group_pattern, data.nodata, data.")
    (told,) = left_behind(run, settings_on_data(run, labels=":other"))
    assert told.startswith("the run's data.ignored_labels is not taken over")


def test_values_to_ignore_go_with_their_labels(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = settings_on_data(run, labels=":other").data
    assert (other.labels, other.ignored_labels, other.key) == (":other", "auto", "Y")
    assert settings_on_data(run, labels=":other", overrides=["data.ignored_labels=[3]"]).data.ignored_labels == (3,)
    # The same data under another spelling are no other data.
    monkeypatch.chdir(tmp_path)
    same = settings_on_data(run, source="own.mat", labels=":gt").data
    assert {name: getattr(same, name) for name in READING} == READING
