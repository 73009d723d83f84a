"""`auxmae embed`: the features are the model's, memory is bounded, interruptions lose nothing, every refusal is a line."""

from __future__ import annotations

import csv
import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
import torch
import typer
from typer.testing import CliRunner

from auxmae.build import build_data, open_data
from auxmae.data.collection import memory_file
from auxmae.data.opening import open_collection
from auxmae.data.statistics import Scaling
from auxmae.errors import AuxMAEError, DataError, UsageError
from auxmae.export import workspace
from auxmae.export.embed import embed
from auxmae.export.extract import UnitEncoder
from auxmae.export.units import Window, cut, make_layout, plan_units
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import SettingsTree
from auxmae.training.run import create_run, open_run

NAMES = ("blue", "green", "red")


def make_model(names=NAMES, **options):
    torch.manual_seed(3)
    scaling = Scaling("minmax", "none", 1.0, False, tuple(names), (10.0,) * len(names), (100.0,) * len(names))
    arguments = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "decoder_depth": 1, **options}
    return AuxMAE(names, scaling=scaling.to_dict(), **arguments).eval()


def write_tiles(folder, count=7, side=16, names=NAMES, classes=True, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(10, 110, (count, len(names), side, side)).astype(np.float32)
    for number, image in enumerate(pixels):
        path = folder / (f"class{number % 2}" if classes else ".") / f"tile_{number}.ome.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, image, metadata={"axes": "CYX", "Channel": {"Name": list(names)}})
    return pixels


def rows_of(output):
    with output.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(tmp_path):
    write_tiles(tmp_path / "tiles")
    tree = {
        "data": {"source": str(tmp_path / "tiles")},
        "model": {"image_size": 16, "patch_size": 4, "width": 16, "heads": 2},
        "train": {"batch_size": 3},
        "run": {"device": "cpu"},
    }
    folder = create_run(str(tmp_path / "run"), SettingsTree.model_validate(tree))
    make_model().save_pretrained(folder.path / "checkpoints" / "last")
    return folder.path


def invoke(*arguments):
    from auxmae.cli.embed import command

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("pool", ["mean", "concat", "attention", "cls"])
def test_a_row_is_what_forward_features_gives(tmp_path, pool):
    write_tiles(tmp_path / "tiles")
    model, collection = make_model(), open_collection(str(tmp_path / "tiles"))
    output = tmp_path / "out.npy"
    done = embed(model, collection, output, pool=pool, batch_size=3)
    stored, rows = np.load(output), rows_of(output)
    assert done.rows == len(stored) == len(rows) == 7
    for vector, row in zip(stored, rows, strict=True):
        pixels = torch.from_numpy(tifffile.imread(tmp_path / "tiles" / row["path"]))
        expected = model.forward_features((pixels[None] - 10) / 100, pool=pool)[0].detach().numpy()
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
        assert row["class"] == row["path"].split("/")[0]
        assert (row["height"], row["width"], row["valid"]) == ("16", "16", "1.0")
    assert not list(tmp_path.glob(".*"))


def test_dense_rows_are_the_places_in_row_major_order(tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.uniform(10, 110, (1, 3, 38, 21)).astype(np.float32)
    pixels[0, :, :4, 4:8] = np.nan
    np.save(tmp_path / "scene.npy", pixels)
    labels = np.arange(38)[:, None] // 4 * np.ones((1, 21), dtype=np.int64)
    np.save(tmp_path / "labels.npy", labels.astype(np.int64))
    collection = open_collection(
        str(tmp_path / "scene.npy"), labels=str(tmp_path / "labels.npy"), layout="scenes", channels=NAMES
    )
    model, output = make_model(), tmp_path / "dense.npy"
    embed(model, collection, output, dense=True, batch_size=2)
    stored, rows = np.load(output), rows_of(output)
    assert len(stored) == 10 * 6
    assert [(int(row["top"]), int(row["left"])) for row in rows] == [(y, x) for y in range(0, 38, 4) for x in range(0, 21, 4)]
    assert (rows[1]["valid"], rows[0]["valid"]) == ("0.0", "1.0")
    assert [int(row["label"] or -1) for row in rows[::6]] == list(range(10))
    # Each window by itself, as the encoder was trained to see it.
    scaled = torch.from_numpy((pixels - 10) / 100)
    for top, left in [(0, 0), (16, 16), (32, 0)]:
        maps = model.dense_features(scaled[:, :, top : top + 16, left : left + 16])[0].detach().numpy()
        got = stored.reshape(10, 6, -1)[top // 4 :, left // 4 :][: maps.shape[1], : maps.shape[2]]
        np.testing.assert_allclose(got, maps.transpose(1, 2, 0), rtol=1e-4, atol=1e-5)


def test_large_images_are_the_mean_of_their_windows_and_scenes_a_row_each(tmp_path):
    pixels = write_tiles(tmp_path / "tiles", count=20, side=24, classes=False)
    model = make_model()
    images = open_collection(str(tmp_path / "tiles"), layout="images")
    scenes = open_collection(str(tmp_path / "tiles"), layout="scenes")
    embed(model, images, tmp_path / "images.npy", batch_size=5)
    embed(model, scenes, tmp_path / "scenes.npy", batch_size=5)
    of_images, of_scenes = np.load(tmp_path / "images.npy"), np.load(tmp_path / "scenes.npy")
    assert (len(of_images), len(of_scenes)) == (len(pixels), 4 * len(pixels))
    weights = np.array([16 * 16, 16 * 8, 8 * 16, 8 * 8]) / 24**2
    expected = (of_scenes.reshape(20, 4, -1) * weights[None, :, None]).sum(1)
    np.testing.assert_allclose(of_images, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 33), (15, 16), (47, 3)])
def test_windows_cover_every_pixel_once(height, width):
    seen = np.zeros((height, width), dtype=int)
    for window in cut(Window(0, 0, height, width), 16, 16):
        seen[window.top : window.top + window.height, window.left : window.left + window.width] += 1
    assert (seen == 1).all()
    pixels = np.zeros((1, 2, height, width), dtype=np.float32)
    collection = open_collection("synthetic", synthetic_images=1)
    collection.files = (memory_file(pixels, collection.files[0].path, names=("a", "b")),)
    units = plan_units(collection, make_layout(17, 4, dense=True))
    assert sum(unit.rows for unit in units) == -(-height // 4) * -(-width // 4)


def test_every_format_holds_the_same(tmp_path):
    pq, zarr = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("zarr")
    write_tiles(tmp_path / "tiles")
    model, collection = make_model(), open_collection(str(tmp_path / "tiles"))
    for suffix in (".npy", ".parquet", ".zarr"):
        # A byte of a path that is no UTF-8.
        embed(model, collection, tmp_path / f"out{suffix}", about={"part": "all", "data.source": "caf\udce9"})
    expected, rows = np.load(tmp_path / "out.npy"), rows_of(tmp_path / "out.npy")
    table = pq.read_table(tmp_path / "out.parquet")
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), expected)
    for name in rows[0]:
        assert [str(value) for value in table[name].to_pylist()] == [row[name] for row in rows]
    about = json.loads(table.schema.metadata[b"auxmae"])
    assert (about["pool"], about["data.source"]) == ("mean", "caf\udce9")
    group = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    assert group.metadata.zarr_format == 3
    assert group.attrs["auxmae"] == about
    np.testing.assert_array_equal(group["features"][:], expected)
    assert [group.attrs["paths"][number] for number in group["path"][:]] == [row["path"] for row in rows]
    assert group["label"][:].tolist() == [int(row["label"]) for row in rows]


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".zarr"])
def test_an_interrupted_export_goes_on(tmp_path, monkeypatch, suffix):
    write_tiles(tmp_path / "tiles")
    model, collection = make_model(), open_collection(str(tmp_path / "tiles"))
    embed(model, collection, tmp_path / "whole.npy", batch_size=2)
    encoded = []
    original = UnitEncoder.__call__

    def interrupted(self, units):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(units))
        return original(self, units)

    output = tmp_path / f"out{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(UnitEncoder, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed(model, collection, output, batch_size=2)
    assert not output.exists()
    done = embed(model, collection, output, batch_size=3)
    assert done.resumed == sum(encoded) == 4
    if suffix == ".npy":
        np.testing.assert_allclose(np.load(output), np.load(tmp_path / "whole.npy"), rtol=1e-5, atol=1e-6)
        assert rows_of(output) == rows_of(tmp_path / "whole.npy")


