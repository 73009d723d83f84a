"""What a training says, and where: warnings, notes, and faults of settings before there is a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from auxmae.build import build_data, build_model
from auxmae.cli.app import app
from auxmae.errors import CheckpointError, DataError, MissingDependencyError, SettingsError
from auxmae.settings import write_settings
from auxmae.training.checks import check_settings
from auxmae.training.progress import EnduringReporter
from auxmae.training.run import open_run
from auxmae.training.session import train
from auxmae.training.stopping import graceful_stop, stopping_signals
from tests.training.small_runs import Heard, folder_of_images, settings_for


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"train": {"precision": "bf16"}}, "train.precision = 'bf16' needs a CUDA GPU"),
        ({"train": {"cuda_graphs": "on"}}, "train.cuda_graphs = 'on'"),
        ({"train": {"probe_every": 1}, "eval": {"pool": "cls"}, "model": {"cls_tokens": False}}, "eval.pool = 'cls'"),
        ({"masking": {"strategy": "channel"}, "data": {"channels": ("B04",)}}, "there is only one"),
        ({"masking": {"strategy": "channel"}, "model": {"channel_groups": 13}}, "there is only one"),
        ({"masking": {"strategy": "mixed", "mixture": {"channel": 1.0}}, "model": {"channel_groups": 13}}, "masking.mixture"),
        ({"masking": {"strategy": "channel"}, "data": {"channel_sampling": 0.95}}, "leaves one of 13 channels"),
    ],
    ids=["precision", "graphs", "pool", "one channel", "one group", "mixture", "sampling"],
)
def test_a_wrong_setting_is_found_before_there_is_a_run_folder(tmp_path, tables, words):
    with pytest.raises(SettingsError) as told:
        train(settings_for(tmp_path / "run", **tables))
    assert words in told.value.message
    assert not (tmp_path / "run").exists()


def test_data_that_the_runs_settings_cannot_name_are_found_before_there_is_a_run_folder(tmp_path, monkeypatch):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder_of_images(Path("data"), *"abcdefgh")
    for data, key in (({"source": "data"}, "data.source"), ({"labels": "labels.csv"}, "data.labels")):
        with pytest.raises(SettingsError, match="is not valid UTF-8 text") as told:
            train(settings_for("run", data=data))
        assert told.value.message.startswith(f"{key}: ")
    assert not Path("run").exists()


@pytest.mark.parametrize("name", [None, "no-such-compiler"])
def test_a_missing_compiler_is_told_before_there_is_a_run_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    if name is not None:
        monkeypatch.setenv("CXX", name)
    name = name or ("clang++" if sys.platform == "darwin" else "g++")
    settings = settings_for(tmp_path / "run", train={"compile": True})
    with pytest.raises(SettingsError, match=f"needs the C\\+\\+ compiler {re.escape(name)} on a CPU"):
        train(settings)
    assert not (tmp_path / "run").exists()
    command = ["train", "--dry-run", "--device", "cpu", "--set", "train.compile=true", "--set", "data.synthetic_images=48"]
    with pytest.raises(SettingsError, match=r"train\.compile = true needs the C\+\+ compiler"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert name in json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["compiler"]
    (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
    (tmp_path / "bin" / name).chmod(0o755)
    check_settings(settings, torch.device("cpu"))
    assert json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["compiler"] == f"uses {name}"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_so(number):
    """As nohup does with that of a closed terminal, and a shell's script with Ctrl-C for what it starts in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert number not in stopping_signals()
        with graceful_stop() as asked:
            signal.raise_signal(number)
            assert not asked()
        signal.signal(number, signal.SIG_DFL)
        assert number in stopping_signals()
    finally:
        signal.signal(number, before)


def test_a_handler_of_another_language_stays_in_place(monkeypatch):
    """Python knows such a handler as None, which it cannot set."""
    kept, known = (signal.SIGTERM, signal.SIGHUP), signal.getsignal
    before = [known(number) for number in kept]

    def set_handler(number, handler, original=signal.signal):
        previous = original(number, handler)
        return None if number in kept else previous

    monkeypatch.setattr(signal, "getsignal", lambda number: None if number in kept else known(number))
    monkeypatch.setattr(signal, "signal", set_handler)
    with graceful_stop() as asked:
        assert [known(number) for number in kept] == before
        signal.raise_signal(signal.SIGINT)
        assert asked()
    assert [known(number) for number in kept] == before


def test_what_looks_wrong_is_said_before_training(tmp_path):
    data = folder_of_images(tmp_path / "data", *"abcdefghij", constant=1)
    heard = Heard()
    tables = {"data": {"source": str(data), "samples_per_epoch": 0}, "train": {"max_steps": 1, "batch_size": 8}}
    train(settings_for(tmp_path / "run", **tables), reporter=heard)
    assert any(text.startswith("warning: C2: constant") for text in heard.messages)
    assert any(text.startswith("note: batches have 7 images in place of train.batch_size = 8") for text in heard.messages)


def test_scenes_that_leave_nothing_to_hold_out_are_told_how(tmp_path):
    data = folder_of_images(tmp_path / "data", "a")
    heard = Heard()
    train(settings_for(tmp_path / "run", data={"source": str(data), "layout": "scenes"}), reporter=heard)
    (told,) = [text for text in heard.messages if "nothing is held out" in text]
    assert "data.layout = 'images'" in told


