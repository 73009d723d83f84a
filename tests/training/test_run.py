"""Run folders: what is in them, one writer at a time, and what is no whole run."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from auxmae.errors import CheckpointError, SettingsError, UsageError
from auxmae.extractor import FeatureExtractor
from auxmae.locking import take_lock
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import SettingsTree
from auxmae.training import run as runs
from auxmae.training import trainer
from auxmae.training.run import check_unused, create_run, open_run
from auxmae.training.session import train
from tests.training.small_runs import Heard, settings_for


def test_a_run_holds_everything(tmp_path):
    result = train(settings_for(tmp_path / "run"))
    run = open_run(result.run)
    for name in (
        "settings.toml",
        "metrics.jsonl",
        "result.json",
        "statistics.json",
        "data.json",
        "report.html",
        "figures/reconstruction.png",
    ):
        assert (result.run / name).stat().st_size > 0, name
    kinds = {record["kind"] for record in run.metrics()}
    assert kinds == {"train", "validation"}
    assert json.loads((result.run / "result.json").read_text())["masked_l1"] == result.masked_l1
    assert set(result.floors) == {"mean", "interpolation"}
    model = run.load_model()
    assert model.scaling is not None
    assert len(model.channel_names) == 13


@pytest.mark.parametrize(
    "noted", [b"", b"[]", b'{"data": "x", "split": "a"}', b"\xff", b'{"data": "x", "split": "a", "files": "b", "pixels": 3}']
)
def test_damaged_notes_on_the_data_are_one_line(tmp_path, noted):
    run = create_run(str(tmp_path / "run"), SettingsTree())
    (run.path / "data.json").write_bytes(noted)
    with pytest.raises(CheckpointError, match=r"data\.json: broken: .+delete it"):
        run.changed_data("a", "b", [[1.0]])
    (run.path / "data.json").unlink()
    assert run.changed_data("a", "b", [[1.0]]) is None


def test_only_one_training_writes_a_run(tmp_path, monkeypatch):
    original = trainer.Trainer._train_step
    refused = []

    def meanwhile(self, batches):
        if not refused:
            before = (self.run.path / "settings.toml").read_bytes()
            for call in (
                lambda: train(SettingsTree(), resume=self.run.path),
                # As by one that found the folder empty in the same moment.
                lambda: create_run(str(self.run.path), SettingsTree(), locks=ExitStack()),
            ):
                with pytest.raises(UsageError) as told:
                    call()
                refused.append(told.value)
            assert (self.run.path / "settings.toml").read_bytes() == before
        return original(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_train_step", meanwhile)
    monkeypatch.setattr(runs, "check_unused", lambda folder: None)
    for start in (
        lambda: train(settings_for(tmp_path / "run", train={"max_steps": 2})),
        lambda: train(SettingsTree(), resume=tmp_path / "run"),
    ):
        refused.clear()
        settings = tmp_path / "run" / "settings.toml"
        if settings.exists():
            settings.write_text(settings.read_text().replace("max_steps = 2", "max_steps = 3"))
        start()
        assert [error.message for error in refused] == [f"{tmp_path / 'run'}: another training is writing it"] * 2
        assert {error.hint for error in refused} == {"wait for it, or stop it"}


def test_the_lock_of_a_killed_process_is_gone(tmp_path, repository):
    code = "import sys, time; from pathlib import Path; from auxmae.locking import take_lock\n"
    code += "lock = take_lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], cwd=repository, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError):
            take_lock(tmp_path / "lock")
        other.kill()
    take_lock(tmp_path / "lock").close()


def test_without_locks_of_the_file_system_nothing_is_locked(tmp_path, monkeypatch):
    def unknown(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with take_lock(tmp_path / "lock"), take_lock(tmp_path / "lock"):
        pass


def test_trainings_that_begin_together_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda form: "now")
    assert [str(create_run("auto", SettingsTree()).path) for _ in range(3)] == ["runs/now", "runs/now-2", "runs/now-3"]


def test_damaged_metrics_are_left_out_with_one_note(tmp_path):
    run = open_run(train(settings_for(tmp_path / "run", train={"max_steps": 2})).run)
    whole = run.metrics()
    with run.metrics_path.open("ab") as file:
        file.write(b'[]\n{"step": "two"}\n\xff\xfe{"kind": "train", "step": 2}\n{"kind": "tra')
    assert run.metrics() == whole
    heard = Heard()
    train(SettingsTree(), resume=run.path, reporter=heard)
    told = f"note: {run.metrics_path}: 4 lines are damaged and left out"
    assert [text for text in heard.messages if "are damaged" in text] == [told]
    assert [json.loads(line) for line in run.metrics_path.read_text().splitlines()] == whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("saved", [False, True])
def test_a_full_disk_under_the_metrics_says_how_to_go_on(tmp_path, saved):
    run = create_run(str(tmp_path / "run"), SettingsTree())
    if saved:
        (run.path / "checkpoints" / "last").mkdir()
    run.metrics_path.symlink_to("/dev/full")
    with pytest.raises(CheckpointError) as told:
        run.log({"kind": "train", "step": 1})
    assert told.value.message == f"{run.metrics_path}: cannot be written: No space left on device"
    how = f", then go on with: auxmae train --resume {run.path}" if saved else "; nothing was saved yet"
    assert told.value.hint == f"free some space{how}"


@pytest.mark.parametrize(
    ("there", "how"),
    [
        ((), "or delete {}"),
        (("last",), "or go on with it: auxmae train --resume {}"),
        (("best",), ""),
        (("best", "last"), "or go"),
    ],
)
def test_a_run_is_gone_on_with_where_there_is_something_to_go_on_from(tmp_path, there, how):
    run = create_run(str(tmp_path / "run"), SettingsTree())
    for name in there:
        (run.path / "checkpoints" / name).mkdir()
    with pytest.raises(UsageError, match="is not empty") as told:
        check_unused(str(run.path))
    assert told.value.hint.startswith(f"choose another --output, {how.format(run.path)}" if how else "choose another --output")
    assert how or told.value.hint == "choose another --output"


def test_a_full_folder_is_refused(tmp_path):
    (tmp_path / "thing").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        create_run(str(tmp_path), SettingsTree())
    assert (tmp_path / "thing").read_text() == "mine"
    with pytest.raises(UsageError, match="no run folder"):
        open_run(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        open_run(tmp_path / "none")


@pytest.mark.parametrize("kept", ["", "# only a comment\n", "half", "[data]\n"])
def test_settings_of_a_run_that_are_not_whole_are_no_defaults(tmp_path, kept):
    run = create_run(str(tmp_path / "run"), settings_for(tmp_path / "run"))
    assert open_run(run.path).settings.data.synthetic_images == 48
    path = run.path / "settings.toml"
    text = path.read_text()
    path.write_text(text[: text.index("\n[masking]") + 1] if kept == "half" else kept)
    model = AuxMAE(2, image_size=8, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    model.save_pretrained(run.path / "checkpoints" / "last")
    for read in (lambda: open_run(run.path), lambda: FeatureExtractor(run.path).fit(np.ones((1, 2, 8, 8)))):
        with pytest.raises(SettingsError) as told:
            read()
        assert told.value.message == f"{path} is empty or incomplete"


@pytest.mark.parametrize("when", [1, 3])
def test_a_run_folder_that_is_moved_away_is_not_made_anew(tmp_path, monkeypatch, when):
    original = trainer.Trainer._train_step

    def moving(self, batches):
        if self.step == when:
            self.run.path.rename(tmp_path / "moved")
        return original(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_train_step", moving)
    with pytest.raises(CheckpointError) as told:
        train(settings_for(tmp_path / "run"))
    assert told.value.message == f"run folder {tmp_path / 'run'} no longer exists (moved or deleted)"
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
