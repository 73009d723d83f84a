"""The loop: it learns, for as long as was asked, and does what is due when it is."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch

from auxmae import api
from auxmae.data.digests import digest_weights
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import SettingsTree
from auxmae.training import session, trainer
from auxmae.training.run import open_run
from auxmae.training.session import train
from auxmae.training.watch import DivergedError, EarlyStopping, check_finite
from tests.training.small_runs import Heard, settings_for


def test_early_stopping_waits_and_tolerates():
    stopping = EarlyStopping(patience=2, tolerance=0.01)
    assert stopping.update(1.0) == (True, False)
    assert stopping.update(0.999) == (True, False)
    assert stopping.update(1.1) == (False, True)
    again = EarlyStopping(2, 0.01)
    again.load_state_dict(stopping.state_dict())
    assert again == stopping
    with pytest.raises(DivergedError, match="step 7"):
        check_finite(math.nan, 7, "nothing was saved yet")


@pytest.mark.parametrize(("batches", "accumulation", "steps"), [(1, 2, 2), (5, 1, 20), (5, 3, 6), (1, 9, 1)])
def test_four_epochs_are_at_most_four_passes(batches, accumulation, steps):
    tree = SettingsTree.model_validate({"train": {"epochs": 4, "max_steps": 0, "accumulation": accumulation}})
    assert session.make_plan(tree, batches, graphs=False).steps == steps


def test_what_is_due_every_few_epochs_is_done_where_steps_span_epochs(tmp_path):
    """One batch an epoch and two a step: every step ends two epochs, three steps six."""
    result = train(
        settings_for(
            tmp_path / "run",
            data={"samples_per_epoch": 0, "synthetic_images": 16},
            train={"accumulation": 2, "max_steps": 3, "validate_every": 2, "figure_every": 4, "probe_every": 3},
        )
    )
    records = open_run(result.run).metrics()
    assert [(record["step"], record["epoch"]) for record in records if record["kind"] == "validation"] == [(1, 1), (2, 3), (3, 5)]
    assert [record["step"] for record in records if record["kind"] == "probe"] == [2, 3]
    assert [path.name for path in (result.run / "figures").glob("*epoch*")] == ["reconstruction-epoch-0004.png"]


def test_where_nothing_is_held_out_the_picture_has_all_channels(tmp_path):
    data = {"test_fraction": 0.0, "validation_fraction": 0.0, "channel_sampling": 0.5}
    run = train(settings_for(tmp_path / "run", data=data, train={"max_steps": 2, "figure_every": 1})).run
    assert (run / "figures" / "reconstruction.png").is_file()


def test_held_out_images_without_a_valid_pixel_say_nothing(tmp_path, monkeypatch):
    original, losses = trainer.Trainer.validate, []

    def compared(self):
        [first, *_] = self.validation
        empty = first._replace(image=torch.zeros_like(first.image), valid=torch.zeros_like(first.valid))
        some = first.valid.clone()
        some[1:] = False
        few = first._replace(valid=some)
        for batches in ([first], [first, empty], [empty, empty], [few, empty], [few]):
            self.validation = batches
            losses.append(original(self))
        self.validation = [empty]
        return original(self)

    monkeypatch.setattr(trainer.Trainer, "validate", compared)
    told = Heard()
    run = train(settings_for(tmp_path / "run", train={"max_steps": 12, "validate_every": 1}), reporter=told).run
    first, with_empty, none, few_and_empty, few = losses
    assert first == with_empty
    assert none is None
    assert few == few_and_empty
    assert len(losses) == 5  # of the first validation: later ones would hear the same
    assert sum("no pixel held out for validation is valid" in text for text in told.messages) == 1
    assert not any(record["kind"] == "validation" for record in open_run(run).metrics())
    assert not open_run(run).checkpoint("best").exists()


def test_the_rate_is_neither_that_before_the_first_step_nor_that_after_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    changes = {"learning_rate": 1e-2, "min_learning_rate": 1e-4, "warmup_fraction": 0.0}
    for steps in (1, 3):
        run = train(settings_for(tmp_path / str(steps), train={**changes, "max_steps": steps})).run
        rates = [record["learning_rate"] for record in open_run(run).metrics() if record["kind"] == "train"]
        cosine = [0.5 * (1 + math.cos(math.pi * (step + 1) / (steps + 1))) for step in range(steps)]
        assert rates == pytest.approx([1e-4 + (1e-2 - 1e-4) * part for part in cosine])


def test_training_lowers_the_error(tmp_path):
    short = train(settings_for(tmp_path / "short", train={"max_steps": 1}))
    longer = train(settings_for(tmp_path / "long", train={"max_steps": 60, "learning_rate": 3e-3}, model={"dropout": 0.0}))
    assert longer.masked_l1 < 0.8 * short.masked_l1


def test_training_time_is_that_of_the_clock(tmp_path):
    """One that every look at moves on by a second: the training ends after so many looks, its rate having come down."""
    settings = settings_for(tmp_path / "run", train={"max_steps": 1000, "max_minutes": 0.5, "learning_rate": 1e-2})
    told = Heard()
    result = train(settings, clock=map(float, itertools.count()).__next__, reporter=told)
    assert f"train.max_minutes = 0.5 ended the training after {result.outcome.step} of 1000 steps" in "\n".join(told.messages)
    assert 30 <= result.outcome.seconds < 40
    assert 5 <= result.outcome.step <= 30
    rates = [record["learning_rate"] for record in open_run(result.run).metrics() if record["kind"] == "train"]
    assert rates[-1] < 2e-3


def test_a_training_that_ran_out_of_time_goes_on_as_it_says(tmp_path):
    settings = settings_for(tmp_path / "run", train={"max_steps": 30, "max_minutes": 0.2})
    heard = Heard()
    result = train(settings, clock=map(float, itertools.count()).__next__, reporter=heard)
    (told,) = [text for text in heard.messages if "train.max_minutes = 0.2 ended" in text]
    file, zero = re.search(r"raise it in (\S+) \((\d): no limit\)", told).groups()
    assert told.endswith(f"auxmae train --resume {result.run}")
    written = Path(file).read_text()
    Path(file).write_text(written.replace("max_minutes = 0.2", f"max_minutes = {zero}"))
    longer = train(SettingsTree(), resume=result.run, reporter=heard)
    assert result.outcome.step < longer.outcome.step == 30
    assert len([text for text in heard.messages if "ended the training" in text]) == 1


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_report_says_where_its_evaluation_is_of_earlier_weights(tmp_path, checkpoint):
    run = train(settings_for(tmp_path / "run", train={"max_steps": 2, "validate_every": 1})).run
    weights = digest_weights(AuxMAE.from_pretrained(run / "checkpoints" / checkpoint).state_dict())
    (run / "eval.json").write_text(json.dumps({"details": {"checkpoint": checkpoint, "model": weights}}))
    file = run / "settings.toml"
    told = []
    for steps in (2, 8):
        file.write_text(re.sub(r"max_steps = \d+", f"max_steps = {steps}", file.read_text()))
        train(SettingsTree(), resume=run)
        told.append("earlier weights" in (run / "report.html").read_text())
    assert told == [False, True]


@pytest.mark.parametrize("patience", [0, 2])
def test_a_training_that_stopped_early_goes_on_as_it_says(tmp_path, patience):
    tables = {"train": {"max_steps": 12, "patience": 1, "tolerance": 0.9}, "data": {"samples_per_epoch": 0}}
    said = []
    for resume in (None, tmp_path / "run"):
        heard = Heard()
        assert train(settings_for(tmp_path / "run", **tables), resume=resume, reporter=heard).outcome.step == 8
        said += [text for text in heard.messages if "ended the training" in text]
    # One that is taken up again, and stops at once, says so too.
    first, again = said
    assert first == again
    assert first.startswith(
        "note: train.patience = 1 ended the training after 8 of 12 steps (1 validation without an improvement of "
        "train.tolerance = 0.9)"
    )
    file, zero = re.search(r"raise it in (\S+) \((\d): never ends early\)", first).groups()
    assert first.endswith(f"auxmae train --resume {tmp_path / 'run'}")
    assert zero == "0"
    written = Path(file).read_text()
    Path(file).write_text(written.replace("patience = 1", f"patience = {patience}"))
    heard = Heard()
    assert train(SettingsTree(), resume=tmp_path / "run", reporter=heard).outcome.step == 12
    assert not [text for text in heard.messages if "ended the training" in text]


def test_from_python_with_plain_dicts(tmp_path):
    result = api.train(
        {
            "data": {"synthetic_images": 40},
            "model": {"patch_size": 16, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1},
            "train": {"batch_size": 4, "max_steps": 2},
            "run": {"folder": str(tmp_path / "run")},
        }
    )
    assert AuxMAE.from_pretrained(result.run).num_features == 16