@pytest.mark.parametrize(("fraction", "told"), [(0.0, True), (0.2, False)])
def test_a_patience_without_validation_is_told_of(tmp_path, fraction, told):
    heard = Heard()
    tables = {"data": {"validation_fraction": fraction}, "train": {"patience": 3, "max_steps": 1}}
    train(settings_for(tmp_path / "run", **tables), reporter=heard)
    assert (
        any("train.patience = 3 stops nothing" in text and "data.validation_fraction" in text for text in heard.messages) == told
    )


def test_a_probe_of_labels_without_scikit_learn_is_found_before_there_is_a_run_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    command = ["train", "--dry-run", "--device", "cpu", "--set", "train.probe_every=2", "--set", "data.synthetic_images=48"]
    with pytest.raises(MissingDependencyError, match=r"train\.probe_every = 2 on labelled data needs scikit-learn"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    with pytest.raises(MissingDependencyError, match=r"train\.probe_every = 0"):
        train(settings_for(tmp_path / "run", train={"probe_every": 2}))
    assert not (tmp_path / "run").exists()
    # The rank alone needs none.
    probed = settings_for(tmp_path / "run", train={"probe_every": 1, "max_steps": 1}, data={"labels": "none"})
    train(probed)
    assert any(record["kind"] == "probe" for record in open_run(tmp_path / "run").metrics())


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"model": {"channel_groups": [["B01", "B20"]]}}, "names the unknown channel 'B20'"),
        ({"model": {"channel_groups": [["B01"], ["B02"]]}}, "leaves out B03, "),
        ({"model": {"channel_embedding": "wavelength"}, "data": {"source": "{images}"}}, "needs wavelengths"),
        ({"model": {"channel_groups": 13}, "masking": {"strategy": "channel"}}, "and there is only one"),
        (
            {"model": {"patch_size": 32}, "data": {"source": "{images}"}},
            "crops of 32 px are one patch of model.patch_size = 32 px",
        ),
        ({"model": {"width": 32}}, "other shapes than this model's"),
        ({"model": {"heads": 1}}, "set model.heads = 2"),
        ({"data": {"channels": ["B04", "B08"]}}, "was trained on the channels B01, "),
    ],
)
def test_what_no_model_can_be_is_told_before_all_pixels_are_read(tmp_path, monkeypatch, tables, words):
    model = settings_for(tmp_path)
    build_model(model, build_data(model)).save_pretrained(tmp_path / "model")
    images = folder_of_images(tmp_path / "images", *"abcdefghij")
    for table in tables.values():
        table.update({key: str(images) for key, value in table.items() if value == "{images}"})
    settings = settings_for(tmp_path / "run", **tables)
    monkeypatch.setattr("auxmae.build.compute_statistics", lambda *_, **__: pytest.fail("the pixels were read"))
    write_settings(settings, tmp_path / "settings.toml")
    start = [] if "source" in tables.get("data", {}) else ["--init-from", str(tmp_path / "model")]
    with pytest.raises((SettingsError, CheckpointError)) as told:
        train(settings, init_from=start[-1] if start else None)
    assert words in str(told.value)
    command = ["train", "--dry-run", "--config", str(tmp_path / "settings.toml"), *start]
    again = CliRunner().invoke(app, command).exception
    assert str(again) == str(told.value)


def test_a_dry_run_finds_what_training_would(tmp_path, monkeypatch):
    data = folder_of_images(tmp_path / "data", *"abcd")
    fewer = ["--set", "data.samples_per_epoch=0", "--set", "train.batch_size=8"]
    command = ["train", "--dry-run", "--data", str(data), "--device", "cpu", "--output", str(tmp_path / "run"), *fewer]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    with pytest.raises(DataError, match=r"^[234] images or windows to train on are fewer than the 8 processes"):
        CliRunner().invoke(app, [*command, "--processes", "8"], catch_exceptions=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=2**41, free=100))
    with pytest.raises(CheckpointError, match="two checkpoints"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "Input/output error"), SystemExit(1)])
def test_a_training_outlives_its_output(capsys, error):
    class Broken(Heard):
        def step(self, step, values):
            raise error

    broken = Broken()
    reporter = EnduringReporter(broken)
    reporter.message("before")
    reporter.step(1, {})
    reporter.message("after")
    reporter.stop()
    assert broken.messages == ["before"]
    assert capsys.readouterr().err == "note: the output is closed; the training goes on without it\n"


def test_a_training_outlives_its_output_from_the_first_line_on(tmp_path, repository):
    """As under `| head -n 1`, which is gone when the statistics are told of."""
    folder_of_images(tmp_path / "data", *"abcdefghij")
    program = "import auxmae.cli.train as train, auxmae.__main__ as begin; train.STATISTICS_SECONDS = -1; begin.main()"
    command = [sys.executable, "-c", program, "train", "--data", "data", "--set", "data.axes=CHW", "--output", "run"]
    process = subprocess.Popen(
        [*command, "--max-steps", "1", "--set", "model.patch_size=16", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), str(repository / "kernels")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    assert "the training goes on without it" in process.stderr.read()
    process.wait()
    assert (tmp_path / "run" / "result.json").exists()


def test_warnings_survive_quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path / "data", *"abcdefghij", constant=1)
    command = ["train", "--data", "data", "--quiet", "--preset", "tiny", "--max-steps", "1", "--set", "model.patch_size=16"]
    done = CliRunner().invoke(app, [*command, "--set", "data.axes=CHW", "--device", "cpu", "--output", "run"])
    assert done.exit_code == 0, done.output
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: C2: constant")]
    assert "note:" not in done.output
    assert "step" not in done.output
