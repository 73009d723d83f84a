"""Checkpoints: whole or not at all, never of weights that are not finite, and what is said where they cannot be written."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from auxmae.errors import CheckpointError
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import SettingsTree
from auxmae.training import checkpoint as checkpoints
from auxmae.training import trainer
from auxmae.training.session import train
from auxmae.training.watch import DivergedError
from tests.training.small_runs import settings_for, weights


def test_an_interrupt_saves_no_weights_that_are_not_finite(tmp_path, monkeypatch):
    original = trainer.Trainer._train_step

    def until(self, batches):
        if self.step == 4:
            with torch.no_grad():
                next(self.model.parameters()).fill_(math.nan)
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_train_step", until)
    settings = settings_for(tmp_path / "run", data={"samples_per_epoch": 0})  # four steps
    with pytest.raises(DivergedError, match=r"became nan by step 6; the checkpoint .*last is from before"):
        train(settings)
    assert checkpoints.load_state(tmp_path / "run" / "checkpoints" / "last")["step"] == 4
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


@pytest.mark.parametrize("steps", [9, 8], ids=["an epoch's end", "the last step"])
def test_a_gradient_that_overflows_while_the_loss_is_finite_is_not_saved(tmp_path, monkeypatch, steps):
    original = trainer.Trainer._train_step
    losses = []

    def overflowing(self, batches):
        if self.step == 7:
            next(self.model.parameters()).register_hook(lambda gradient: torch.full_like(gradient, math.inf))
        loss, norm = original(self, batches)
        losses.append(float(loss))
        return loss, norm

    monkeypatch.setattr(trainer.Trainer, "_train_step", overflowing)
    # Epochs of four steps, and nothing is validated, which would see it.
    data = {"synthetic_images": 32, "samples_per_epoch": 0, "validation_fraction": 0.0, "test_fraction": 0.0}
    with pytest.raises(DivergedError, match=r"weights became NaN or infinite by step 8; the checkpoint .*last is from before"):
        train(settings_for(tmp_path / "run", data=data, train={"max_steps": steps}))
    assert len(losses) == 8
    assert all(map(math.isfinite, losses))
    assert checkpoints.load_state(tmp_path / "run" / "checkpoints" / "last")["step"] == 4
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model = AuxMAE(2, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    folder = tmp_path / "checkpoints" / "last"
    checkpoints.save_checkpoint(model, folder, {"step": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoints.save_checkpoint(model, folder, {"step": 2})
    monkeypatch.undo()
    assert checkpoints.load_state(folder) == {"step": 1}
    assert [path.name for path in folder.parent.iterdir()] == ["last"]
    # A crash between the two renames of a swap leaves only the old one.
    folder.rename(folder.with_name(".last.old"))
    assert checkpoints.load_state(folder) == {"step": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_a_second_crash_leaves_what_the_first_one_left(tmp_path, monkeypatch, error):
    """Two crashes, both between the renames of a swap, or the second as an error that is told of."""
    model = AuxMAE(2, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    folder = tmp_path / "checkpoints" / "last"
    checkpoints.save_checkpoint(model, folder, {"step": 1})
    folder.rename(folder.with_name(".last.old"))

    def crash(self, target):
        raise error

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises((KeyboardInterrupt, CheckpointError)) as told:
        checkpoints.save_checkpoint(model, folder, {"step": 2})
    monkeypatch.undo()
    assert checkpoints.load_state(folder) == {"step": 1}
    if isinstance(told.value, CheckpointError):
        assert "the checkpoint from before is untouched" in told.value.hint
    checkpoints.save_checkpoint(model, folder, {"step": 3})
    assert checkpoints.load_state(folder) == {"step": 3}
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


@pytest.mark.parametrize(
    ("error", "free", "words", "hint"),
    [
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            0,
            "No space left",
            "free some space",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 0"), 2**40, "unexpected pos", "in order"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 0"), 2**40, "unexpected pos", "ulimit -f"),
        (OSError(errno.EFBIG, "File too large"), 2**40, "File too large", "ulimit -f"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2**40, "quota exceeded", "free some space"),
        (PermissionError(errno.EACCES, "Permission denied"), 2**40, "Permission denied", "you may write there"),
        (OSError(errno.EROFS, "Read-only file system"), 2**40, "Read-only", "you may write there"),
        (OSError(errno.EIO, "Input/output error"), 2**40, "Input/output", "in order"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_says_why_and_what_to_do(tmp_path, monkeypatch, error, free, words, hint):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(checkpoints.torch, "save", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=2**41, free=free))
    model = AuxMAE(2, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    with pytest.raises(CheckpointError) as told:
        checkpoints.save_checkpoint(model, tmp_path / "checkpoints" / "last", {"step": 1})
    assert words in told.value.message
    assert hint in told.value.hint
    assert ("free some space" in told.value.hint) == (hint == "free some space")


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize("there", [(), ("last",), ("best",), (".last.old",)])
def test_a_run_is_gone_on_with_where_its_last_checkpoint_is(tmp_path, monkeypatch, which, there):
    model = AuxMAE(2, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    for name in there:
        checkpoints.save_checkpoint(model, tmp_path / name)

    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AuxMAE, "_save_pretrained", full)
    with pytest.raises(CheckpointError) as told:
        checkpoints.save_checkpoint(model, tmp_path / which)
    resumable = there in (("last",), (".last.old",))
    assert told.value.hint == (
        "free some space, then go on with --resume: the checkpoint from before is untouched"
        if resumable
        else "free some space, or choose another --output"
    )


@pytest.mark.parametrize("held_out", [0.0, 0.2], ids=["no best", "a best"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_too_little_space_for_checkpoints_is_said_before_training(tmp_path, monkeypatch, optimizer, held_out):
    tables = {"train": {"max_steps": 2, "optimizer": optimizer}, "model": {"width": 128}}
    tables["data"] = {"validation_fraction": held_out}
    first = train(settings_for(tmp_path / "first", **tables)).run
    saved, best = (sum(path.stat().st_size for path in (first / "checkpoints" / which).glob("*")) for which in ("last", "best"))
    assert (best > 0.3 * saved) == (held_out > 0)
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=2**41, free=free))
    for free in (int(1.5 * saved), int(1.9 * saved + best)):
        with pytest.raises(
            CheckpointError, match=rf"two checkpoints.* [\d.]+ MiB more, and {free / 2**20:.1f} MiB are free"
        ) as told:
            train(settings_for(tmp_path / "second", **tables))
        assert ("the best one" in told.value.message) == (held_out > 0)
    assert not (tmp_path / "second").exists()
    # One of the two is there, and the best one.
    free = int(1.1 * saved)
    assert train(SettingsTree(), resume=first).outcome.step == 2
    free = int(2.1 * saved + best)
    assert train(settings_for(tmp_path / "second", **tables)).outcome.step == 2


@pytest.mark.parametrize("content", [b"not a checkpoint", b""])
def test_a_broken_state_is_named(tmp_path, content):
    (tmp_path / "training_state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken: \w"):
        checkpoints.load_state(tmp_path)
    (tmp_path / "training_state.pt").unlink()
    with pytest.raises(CheckpointError, match="no training state"):
        checkpoints.load_state(tmp_path)
