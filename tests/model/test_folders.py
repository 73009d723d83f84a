"""Which folder a model's name means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from auxmae.errors import CheckpointError, UsageError
from auxmae.model.folders import find_model
from auxmae.model.mae import AuxMAE
from auxmae.model.pretrained import load_weights
from auxmae.settings import write_settings
from auxmae.settings.schema import SettingsTree
from auxmae.training.run import create_run
from tests.model.small import tiny


def make_run(folder, **widths):
    """A run with checkpoints of these names, told by their widths."""
    run = create_run(str(folder), SettingsTree())
    for name, width in widths.items():
        tiny(2, width=width).save_pretrained(folder / "checkpoints" / name)
    return run


def width(name):
    return AuxMAE.from_pretrained(name).num_features


def test_a_run_means_its_best_checkpoint_and_else_its_last(tmp_path):
    run = make_run(tmp_path / "run", best=16, last=32)
    best = run.path / "checkpoints" / "best"
    assert width(run.path) == width(best) == width(str(best)) == run.load_model().num_features == 16
    assert run.load_model("last").num_features == 32
    assert width(make_run(tmp_path / "unvalidated", last=32).path) == 32
    empty = make_run(tmp_path / "empty")
    for load in (empty.load_model, lambda: AuxMAE.from_pretrained(empty.path)):
        with pytest.raises(CheckpointError, match="there is no checkpoint in it") as told:
            load()
        assert "delete the folder" in told.value.hint
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        AuxMAE.from_pretrained(tmp_path)


def test_a_checkpoint_that_a_killed_swap_set_aside_is_found(tmp_path):
    run = make_run(tmp_path / "run", best=16, last=32)
    best = run.path / "checkpoints" / "best"
    best.rename(best.with_name(".best.old"))
    assert width(run.path) == width(best) == run.load_model().num_features == 16


def test_the_working_directory_has_a_name(tmp_path, monkeypatch):
    tiny(2, width=16).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert width(".") == 16


def test_last_is_the_run_that_was_started_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no run under"):
        AuxMAE.from_pretrained("last")
    old, new = (make_run(tmp_path / "runs" / name, best=width) for name, width in (("old", 32), ("new", 16)))
    for run in (old, new):
        # Whatever happens to a run's files later: edited by hand, or written anew where it goes on on another machine.
        write_settings(SettingsTree(), run.path / "settings.toml")
        run.note_data("images", "a", "b", [[1.0]])
    for name in ("settings.toml", "data.json"):
        os.utime(new.path / name, (1e9, 1e9))
    assert find_model("last").parts == ("runs", "new", "checkpoints", "best")
    assert width("last") == 16


def test_of_runs_of_before_last_is_not_the_one_whose_settings_were_edited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("new", "old")):
        run = make_run(tmp_path / "runs" / name, best=16 * (number + 1))
        run.note_data("images", "a", "b", [[1.0]])
        (run.path / ".started").unlink()
        os.utime(run.path / "data.json", (1e9 - number, 1e9 - number))
    assert width("last") == 16
    # As where a training was killed before it noted them.
    (run.path / "data.json").unlink()
    os.utime(run.path / "settings.toml", (1e9 + 1, 1e9 + 1))
    assert width("last") == 32


class ProxyError(Exception):
    """As httpx tells of a proxy that refuses: no OSError."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ProxyError("403 Forbidden\nmore"), "403 Forbidden"),
        (ProxyError(), "ProxyError"),
        (ConnectionError("unreachable"), "unreachable"),
        (RuntimeError("the client has been closed"), "the client has been closed"),
    ],
)
def test_whatever_a_download_fails_with_is_one_line_that_names_the_model(monkeypatch, error, reason):
    import huggingface_hub

    def fail(name, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as told:
        find_model("runs/frist")
    assert told.value.message == f"runs/frist: no such folder, and the hub cannot give it: {reason}"
    assert "a run folder" in told.value.hint


def test_an_unknown_option_of_a_download_is_the_callers_fault(monkeypatch):
    with pytest.raises(TypeError, match="no_such_option"):
        find_model("owner/name", no_such_option=1)


def test_the_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_run(tmp_path / "run", best=16)
    assert torch.equal(*(AuxMAE.from_pretrained(name).mask_token for name in ("~/run", tmp_path / "run")))


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_whoever_may_read_new_files_may_read_the_weights(tmp_path, mask):
    before = os.umask(mask)
    try:
        tiny().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").glob("*.*")}
    assert modes == {0o666 & ~mask}


def test_weights_that_may_not_be_read_are_not_called_missing(tmp_path, monkeypatch):
    model = tiny()
    model.save_pretrained(tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / "model.safetensors").chmod(0)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        with pytest.raises(CheckpointError) as told:
            load_weights(model, Path())
    finally:
        os.seteuid(user)
    assert told.value.message == "model.safetensors: cannot be read: Permission denied"