def test_changed_inputs_are_refused_and_restart_begins_anew(tmp_path, monkeypatch):
    write_tiles(tmp_path / "tiles")
    model, output = make_model(), tmp_path / "out.npy"
    source = str(tmp_path / "tiles")
    with monkeypatch.context() as patch:
        patch.setattr("auxmae.export.embed.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed(model, open_collection(source), output)
    other = make_model(depth=1)
    with pytest.raises(UsageError, match="there changed: the model") as refused:
        embed(other, open_collection(source), output)
    assert "--restart" in refused.value.hint
    with pytest.raises(UsageError, match="there changed: pool"):
        embed(model, open_collection(source), output, pool="cls")
    write_tiles(tmp_path / "tiles", seed=9)
    with pytest.raises(UsageError, match="the files"):
        embed(model, open_collection(source), output)
    assert embed(model, open_collection(source), output, restart=True).resumed == 0
    with pytest.raises(UsageError, match="exists"):
        embed(model, open_collection(source), output)
    assert embed(model, open_collection(source), output, pool="cls", overwrite=True).rows == 7


@pytest.mark.parametrize(
    "changed",
    ["data.nodata=0", "data.ignored_labels=[2]", "data.exclude=['*_9.tif']", "data.layout=images", "data.allow_broken=true"],
)
def test_a_resuming_call_reads_the_data_as_the_interrupted_one_did(run, tmp_path, monkeypatch, changed):
    write_tiles(tmp_path / "scenes", count=2, side=32, classes=False)
    (tmp_path / "labels").mkdir()
    for number in range(2):
        tifffile.imwrite(tmp_path / "labels" / f"tile_{number}.ome.tif", np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 3)
    arguments = (run, "--data", tmp_path / "scenes", "--labels", tmp_path / "labels", "--dense", "--output", tmp_path / "out.npy")
    with monkeypatch.context() as patch:
        patch.setattr("auxmae.export.embed.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert invoke(*arguments).exit_code == 130
    refused = invoke(*arguments, "--set", changed)
    assert isinstance(refused.exception, UsageError), refused.output
    assert changed.partition("=")[0] in refused.exception.message
    assert "--restart" in refused.exception.hint
    resumed = invoke(*arguments, "--json")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["resumed"] == 128


def test_a_call_that_failed_before_the_first_row_is_no_obstacle_to_the_next(run, tmp_path):
    make_model(cls_tokens=False).save_pretrained(run / "checkpoints" / "last")
    refused = invoke(run, "--output", tmp_path / "out.npy", "--pool", "cls")
    assert "needs a model with CLS tokens" in str(refused.exception)
    assert "eval.pool" not in str(refused.exception)
    mended = invoke(run, "--output", tmp_path / "out.npy", "--pool", "mean", "--json")
    assert mended.exit_code == 0, mended.output
    assert json.loads(mended.stdout)["resumed"] == 0
    assert np.load(tmp_path / "out.npy").shape == (7, 16)


def test_changed_labels_of_the_images_are_refused(tmp_path, monkeypatch):
    write_tiles(tmp_path / "tiles")
    model, output = make_model(), tmp_path / "out.npy"

    def opened(first):
        names = sorted(f"tile_{number}.ome.tif" for number in range(7))
        rows = "".join(f"{name},{first if number == 0 else 'b'}\n" for number, name in enumerate(names))
        (tmp_path / "labels.csv").write_text(f"image,label\n{rows}")
        return open_collection(str(tmp_path / "tiles"), labels=str(tmp_path / "labels.csv"))

    with monkeypatch.context() as patch:
        patch.setattr("auxmae.export.embed.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed(model, opened("a"), output)
    with pytest.raises(UsageError, match="there changed: the labels"):
        embed(model, opened("c"), output)
    assert embed(model, opened("a"), output).resumed == 7


def test_a_full_disk_is_one_line_and_keeps_what_was_done(tmp_path, monkeypatch):
    write_tiles(tmp_path / "tiles")
    model, collection, output = make_model(), open_collection(str(tmp_path / "tiles")), tmp_path / "out.npy"
    monkeypatch.setattr(workspace, "SAVE_SECONDS", 0)
    original, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(AuxMAEError, match=r"out\.npy: cannot be written: No space left") as refused:
            embed(model, collection, output, batch_size=1)
    assert "free some space" in refused.value.hint
    assert not output.exists()
    assert embed(model, collection, output, batch_size=1).resumed > 0
    collection_again = open_collection(str(tmp_path / "tiles"))
    embed(model, collection_again, tmp_path / "whole.npy")
    np.testing.assert_allclose(np.load(output), np.load(tmp_path / "whole.npy"), rtol=1e-5, atol=1e-6)


def test_a_workspace_in_use_and_an_unwritable_folder_are_said(tmp_path):
    with (
        workspace.Workspace(tmp_path / "out.npy", {}, 3),
        pytest.raises(UsageError, match="another export"),
    ):
        workspace.Workspace(tmp_path / "out.npy", {}, 3)
    (tmp_path / "file").touch()
    with pytest.raises(AuxMAEError, match="cannot be written"):
        workspace.Workspace(tmp_path / "file" / "out.npy", {}, 3)


def test_the_command_and_its_document(run, tmp_path):
    result = invoke(run, "--output", tmp_path / "out.npy", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["rows"], document["features"], document["missing"]) == (7, 96, [])  # moments of 3 channels × 16
    held = invoke(run, "--output", tmp_path / "held.npy", "--part", "test", "--pool", "concat", "--json")
    assert json.loads(held.stdout)["features"] == 48
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
        return words in result.stderr

    assert not told("--part", "test")
    assert told("--part", "test", "--set", "data.test_fraction=0.4")
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
    assert invoke(*with_names, "--allow-missing").exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "named.npy"), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_there_of_a_channel_group_in_part_is_left_out(tmp_path):
    from auxmae.run_data import find_channels

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
    for pattern in ("out.npy", "tiles/*.npy"):
        assert invoke(run, "--data", "tiles", "--output", "tiles/out.npy", "--set", f"data.exclude=['{pattern}']").exit_code == 0
        (tmp_path / "tiles" / "out.npy").unlink()
        (tmp_path / "tiles" / "out.csv").unlink()
    # Neither a run folder nor a format that is no image's is read.
    assert invoke(run, "--data", ".", "--output", run / "out.npy").exit_code == 0
    if importlib.util.find_spec("pyarrow") is not None:
        assert invoke(run, "--data", "tiles", "--output", "tiles/out.parquet").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_loses_nothing(run, tmp_path, repository, how):
    write_tiles(tmp_path / "many", count=1500)
    arguments = [run, "--data", tmp_path / "many", "--output", tmp_path / "out.npy", "--batch-size", "1", "--json"]
    command = [sys.executable, "-m", "auxmae", "embed", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'kernels'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    features = tmp_path / ".out.npy.part" / "features.npy"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (features.exists() and features.stat().st_size > 1000):
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert not (tmp_path / "out.npy").exists()
    if how == signal.SIGTERM:
        assert process.returncode == 130
        assert "interrupted" in errors
        assert "Traceback" not in errors
    again = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    document = json.loads(again.stdout)
    assert document["rows"] == 1500
    assert how == signal.SIGKILL or 0 < document["resumed"] < 1500
    embed(make_model(), open_collection(str(tmp_path / "many")), tmp_path / "whole.npy", pool="moments")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), np.load(tmp_path / "whole.npy"), rtol=1e-4, atol=1e-5)


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
