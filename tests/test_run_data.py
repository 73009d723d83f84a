"""What a run says of its own files, and what of it holds for others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from auxmae.build import open_data
from auxmae.errors import DataError, SettingsError, UsageError
from auxmae.model.mae import AuxMAE
from auxmae.places import absolute_place
from auxmae.run_data import describe_reading, left_behind, open_run_collection, settings_on_data
from auxmae.settings.schema import DataSettings, SettingsTree
from auxmae.training.run import RunFolder, create_run

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


@pytest.mark.parametrize("name", ["source", "labels"])
def test_an_empty_name_is_not_the_working_directory(run: RunFolder, name: str) -> None:
    with pytest.raises(SettingsError, match="'' is wrong, expected non-empty text"):
        settings_on_data(run, **{name: ""})  # type: ignore[arg-type]


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


def test_a_default_that_is_set_anew_is_not_asked_for(run: RunFolder) -> None:
    defaults = ["data.split=auto", "data.ignored_labels=auto", " data.key = auto"]
    assert left_behind(run, settings_on_data(run, overrides=defaults), defaults) == []
    assert left_behind(run, settings_on_data(run, labels=":other", overrides=defaults), defaults) == []
    (told,) = left_behind(run, settings_on_data(run, source="other", overrides=defaults), defaults)
    assert told.startswith("the run's data.layout, data.axes, data.size, data.group_pattern, data.nodata, data.ex")


def test_values_to_ignore_go_with_their_labels(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = settings_on_data(run, labels=":other").data
    assert (other.labels, other.ignored_labels, other.key) == (":other", "auto", "Y")
    assert settings_on_data(run, labels=":other", overrides=["data.ignored_labels=[3]"]).data.ignored_labels == (3,)
    # The same data under another spelling are no other data.
    monkeypatch.chdir(tmp_path)
    same = settings_on_data(run, source="own.mat", labels=":gt").data
    assert {name: getattr(same, name) for name in READING} == READING


def test_places_are_said_without_dots_but_where_a_link_turns_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path / "a")
    assert absolute_place("../a/./b/../x*.tif", "source") == str(tmp_path / "a" / "x*.tif")
    assert absolute_place("../link/x.mat:gt", "labels") == str(tmp_path / "link" / "x.mat:gt")
    assert absolute_place("../link/../x.tif", "source") == str(tmp_path / "link" / ".." / "x.tif")
    assert absolute_place("/../x.tif", "source") == "/x.tif"
    assert absolute_place(":gt", "labels") == ":gt"


def test_a_word_of_one_setting_is_a_folder_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source, labels in (("synthetic", "auto"), ("synthetic", "none")):
        assert (absolute_place(source, "source"), absolute_place(labels, "labels")) == (source, labels)
    for name in ("auto", "none", ":gt"):
        assert absolute_place(name, "source") == str(tmp_path / name)
    assert absolute_place("synthetic", "labels") == str(tmp_path / "synthetic")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan"])
def test_nodata_that_is_nan_says_that_all_numbers_are_data(tmp_path: Path, value: object) -> None:
    path = tmp_path / "image.tif"
    pixels = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    pixels[0, 2, 3] = np.nan
    with rasterio.open(path, "w", driver="GTiff", height=3, width=4, count=1, dtype="float32", nodata=0) as target:
        target.write(pixels)
    settings = SettingsTree.model_validate({"data": {"source": str(path), "nodata": value}})
    valid = open_data(settings.data, seed=0).read(0).valid
    assert (valid == np.isfinite(pixels)).all()
    # Written and read again, and said in JSON, the same data are the same.
    run = create_run(str(tmp_path / "run"), settings)
    said = describe_reading(settings_on_data(run).data)
    assert json.loads(json.dumps(said, allow_nan=False)) == said == describe_reading(settings.data)


@pytest.mark.parametrize("name", ["model.width", "masking.ratio", "loss.kind", "scaling.method", "train.learning_rate"])
def test_a_setting_that_the_trained_model_fixes_is_refused(run: RunFolder, name: str) -> None:
    with pytest.raises(UsageError, match=f"--set {name}: the run's model is trained"):
        settings_on_data(run, overrides=["data.nodata=0", f"{name}=1"])


def test_settings_that_measuring_reads_are_taken(run: RunFolder) -> None:
    given = ["train.seed=7", "train.batch_size=3", "data.test_fraction=0.2", "eval.neighbours=4", "run.threads=1"]
    found = settings_on_data(run, overrides=given)
    assert (found.train.seed, found.train.batch_size, found.data.test_fraction) == (7, 3, 0.2)
    assert (found.eval.neighbours, found.run.threads) == (4, 1)


def test_set_stands_over_the_options_as_in_training(run: RunFolder) -> None:
    given = ["data.source=b", "data.labels=:b", "train.batch_size=3"]
    found = settings_on_data(run, source="a", labels=":a", batch_size=2, overrides=given)
    assert (found.data.source, found.data.labels, found.train.batch_size) == ("b", ":b", 3)
    # What one of them leaves to the other is the other's.
    found = settings_on_data(run, source="a", labels=":a", batch_size=2, overrides=given[1:2])
    assert (found.data.source, found.data.labels, found.train.batch_size) == ("a", ":b", 2)


def write_bands(path: Path, names: tuple[str, ...] | int) -> str:
    """A scene of so many bands without names, or of bands of these names; each band holds its number."""
    count = names if isinstance(names, int) else len(names)
    with rasterio.open(path, "w", driver="GTiff", height=8, width=8, count=count, dtype="uint8") as target:
        target.write(np.arange(count, dtype=np.uint8)[:, None, None] + np.arange(64, dtype=np.uint8).reshape(8, 8))
        if not isinstance(names, int):
            target.descriptions = names
    return str(path)


def small_model(names: tuple[str, ...]) -> AuxMAE:
    return AuxMAE(names, image_size=8, patch_size=4, width=8, depth=1, heads=1, decoder_depth=1)


@pytest.mark.parametrize("allow_missing", [False, True])
@pytest.mark.parametrize("count", [10, 11, 13])
def test_channels_that_are_told_by_number_alone_are_those_of_as_many(tmp_path: Path, count: int, allow_missing: bool) -> None:
    model = small_model(tuple(f"C{number:02}" for number in range(1, 13)))
    own = {"data": {"source": write_bands(tmp_path / "own.tif", 12)}}
    run = create_run(str(tmp_path / "run"), SettingsTree.model_validate(own))
    other = write_bands(tmp_path / "other.tif", count)
    with pytest.raises(DataError) as caught:
        open_run_collection(run, model, settings_on_data(run, source=other), allow_missing=allow_missing)
    assert f"other.tif has {count} channels without names, and the model was trained on 12" in caught.value.message
    assert "--set data.channels=[" in caught.value.hint
    assert "--allow-missing" not in caught.value.hint
    # As many are the same ones, and who says which they are is believed.
    for source in (None, write_bands(tmp_path / "same.tif", 12)):
        settings = settings_on_data(run, source=source)
        assert open_run_collection(run, model, settings, allow_missing=allow_missing)[1].channel_names == model.channel_names
    said = ["data.channels=['C02', 'C01']"]
    settings = settings_on_data(run, source=other, overrides=said)
    collection, missing = open_run_collection(run, model, settings, overrides=said, allow_missing=True)[1:]
    assert (collection.channel_names, missing) == (("C02", "C01"), model.channel_names[2:])
    # Names that files carry are found among any number of others.
    named = write_bands(tmp_path / "named.tif", ("x", *model.channel_names[::-1], "y"))
    settings = settings_on_data(run, source=named)
    collection = open_run_collection(run, model, settings, allow_missing=allow_missing)[1]
    assert collection.channel_names == model.channel_names
    assert collection.read(0).pixels[:, 0, 0].tolist() == list(range(12, 0, -1))


@pytest.mark.parametrize("allow_missing", [False, True])
@pytest.mark.parametrize("names", [6, ("b1", "b2", "b3", "b4", "b5", "b6")])
def test_a_model_of_some_named_channels_finds_them_where_all_are_given_names(
    tmp_path: Path, allow_missing: bool, names: tuple[str, ...] | int
) -> None:
    every = tuple(f"B0{number}" for number in range(1, 7))
    model = small_model(("B04", "B02"))
    data = {
        "source": write_bands(tmp_path / "own.tif", names),
        "channel_names": every,
        "channels": model.channel_names,
        "wavelengths": [443.0, 490.0, 560.0, 665.0, 705.0, 740.0],
    }
    run = create_run(str(tmp_path / "run"), SettingsTree.model_validate({"data": data}))
    other = write_bands(tmp_path / "other.tif", names)
    said = [f"data.channel_names={list(every)}"]
    for source, overrides in ((None, []), (other, said)):
        settings = settings_on_data(run, source=source, overrides=overrides)
        collection, missing = open_run_collection(run, model, settings, overrides=overrides, allow_missing=allow_missing)[1:]
        assert (collection.channel_names, missing) == (model.channel_names, ())
        assert collection.read(0).pixels[:, 0, 0].tolist() == [3, 1]
    # The names of the run's own files are not those of others.
    with pytest.raises(DataError) as caught:
        open_run_collection(run, model, settings_on_data(run, source=other), allow_missing=allow_missing)
    assert "data.channel_names" in str(caught.value.hint) + str(caught.value.message) or names != 6
    some = write_bands(tmp_path / "some.tif", 3)
    said = ["data.channel_names=['x', 'B02', 'y']"]
    settings = settings_on_data(run, source=some, overrides=said)
    collection, missing = open_run_collection(run, model, settings, overrides=said, allow_missing=True)[1:]
    assert (collection.channel_names, missing) == (("B02",), ("B04",))


def test_a_run_of_listed_groups_does_without_one_that_is_named_as_not_there(tmp_path: Path) -> None:
    groups = [["red"], ["green", "blue"]]
    model = AuxMAE(("red", "green", "blue"), image_size=8, patch_size=4, width=8, depth=1, heads=1, channel_groups=groups)
    own = {"source": write_bands(tmp_path / "own.tif", model.channel_names), "channels": model.channel_names}
    tree = {"data": own, "model": {"channel_groups": groups}}
    run = create_run(str(tmp_path / "run"), SettingsTree.model_validate(tree))
    said = ["data.channels=['red']"]
    settings = settings_on_data(run, source=write_bands(tmp_path / "other.tif", 1), overrides=said)
    collection, missing = open_run_collection(run, model, settings, overrides=said, allow_missing=True)[1:]
    assert (collection.channel_names, missing) == (("red",), ("green", "blue"))


@pytest.mark.parametrize("allow_missing", [False, True])
def test_a_run_on_the_first_of_its_channels_without_names_opens_its_own_data(tmp_path: Path, allow_missing: bool) -> None:
    model = small_model(("C1", "C2", "C3"))
    own = {"data": {"source": write_bands(tmp_path / "own.tif", 8), "channels": model.channel_names}}
    run = create_run(str(tmp_path / "run"), SettingsTree.model_validate(own))
    collection = open_run_collection(run, model, settings_on_data(run), allow_missing=allow_missing)[1]
    assert collection.channel_names == model.channel_names


def test_the_environment_says_how_to_measure_and_not_what_a_run_is(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"EVAL__NEIGHBOURS": "20", "RUN__THREADS": "1", "KERNELS__BACKEND": "torch"}
    others = {"MODEL__WIDTH": "8", "MODEL__PRESET": "large", "DATA__TEST_FRACTION": "0.2", "TRAIN__SEED": "7"}
    for name, value in {**given, **others}.items():
        monkeypatch.setenv(f"AUXMAE_{name}", value)
    found = settings_on_data(run)
    assert (found.eval.neighbours, found.run.threads, found.kernels.backend) == (20, 1, "torch")
    for table in ("data", "scaling", "model", "masking", "loss", "train"):
        assert getattr(found, table) == getattr(run.settings, table)
    assert settings_on_data(run, overrides=["eval.neighbours=4"]).eval.neighbours == 4
    monkeypatch.setenv("AUXMAE_RUN__DEVICE", "cuda")
    assert settings_on_data(run, device="cpu").run.device == "cpu"

    own = {"data": {"source": write_bands(tmp_path / "own.tif", 3)}}
    other = create_run(str(tmp_path / "other"), SettingsTree.model_validate(own))
    notices = open_run_collection(other, small_model(("C1", "C2", "C3")), settings_on_data(other))[1].notices
    (told,) = [notice for notice in notices if "AUXMAE_" in notice]
    assert told.startswith("AUXMAE_DATA__TEST_FRACTION, AUXMAE_MODEL__PRESET, AUXMAE_MODEL__WIDTH, AUXMAE_TRAIN__SEED: not read")


def test_kernels_that_the_environment_chooses_in_place_of_the_settings_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"data": {"source": write_bands(tmp_path / "own.tif", 3)}}
    run = create_run(str(tmp_path / "run"), SettingsTree.model_validate(own))
    model, told = small_model(("C1", "C2", "C3")), "AUXMAE_KERNELS=torch stands over kernels.backend = 'triton'"
    for variable, backend in (("torch", "triton"), ("torch", "torch"), ("torch", "auto"), ("", "triton")):
        monkeypatch.setenv("AUXMAE_KERNELS", variable)
        settings = settings_on_data(run, overrides=[f"kernels.backend={backend}"])
        assert (told in open_run_collection(run, model, settings)[1].notices) == (variable == "torch" and backend == "triton")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AUXMAE_EVAL__NEIGHBORS", "3", "AUXMAE_EVAL__NEIGHBORS: unknown variable.*'AUXMAE_EVAL__NEIGHBOURS'"),
        ("AUXMAE_TRAIN__EPOCH", "3", "AUXMAE_TRAIN__EPOCH: unknown variable"),
        ("AUXMAE_EVAL__NEIGHBOURS", "0", "AUXMAE_EVAL__NEIGHBOURS: eval.neighbours: 0 is wrong"),
    ],
)
def test_a_fault_in_the_environment_is_told_as_in_training(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=words):
        settings_on_data(run)
