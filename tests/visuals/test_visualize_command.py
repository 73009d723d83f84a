"""`auxmae visualize` on a small untrained run: the picture, the document, the errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile
import torch
import typer
from typer.testing import CliRunner, Result

from auxmae.errors import DataError, UsageError
from auxmae.settings.schema import SettingsTree
from auxmae.training.session import train


def untrained(folder: Path, **masking: object) -> Path:
    from auxmae.build import build_data, build_model
    from auxmae.training.run import create_run

    settings = SettingsTree.model_validate(
        {
            "data": {"synthetic_images": 30},
            "model": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1},
            "run": {"device": "cpu"},
            "masking": masking,
        }
    )
    torch.manual_seed(0)
    data = build_data(settings)
    model = build_model(settings, data)
    run = create_run(str(folder), settings)
    model.save_pretrained(run.path / "checkpoints" / "last")
    return run.path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("runs") / "run")


def invoke(*arguments: str) -> Result:
    from auxmae.cli.visualize import command

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_the_picture_lies_in_the_run(run_folder: Path) -> None:
    for _ in range(2):  # the run's own picture may be drawn anew
        result = invoke(str(run_folder), "--channels", "B04, B08", "--images", "2", "--json")
        assert result.exit_code == 0, result.output
    path = run_folder / "figures" / "visualize.png"
    assert json.loads(result.stdout) == {
        "run": str(run_folder),
        "figures": [str(path)],
        "images": 2,
        "composite": "B04, B03, B02 as red, green, blue",
        "missing": [],
    }
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_picture_may_lie_in_the_home_folder(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert invoke(str(run_folder), "--output=~/figure.png", "--images", "1").exit_code == 0
    assert (tmp_path / "figure.png").is_file()
    assert isinstance(invoke(str(run_folder), "--output=~/figure.png").exception, UsageError)  # it exists


def test_the_seed_decides_the_masks(run_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        output = str(tmp_path / f"{name}.png")
        assert output in invoke(str(run_folder), "--output", output, "--seed", seed, "--images", "1").stdout
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_given_file_is_not_overwritten_unasked(run_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine.png"
    output.write_text("precious")
    result = invoke(str(run_folder), "--output", str(output))
    assert isinstance(result.exception, UsageError)
    assert output.read_text() == "precious"
    assert invoke(str(run_folder), "--output", str(output), "--overwrite").exit_code == 0
    assert output.read_bytes().startswith(b"\x89PNG")


def test_missing_channels_are_refused_and_left_out_on_purpose(run_folder: Path, tmp_path: Path) -> None:
    names = [f"B0{number}" for number in (5, 4, 3, 2)]
    pixels = np.random.default_rng(0).integers(0, 4000, (4, 16, 16), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "image.ome.tif", pixels, metadata={"axes": "CYX", "Channel": {"Name": names}})
    arguments = (str(run_folder), "--data", str(tmp_path / "image.ome.tif"), "--output", str(tmp_path / "a.png"), "--json")
    refused = invoke(*arguments)
    assert isinstance(refused.exception, DataError)
    assert "--allow-missing" in str(refused.exception)
    result = invoke(*arguments, "--allow-missing", "--channels", "B05")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["composite"] == "B04, B03, B02 as red, green, blue"
    assert "B08" in document["missing"]
    assert not set(names) & set(document["missing"])
    absent = invoke(*arguments, "--allow-missing", "--overwrite", "--channels", "B08")
    assert "there is no channel 'B08'" in str(absent.exception)


@pytest.mark.parametrize("masking", [{"strategy": "channel"}, {"strategy": "mixed", "mixture": {"channel": 1.0}}])
def test_one_channel_of_a_run_that_hides_whole_ones_is_told(tmp_path: Path, masking: dict[str, object]) -> None:
    run = untrained(tmp_path / "run", **masking)
    pixels = np.random.default_rng(0).integers(0, 4000, (2, 16, 16), dtype=np.uint16)

    def draw(*names: str) -> Result:
        image = tmp_path / f"{len(names)}.ome.tif"
        tifffile.imwrite(image, pixels[: len(names)], metadata={"axes": "CYX", "Channel": {"Name": list(names)}})
        return invoke(str(run), "--data", str(image), "--output", str(tmp_path / f"{len(names)}.png"), "--allow-missing")

    error = draw("B04").exception
    assert isinstance(error, DataError)
    assert "hide whole channels" in error.message
    assert error.message.endswith("one alone is here: B04")
    assert error.hint is not None
    assert error.hint.startswith("give images with more of the model's channels: ")
    assert draw("B04", "B08").exit_code == 0


def test_a_seed_beyond_64_bits_is_refused_and_the_largest_works(run_folder: Path, tmp_path: Path) -> None:
    assert invoke(str(run_folder), "--seed", str(2**63)).exit_code == 2
    result = invoke(str(run_folder), "--seed", str(2**63 - 1), "--output", str(tmp_path / "a.png"), "--images", "1")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--channels", "B8"), "did you mean"), (("--output", "a.jpg"), ".png"), (("--device", "cuda:99"), "the device is to be")],
)
def test_what_cannot_work_is_told(run_folder: Path, arguments: tuple[str, ...], words: str) -> None:
    error = invoke(str(run_folder), *arguments).exception
    assert isinstance(error, UsageError)
    assert words in str(error)


def run_on_scene(folder: Path, height: int, width: int) -> str:
    """A training on scene.mat of 30 channels, whose label map is truth.mat."""
    rng = np.random.default_rng(0)
    scipy.io.savemat(folder / "scene.mat", {"cube": rng.uniform(size=(height, width, 30))})
    scipy.io.savemat(folder / "truth.mat", {"gt": rng.integers(0, 4, (height, width)).astype(np.uint8)})
    data = {"source": str(folder / "scene.mat"), "labels": str(folder / "truth.mat")}
    model = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "channel_groups": "auto"}
    tables = {"data": data, "model": model, "train": {"max_steps": 1}, "run": {"folder": str(folder / "run"), "device": "cpu"}}
    return str(train(SettingsTree.model_validate(tables)).run)


def test_a_scene_that_its_labels_make_readable(tmp_path: Path) -> None:
    """The label map tells which axis holds the channels, and had a part in what is held out."""
    result = invoke(run_on_scene(tmp_path, 24, 24))
    assert result.exit_code == 0, result.output


def test_labels_that_are_set_for_other_images_tell_how_to_read_them(tmp_path: Path) -> None:
    # Two axes are as long as there are channels.
    run = run_on_scene(tmp_path, 30, 24)
    other = shutil.copy(tmp_path / "scene.mat", tmp_path / "other.mat")
    arguments = (run, "--data", str(other), "--images", "1")
    assert isinstance(invoke(*arguments).exception, DataError)
    result = invoke(*arguments, "--set", f"data.labels={tmp_path / 'truth.mat'}")
    assert result.exit_code == 0, result.output


def test_images_are_counted_by_the_option_alone(run_folder: Path) -> None:
    error = invoke(str(run_folder), "--set", "train.batch_size=2").exception
    assert isinstance(error, UsageError)
    assert "--images" in str(error)


def test_the_runs_own_images_are_the_held_out_ones_however_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()

    def add(*numbers: int) -> None:
        for number in numbers:
            np.save(data / f"{number}.npy", np.random.default_rng(number).uniform(size=(3, 16, 16)))

    add(*range(20))
    tables = {
        "data": {"source": str(data), "nodata": 7},
        "model": {"patch_size": 8, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1},
        "train": {"max_steps": 1},
        "run": {"folder": str(tmp_path / "run"), "device": "cpu"},
    }
    run = train(SettingsTree.model_validate(tables)).run
    monkeypatch.chdir(tmp_path)

    def draw(*arguments: str) -> tuple[str, bytes]:
        result = invoke(str(run), "--output", "a.png", "--overwrite", "--json", *arguments)
        assert result.exit_code == 0, result.output
        return " ".join(result.stderr.split()), (tmp_path / "a.png").read_bytes()

    changed, notice = "Files, labels or the split are others than in training", "the run's data.nodata is not taken over"
    said, picture = draw()
    assert changed not in said
    assert draw("--data", "data") == (said, picture)
    other, others = draw("--data", str(shutil.copytree(data, tmp_path / "other")))
    assert changed not in other
    assert notice in other
    assert notice not in said
    assert others != picture
    add(20)
    assert changed in draw()[0]
