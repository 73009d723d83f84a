"""An interrupted export loses nothing, goes on with the same inputs alone, and says what is in its way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile

from auxmae.data.opening import open_collection
from auxmae.errors import AuxMAEError, UsageError
from auxmae.export import workspace
from auxmae.export.embed import embed
from auxmae.export.extract import UnitEncoder
from tests.export.small_export import invoke, make_model, rows_of, write_tiles


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
        interrupted = invoke(*arguments)
    assert interrupted.exit_code == 130
    assert "128 of 128 rows are kept; the same command goes on from there" in interrupted.output
    refused = invoke(*arguments, "--set", changed)
    assert isinstance(refused.exception, UsageError), refused.output
    assert changed.partition("=")[0] in refused.exception.message
    assert "--restart" in refused.exception.hint
    with monkeypatch.context() as patch:
        patch.setattr("auxmae.export.embed.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        again = invoke(*arguments, "--restart")
    # What it has left is for a call that does not begin anew.
    assert "128 of 128 rows are kept; the same command without --restart goes on from there" in again.output
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


def test_a_csv_that_no_export_wrote_is_not_replaced_without_being_asked(tmp_path, monkeypatch):
    write_tiles(tmp_path / "tiles")
    model, collection, output = make_model(), open_collection(str(tmp_path / "tiles")), tmp_path / "out.npy"

    def stop(rows, total):
        if rows >= stop.at:
            raise KeyboardInterrupt

    # Before the first row, and after some.
    for stop.at in (0, 3):
        with pytest.raises(KeyboardInterrupt):
            embed(model, collection, output, batch_size=2, progress=stop)
        (tmp_path / "out.csv").write_text("my own")
        with pytest.raises(UsageError, match=r"out\.csv exists"):
            embed(model, collection, output)
        assert (tmp_path / "out.csv").read_text() == "my own"
        (tmp_path / "out.csv").unlink()
    # With all rows, and the CSV in its place, it is the export's own.
    with monkeypatch.context() as patch:
        patch.setattr("auxmae.export.formats._swap", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed(model, collection, output)
    assert (tmp_path / "out.csv").exists()
    assert embed(model, collection, output).resumed == 7


def test_a_damaged_workspace_is_left_unlocked(tmp_path, monkeypatch):
    write_tiles(tmp_path / "tiles")
    model, collection, output = make_model(), open_collection(str(tmp_path / "tiles")), tmp_path / "out.npy"
    with monkeypatch.context() as patch:
        patch.setattr("auxmae.export.embed.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed(model, collection, output)
    os.truncate(tmp_path / ".out.npy.part" / "features.npy", 200)
    # An exception that is kept keeps what raised it.
    with pytest.raises(UsageError, match="shorter than what was written") as refused:
        embed(model, collection, output)
    assert embed(model, collection, output, restart=True).rows == 7
    assert "--restart" in refused.value.hint


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
    assert "without --restart" in refused.value.hint
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
