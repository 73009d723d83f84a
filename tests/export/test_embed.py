"""`auxmae embed`: its document, missing channels, what it refuses to write over, and what it warns of."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch

from auxmae.build import build_data, open_data
from auxmae.data.opening import open_collection
from auxmae.errors import DataError, SettingsError, UsageError
from auxmae.export.embed import embed
from auxmae.run_channels import find_channels, fitting
from auxmae.settings.schema import SettingsTree
from auxmae.training.run import open_run
from tests.export.small_export import NAMES, invoke, make_model, rows_of, write_tiles


def test_the_command_and_its_document(run, tmp_path):
    result = invoke(run, "--output", tmp_path / "out.npy", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["rows"], document["features"], document["missing"]) == (7, 96, [])  # moments of 3 channels × 16
    # There is no best one.
    assert f"{run}, last checkpoint, on cpu" in result.stderr
    shutil.copytree(run / "checkpoints" / "last", run / "checkpoints" / "best")
    held = invoke(run, "--output", tmp_path / "held.npy", "--part", "test", "--pool", "concat", "--json")
    assert json.loads(held.stdout)["features"] == 48
    assert f"{run}, best checkpoint, on cpu" in held.stderr
    held_rows = rows_of(tmp_path / "held.npy")
    assert 0 < len(held_rows) < 7
    assert {row["path"] for row in held_rows} < {row["path"] for row in rows_of(tmp_path / "out.npy")}
    assert isinstance(invoke(run, "--output", tmp_path / "out.npy").exception, UsageError)
    assert isinstance(invoke(run, "--output", tmp_path / "out.tif").exception, UsageError)
    places = invoke(run, "--output", tmp_path / "d.npy", "--dense", "--pool", "cls", "--json")
    assert json.loads(places.stdout)["features"] == 32  # a place's, and the image's CLS tokens behind them


def test_a_part_that_is_held_out_otherwise_than_in_training_is_told(run, tmp_path):
    folder = open_run(run)
    data = build_data(folder.settings)
    folder.note_data(data.describe(), data.digest, data.files_digest, data.sample_pixels())
    words = "Files, labels or the split are others than in training (7 images, 3 channels"

    def told(*arguments):
        result = invoke(run, "--output", tmp_path / "out.npy", "--overwrite", "--json", *arguments)
        assert result.exit_code == 0, result.output
        held_out = "some of what is held out here may have been trained on" in result.stderr
        # Of the training part nothing is held out.
        assert held_out == (words in result.stderr and "train" not in arguments)
        assert ("this may not be what was trained on" in result.stderr) == (words in result.stderr and "train" in arguments)
        return words in result.stderr

    assert not told("--part", "test")
    assert not told("--part", "train")
    assert told("--part", "test", "--set", "data.test_fraction=0.4")
    assert told("--part", "train", "--set", "data.test_fraction=0.4")
    write_tiles(tmp_path / "tiles", count=9)
    assert told("--part", "test")
    assert not told()
    # Other files were never trained on.
    assert not told("--part", "test", "--data", shutil.copytree(tmp_path / "tiles", tmp_path / "others"))


def test_missing_channels_are_refused_and_dropped_on_purpose(run, tmp_path):
    pixels = write_tiles(tmp_path / "fewer", names=("red", "blue"))
    arguments = (run, "--data", tmp_path / "fewer", "--output", tmp_path / "out.npy")
    refused = invoke(*arguments)
    assert isinstance(refused.exception, DataError)
    assert "green" in str(refused.exception)
    result = invoke(*arguments, "--allow-missing")
    assert result.exit_code == 0, result.output
    assert "left out (missing, or sharing a token with one that is): green" in result.output
    expected = make_model().forward_features(torch.from_numpy((pixels - 10) / 100), channels=["red", "blue"], pool="moments")
    by_path = {
        row["path"]: vector for row, vector in zip(rows_of(tmp_path / "out.npy"), np.load(tmp_path / "out.npy"), strict=True)
    }
    got = np.stack([by_path[f"class{number % 2}/tile_{number}.ome.tif"] for number in range(7)])
    np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    write_tiles(tmp_path / "others", names=("x", "y"))
    none = invoke(run, "--data", tmp_path / "others", "--output", tmp_path / "none.npy", "--allow-missing")
    assert isinstance(none.exception, DataError)
    assert "none of the model's channels" in str(none.exception)
    # Channels without names are named on the command line.
    np.save(tmp_path / "unnamed.npy", pixels)
    named = ("--set", 'data.channels=["red", "blue"]', "--set", 'data.axes="NCHW"')
    with_names = (run, "--data", tmp_path / "unnamed.npy", "--output", tmp_path / "named.npy", *named)
    assert "lacks the channels green" in str(invoke(*with_names).exception)
    more = invoke(*with_names, "--set", 'data.channels=["red", "blue", "nir"]')
    assert "data.channels names nir" in str(more.exception)
    assert "data.channel_names" in str(more.exception)
    assert invoke(*with_names, "--allow-missing").exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "named.npy"), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_names_of_hundreds_of_channels_leave_the_message_readable():
    model = SimpleNamespace(channel_names=tuple(f"{number} nm" for number in range(400, 2500, 10)))
    with pytest.raises(DataError, match=r"trained on the channels 400 nm, .* 2490 nm; no") as refused, fitting("a.tif", model):
        raise SettingsError("no")
    assert len(str(refused.value)) < 300


def test_what_is_there_of_a_channel_group_in_part_is_left_out(tmp_path):
    model = make_model(channel_groups=[["blue", "green"], ["red"]])
    write_tiles(tmp_path / "tiles", names=("blue", "red"))
    settings = SettingsTree.model_validate({"data": {"source": str(tmp_path / "tiles")}})
    chosen, missing = find_channels(settings, model, allow_missing=True)
    assert (chosen.data.channels, missing) == (("red",), ("blue", "green"))
    write_tiles(tmp_path / "part", names=("blue",))
    settings = SettingsTree.model_validate({"data": {"source": str(tmp_path / "part")}})
    with pytest.raises(DataError, match="lacks the channels green, red, and so one of every group"):
        find_channels(settings, model, allow_missing=True)
    write_tiles(tmp_path / "whole", names=("blue", "green"))
    # A list of wavelengths of all channels is no obstacle.
    settings = SettingsTree.model_validate({"data": {"source": str(tmp_path / "whole"), "wavelengths": (490.0, 560.0, 665.0)}})
    chosen, missing = find_channels(settings, model, allow_missing=True)
    assert missing == ("red",)
    done = embed(model, open_data(chosen.data, seed=0), tmp_path / "out.npy", pool="concat")
    assert done.width == 16


def test_an_output_never_replaces_an_input(run, tmp_path, monkeypatch):
    pixels = write_tiles(tmp_path / "tiles")
    np.save(tmp_path / "images.npy", pixels)
    (tmp_path / "images.csv").write_text("image,label\n" + "".join(f"tile_{number}.ome.tif,a\n" for number in range(7)))
    (tmp_path / "link.npy").symlink_to(tmp_path / "images.npy")
    monkeypatch.chdir(tmp_path)
    axes = ("--set", "data.axes=NCHW")
    labelled = ("--labels", "images.csv:label")
    for data, output, more in (
        ("images.npy", "images.npy", axes),
        ("images.npy", tmp_path / "images.npy", axes),
        ("link.npy", "images.npy", axes),
        ("images.npy", "link.npy", axes),
        ("tiles", "images.npy", labelled),  # whose rows would be listed in images.csv
    ):
        before = {path: path.read_bytes() for path in tmp_path.glob("images.*")}
        refused = invoke(run, "--data", data, "--output", output, "--overwrite", *more)
        assert isinstance(refused.exception, UsageError), refused.output
        assert "is what is embedded, or its labels" in refused.exception.message
        assert {path: path.read_bytes() for path in tmp_path.glob("images.*")} == before
    assert invoke(run, "--data", "images.npy", "--output", "feats.npy", *axes).exit_code == 0


def test_an_output_among_the_images_is_refused_unless_it_is_never_read(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data, output in (("tiles", "tiles/out.npy"), (".", "out.npy"), ("tiles/*/tile*", "tiles/class0/tile_feats.npy")):
        refused = invoke(run, "--data", data, "--output", output)
        assert isinstance(refused.exception, UsageError), refused.output
        assert "would be read as one of them" in refused.exception.message
        assert "data.exclude" in refused.exception.hint
    # What it proposes can be typed, and keeps what is left out already.
    given = ("--data", "tiles", "--output", "tiles/out.npy", "--set")
    refused = invoke(run, *given, r"""data.exclude=["tile_0*", 'it"s\x']""")
    command = shlex.split(refused.exception.hint.partition("--set ")[2])
    result = invoke(run, *given, *command, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 6
    (tmp_path / "tiles" / "out.npy").unlink()
    (tmp_path / "tiles" / "out.csv").unlink()
    for pattern in ("out.npy", "tiles/*.npy"):
        assert invoke(run, "--data", "tiles", "--output", "tiles/out.npy", "--set", f"data.exclude=['{pattern}']").exit_code == 0
        (tmp_path / "tiles" / "out.npy").unlink()
        (tmp_path / "tiles" / "out.csv").unlink()
    # Neither a run folder nor a format that is no image's is read.
    assert invoke(run, "--data", ".", "--output", run / "out.npy").exit_code == 0
    if importlib.util.find_spec("pyarrow") is not None:
        assert invoke(run, "--data", "tiles", "--output", "tiles/out.parquet").exit_code == 0


@pytest.mark.parametrize(
    ("data", "output", "found"),
    [
        ("tiles/*/tile*", "tiles/new/tile_feats.npy", True),
        ("t*/**/*", "tiles/new/inner/out.npy", True),
        ("{here}/tiles/**/*", "tiles/out.npy", True),
        ("linked/**/*", "tiles/new/out.npy", True),
        ("tiles/**/*", "linked/new/out.npy", True),
        ("l*/*/*", "tiles/class0/out.npy", True),
        ("tiles/*/tile*", "tiles/tile.npy", False),
        ("tiles/*/*", "tiles/class0/new/out.npy", False),
        ("tiles/**/*.tif", "tiles/out.npy", False),
        ("tiles/class?/*", "tiles/new/out.npy", False),
        ("{here}/**/*.*", "run/out.npy", False),
    ],
)
def test_an_output_is_refused_where_a_pattern_would_find_it(run, tmp_path, monkeypatch, data, output, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "tiles")
    (tmp_path / output).parent.mkdir(parents=True, exist_ok=True)
    done = invoke(run, "--data", data.format(here=tmp_path), "--output", output, "--set", "data.layout=images")
    assert isinstance(done.exception, UsageError) == found, done.output
    assert (tmp_path / output).exists() != found
    if not found:
        again = open_collection(data.format(here=tmp_path), layout="images")
        assert tmp_path / output not in {path.absolute() for file in again.files for path in file.paths}


def test_rows_that_are_not_finite_are_told_after_the_output_is_whole(tmp_path, run):
    pixels = write_tiles(tmp_path / "tiles")
    path = sorted((tmp_path / "tiles").rglob("*.tif"))[2]
    image = tifffile.imread(path)
    image[0, 3, 3] = 3e38
    tifffile.imwrite(path, image, metadata={"axes": "CYX", "Channel": {"Name": list(NAMES)}})
    output = tmp_path / "out.npy"
    done = invoke(run, "--output", output, "--json")
    assert done.exit_code == 1
    assert isinstance(done.exception, DataError)
    name = path.relative_to(tmp_path / "tiles").as_posix()
    assert f"1 of {len(pixels)} rows are not finite; the first: {name}" in str(done.exception)
    assert json.loads(done.stdout)["not_finite"] == 1
    assert np.isfinite(np.load(output)).all(axis=1).tolist() == [number != 2 for number in range(len(pixels))]
    dense = invoke(run, "--output", tmp_path / "dense.npy", "--dense")
    assert f"16 of {16 * len(pixels)} rows are not finite; the first: {name}" in str(dense.exception)
