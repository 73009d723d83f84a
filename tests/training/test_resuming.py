"""A run that goes on: exactly there, also after a failure, and on another device."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from auxmae.cli.app import app
from auxmae.data import loading
from auxmae.errors import CheckpointError, ResourceError, SettingsError, UsageError
from auxmae.model.mae import AuxMAE
from auxmae.settings import write_settings
from auxmae.settings.schema import SettingsTree
from auxmae.training import trainer
from auxmae.training.checkpoint import load_state, random_state, set_random_state
from auxmae.training.run import create_run, open_run
from auxmae.training.session import train
from auxmae.training.step import TrainingStep
from tests.training.small_runs import Heard, settings_for, weights


def test_what_the_environment_says_of_a_run_that_goes_on_is_told(tmp_path, monkeypatch):
    run = train(settings_for(tmp_path / "run", train={"max_steps": 1})).run
    heard = Heard()
    monkeypatch.setenv("AUXMAE_RUN__THREADS", "1")
    monkeypatch.setenv("AUXMAE_TRAIN__MAX_STEPS", "2")
    assert train(SettingsTree(), resume=run, reporter=heard).outcome.step == 1
    words = "AUXMAE_RUN__THREADS, AUXMAE_TRAIN__MAX_STEPS: not read, since the run has its own settings"
    assert f"note: {words}" in heard.messages
    monkeypatch.setenv("AUXMAE_TRAIN__MAXSTEPS", "2")
    with pytest.raises(SettingsError, match=r"AUXMAE_TRAIN__MAXSTEPS: unknown variable.*'AUXMAE_TRAIN__MAX_STEPS'"):
        train(SettingsTree(), resume=run)


@pytest.mark.parametrize(
    ("optimizer", "asked_by", "workers"),
    [
        ("adamw", signal.SIGTERM, 0),
        ("muon", signal.SIGHUP, 0),
        pytest.param("adamw", signal.SIGTERM, 1, marks=pytest.mark.slow),
    ],
)
def test_resume_continues_exactly(tmp_path, monkeypatch, optimizer, asked_by, workers):
    tables = {"train": {"optimizer": optimizer}, "data": {"workers": workers}}
    whole = train(settings_for(tmp_path / "whole", **tables))
    steps = []
    original = trainer.Trainer._train_step

    def until(self, batches):
        out = original(self, batches)
        steps.append(self.step)
        if self.step == 4:
            os.kill(os.getpid(), asked_by)
        return out

    monkeypatch.setattr(trainer.Trainer, "_train_step", until)
    stopped = train(settings_for(tmp_path / "parts", **tables))
    assert stopped.outcome.reason == "interrupted"
    assert stopped.outcome.step == 4
    monkeypatch.undo()
    resumed = train(SettingsTree(), resume=tmp_path / "parts")
    assert resumed.outcome.step == 9
    a, b = weights(whole.run), weights(resumed.run)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert resumed.masked_l1 == whole.masked_l1
    logged = [record["step"] for record in open_run(resumed.run).metrics() if record["kind"] == "train"]
    assert logged == sorted(set(logged))


def test_tensorboard_has_every_step_once_after_a_crash(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    original = trainer.Trainer._train_step

    def until(self, batches):
        if self.step == 6:
            raise MemoryError
        return original(self, batches)

    def steps():
        events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
        return [event.step for event in events.Scalars("train/loss")]

    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    monkeypatch.setattr(trainer.Trainer, "_train_step", until)
    with pytest.raises(MemoryError):  # saved at the end of the epoch, after four steps
        train(settings_for(tmp_path / "run", run={"tensorboard": True}, data={"samples_per_epoch": 0}))
    assert steps() == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr(trainer.Trainer, "_train_step", original)
    train(SettingsTree(), resume=tmp_path / "run")
    assert steps() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_run_that_stopped_early_concludes_at_once(tmp_path):
    tables = {"train": {"max_steps": 100, "patience": 1, "tolerance": 0.9}, "data": {"samples_per_epoch": 0}}
    stopped = train(settings_for(tmp_path / "run", **tables))
    before = weights(stopped.run)
    assert (stopped.outcome.step, stopped.outcome.reason) == (8, "stopped early")  # two epochs of four steps
    resumed = train(SettingsTree(), resume=stopped.run)
    assert (resumed.outcome.step, resumed.outcome.reason) == (8, "stopped early")
    assert resumed.masked_l1 == stopped.masked_l1
    after = weights(stopped.run)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("how", ["short of memory", pytest.param("killed", marks=pytest.mark.slow)])
def test_what_was_learned_before_the_machine_failed_a_loader_is_saved(tmp_path, monkeypatch, how):
    """In the second batch of a step, whose first one is not lost either."""
    tables = {"train": {"accumulation": 2, "max_steps": 14}, "data": {"samples_per_epoch": 0}}
    whole = train(settings_for(tmp_path / "whole", **tables))
    with monkeypatch.context() as patched:
        if how == "killed":
            tables["data"]["workers"] = 1
            original = trainer.Trainer._train_step

            def step(self, batches):
                if self.step == 3:
                    for worker in multiprocessing.active_children():
                        worker.kill()
                return original(self, batches)

            patched.setattr(trainer.Trainer, "_train_step", step)
        else:
            load, loaded = loading._Source.load, []

            def short(self, request):
                if self.dataset.augment:
                    loaded.append(request)
                    if len(loaded) == 8:
                        raise ResourceError("image.tif: cannot allocate memory", hint="free some")
                return load(self, request)

            patched.setattr(loading._Source, "load", short)
        with pytest.raises(ResourceError) as told:
            train(settings_for(tmp_path / "run", **tables))
    run = open_run(tmp_path / "run")
    step = load_state(run.checkpoint("last"))["step"]
    assert 3 <= step < 14
    assert f"step {step} is saved; go on with: auxmae train --resume {run.path}" in told.value.hint
    assert ("a loader process was killed" if how == "killed" else "image.tif") in told.value.message
    assert ("data.workers" if how == "killed" else "free some") in told.value.hint
    assert train(SettingsTree(), resume=run.path).outcome.step == 14
    a, b = weights(whole.run), weights(run.path)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("steps", [6, 9])
def test_a_validation_that_the_machine_failed_is_made_up_for(tmp_path, monkeypatch, steps):
    """The second one: at the end of the training, and before."""
    tables = {"train": {"max_steps": steps, "validate_every": 1}, "data": {"samples_per_epoch": 0}}
    whole = train(settings_for(tmp_path / "whole", **tables))
    validate, calls = trainer.Trainer.validate, []

    def short(self):
        calls.append(self.step)
        if len(calls) == 2:
            raise ResourceError("image.tif: cannot allocate memory", hint="free some")
        return validate(self)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "validate", short)
        with pytest.raises(ResourceError) as told:
            train(settings_for(tmp_path / "run", **tables))
    assert "is from before" in told.value.hint
    train(SettingsTree(), resume=tmp_path / "run")
    losses = [
        [(entry["step"], entry["loss"]) for entry in open_run(run).metrics() if entry["kind"] == "validation"]
        for run in (whole.run, tmp_path / "run")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 1


def test_a_training_whose_loader_fails_at_once_can_go_on_too(tmp_path, monkeypatch):
    def dead(self, requests):
        raise ResourceError("a loader process was killed")

    with monkeypatch.context() as patched:
        patched.setattr(loading.Loader, "_load", dead)
        with pytest.raises(ResourceError, match="step 0 is saved"):
            train(settings_for(tmp_path / "run"))
    assert train(SettingsTree(), resume=tmp_path / "run").outcome.step == 9


@pytest.mark.parametrize(
    ("tables", "steps", "reason"),
    [({"max_steps": 5}, 5, "finished"), ({"max_steps": 100, "patience": 1, "tolerance": 0.9}, 8, "stopped early")],
    ids=["last", "early"],
)
def test_a_stop_that_is_asked_for_in_the_validation_that_ends_training_is_heeded(tmp_path, monkeypatch, tables, steps, reason):
    original = trainer.Trainer.validate

    def asked(self):
        if self.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(trainer.Trainer, "validate", asked)
    stopped = train(settings_for(tmp_path / "run", train=tables, data={"samples_per_epoch": 0}))
    assert (stopped.outcome.step, stopped.outcome.reason) == (steps, "interrupted")
    assert not (stopped.run / "result.json").exists()
    resumed = train(SettingsTree(), resume=stopped.run)
    assert (resumed.outcome.step, resumed.outcome.reason) == (steps, reason)


def test_a_fast_dev_run_is_a_run_of_its_own(tmp_path):
    with pytest.raises(UsageError, match="overwrite the run's results"):
        train(SettingsTree(), resume=tmp_path, fast_dev_run=True)
    trial = train(settings_for(tmp_path / "trial"), fast_dev_run=True)
    with pytest.raises(UsageError, match="holds a trial by --fast-dev-run") as refused:
        train(settings_for(tmp_path / "trial"))
    assert "resume" not in refused.value.hint
    assert trial.outcome.step == 3
    before = weights(trial.run)
    with pytest.raises(UsageError, match="a trial of a few steps, by --fast-dev-run") as told:
        train(SettingsTree(), resume=trial.run)
    assert "train anew" in told.value.hint
    after = weights(trial.run)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_ctrl_c_reaches_loader_processes_too_and_the_run_is_saved(tmp_path, repository):
    write_settings(settings_for(tmp_path / "run", data={"workers": 1}, train={"max_steps": 10**6}), tmp_path / "some.toml")
    process = subprocess.Popen(
        [sys.executable, "-m", "auxmae", "train", "--config", "some.toml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), str(repository / "kernels")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "and saved; go on with: auxmae train --resume" in said
    assert (tmp_path / "run" / "checkpoints" / "last").is_dir()


@pytest.mark.parametrize("how", ["as before", "more images", "fewer processes"])
def test_losses_of_other_validations_are_not_compared(tmp_path, how):
    tables = {"train": {"max_steps": 1, "validation_samples": 2}, "data": {"validation_fraction": 0.2}}
    run = train(settings_for(tmp_path / "run", **tables)).run
    path, settings = run / "checkpoints" / "last" / "training_state.pt", run / "settings.toml"
    state = torch.load(path, weights_only=True)
    state["stopping"] = {"best": 1e-9, "reference": 1e-9, "waited": 7}
    if how == "fewer processes":
        # As checkpoints of before have it.
        state["others"] = [{"masks": state["masks"], "random": state["random"]}]
        del state["validated"]
    torch.save(state, path)
    written = settings.read_text().replace("max_steps = 1", "max_steps = 2")
    settings.write_text(written.replace("validation_samples = 2", "validation_samples = 0") if how == "more images" else written)
    heard = Heard()
    assert train(SettingsTree(), resume=run, reporter=heard).outcome.step == 2
    anew = how != "as before"
    assert len([text for text in heard.messages if text.startswith("note: validation is on other images")]) == anew
    loss = open_run(run).metrics()[-1]["loss"]
    expected = {"best": loss, "reference": loss, "waited": 0} if anew else {"best": 1e-9, "reference": 1e-9, "waited": 8}
    assert load_state(run / "checkpoints" / "last")["stopping"] == expected
    assert any("(best so far)" in text for text in heard.messages) == anew


def test_a_run_without_a_checkpoint_cannot_go_on(tmp_path):
    run = create_run(str(tmp_path / "run"), settings_for(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="no checkpoint") as told:
        train(SettingsTree(), resume=run.path)
    assert "delete the folder" in told.value.hint


def test_a_run_with_its_best_checkpoint_alone_is_not_to_be_deleted(tmp_path):
    run = train(settings_for(tmp_path / "run", train={"max_steps": 1})).run
    shutil.rmtree(run / "checkpoints" / "last")
    with pytest.raises(CheckpointError, match="last checkpoint is missing") as told:
        train(SettingsTree(), resume=run)
    assert f"--init-from {run}" in told.value.hint
    assert "delete" not in told.value.hint
    assert train(settings_for(tmp_path / "new", train={"max_steps": 1}), init_from=run).outcome.step == 1


def small_step(optimizer="adamw"):
    torch.manual_seed(0)
    model = AuxMAE(2, image_size=8, patch_size=4, width=8, depth=1, heads=2)
    options = {"optimizer": optimizer, "learning_rate": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.95), "clip_norm": 1.0}
    return TrainingStep(model, **options, precision="fp32", seed=3, device=torch.device("cpu"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(optimizer):
    state = small_step(optimizer).state_dict()
    own = small_step(optimizer)
    assert own.load_state_dict(state)
    if optimizer == "adamw":
        # As checkpoints of before have it.
        before = {key: value for key, value in state.items() if key != "optimizers"}
        assert small_step(optimizer).load_state_dict({**before, "optimizer": state["optimizers"][0]})
    state["masks"] = torch.arange(16, dtype=torch.uint8)  # as long as that of a GPU's generator
    one, two = small_step(optimizer), small_step(optimizer)
    assert not one.load_state_dict(state)
    assert not two.load_state_dict(state)
    assert torch.equal(one.masks.get_state(), two.masks.get_state())
    assert not torch.equal(one.masks.get_state(), own.masks.get_state())


@pytest.mark.parametrize(
    ("saved_by", "kept_on"), [(False, "meta"), (True, "cpu")], ids=["from MPS to a GPU", "from a GPU to MPS"]
)
def test_the_count_of_steps_is_where_the_device_wants_it(saved_by, kept_on):
    """With the optimiser's steps counted on the device (capturable) or on the host; the device stands in for a GPU."""
    parameter = torch.nn.Parameter(torch.ones(3))
    before = torch.optim.AdamW([parameter], capturable=False)
    parameter.grad = torch.ones(3)
    before.step()
    saved = before.state_dict()
    saved["param_groups"][0]["capturable"] = saved_by
    step = small_step()
    there = torch.nn.Parameter(torch.ones(3, device="meta"))
    step.optimizers = [torch.optim.AdamW([there], lr=0.5, capturable=not saved_by)]
    step.load_state_dict({**step.state_dict(), "optimizers": [saved]})
    state, (group,) = step.optimizers[0].state[there], step.optimizers[0].param_groups
    assert (state["step"].device.type, state["exp_avg"].device.type) == (kept_on, "meta")
    assert (group["capturable"], group["lr"]) == (not saved_by, 0.5)


def test_a_run_goes_on_on_a_machine_that_needs_other_settings(tmp_path):
    """As one of a GPU in bf16 does on a CPU; the folder says what it went on with, and from where on."""
    run = open_run(train(settings_for(tmp_path / "run", train={"max_steps": 2})).run)
    settings = run.path / "settings.toml"
    changes = {
        "max_steps = 2": "max_steps = 4",
        'device = "cpu"': 'device = "cuda:7"',
        'precision = "auto"': 'precision = "bf16"',
    }
    for old, new in changes.items():
        assert old in settings.read_text()
        settings.write_text(settings.read_text().replace(old, new))
    moved, before = run.settings, settings.read_bytes()
    command = ["train", "--resume", str(run.path)]
    with pytest.raises(SettingsError, match="the device is to be 'cuda:7'"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    with pytest.raises(SettingsError, match=r"train\.precision = 'bf16'"):
        CliRunner().invoke(app, [*command, "--device", "cpu"], catch_exceptions=False)
    assert settings.read_bytes() == before
    options = ["--device", "cpu", "--set", "train.precision=fp32", "--set", "data.workers=0"]
    done = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert "note: run.device = 'cpu' in place of 'cuda:7' from here on" in said
    assert "data.workers" not in said
    assert json.loads((run.path / "result.json").read_text())["steps"] == 4
    now = moved.model_copy(
        update={
            "run": moved.run.model_copy(update={"device": "cpu"}),
            "train": moved.train.model_copy(update={"precision": "fp32"}),
        }
    )
    assert run.settings == now
    (noted,) = [record for record in run.metrics() if record["kind"] == "settings"]
    assert noted == {
        "kind": "settings",
        "step": 2,
        "before": {"run.device": "cuda:7", "train.precision": "bf16"},
        "after": {"run.device": "cpu", "train.precision": "fp32"},
    }


def test_all_else_of_a_run_that_goes_on_is_as_before(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"--set train\.epochs cannot be given .*write it into the run's settings\.toml in place of train\.max_steps, and",
    ):
        train(SettingsTree(), resume=tmp_path, overrides=["run.device=cpu", "train.epochs=3"])
    for name in ("data.source=x", "data.exclude=['a']", "run.tensorboard=true", "eval.stride=2"):
        with pytest.raises(UsageError, match=r"write it into the run's settings\.toml; then give --resume alone"):
            train(SettingsTree(), resume=tmp_path, overrides=[name])
    for name in ("train.epoch=3", "trian.epochs=3", "run.folder=x"):
        with pytest.raises(UsageError, match="--init-from"):
            train(SettingsTree(), resume=tmp_path, overrides=[name])
    with pytest.raises(UsageError, match=r"--set loss\.kind cannot be given with it .*--init-from"):
        train(SettingsTree(), resume=tmp_path, overrides=["loss.kind=mse"])
    with pytest.raises(UsageError, match="of a run that goes on"):
        train(SettingsTree(), overrides=["run.device=cpu"])


class Generators:
    """Stands in for the global generators of a kind of device: one each, whose state can be read and set."""

    def __init__(self, count):
        self.states = [torch.full((16,), number, dtype=torch.uint8) for number in range(count)]

    def get_rng_state(self, device=None):
        return self.states[getattr(device, "index", 0) or 0].clone()

    def set_rng_state(self, state, device=None):
        self.states[getattr(device, "index", 0) or 0] = state


@pytest.mark.parametrize(("kind", "saved_on", "taken_up_on"), [("mps", "mps", "mps"), ("cuda", "cuda:1", "cuda:0")])
def test_dropout_goes_on_on_mps_and_on_a_machine_with_fewer_gpus(monkeypatch, kind, saved_on, taken_up_on):
    before, after = Generators(2), Generators(1)
    drawn = torch.arange(16, dtype=torch.uint8)
    before.set_rng_state(drawn, torch.device(saved_on))
    monkeypatch.setattr(torch, kind, before)
    state = random_state(torch.device(saved_on))
    monkeypatch.setattr(torch, kind, after)
    assert set_random_state(state, torch.device(taken_up_on))
    assert torch.equal(after.get_rng_state(torch.device(taken_up_on)), drawn)


def test_dropout_of_a_checkpoint_of_before_goes_on_where_it_holds_the_device(monkeypatch):
    generators = Generators(3)
    monkeypatch.setattr(torch, "cuda", generators)
    states = [torch.full((16,), 7 + number, dtype=torch.uint8) for number in range(2)]
    state = {"torch": torch.get_rng_state(), "cuda": states}
    assert set_random_state(state, torch.device("cpu"))
    assert set_random_state(state, torch.device("cuda"))
    assert set_random_state(state, torch.device("cuda:1"))
    assert not set_random_state(state, torch.device("cuda:2"))
    assert [int(each[0]) for each in generators.states] == [7, 8, 2]
    monkeypatch.setattr(torch, "mps", Generators(1))
    assert not set_random_state(state, torch.device("mps"))


@pytest.mark.parametrize(
    ("masks", "dropout", "words"),
    [
        (True, False, "lacks the random state of cpu: other dropout is drawn"),
        (False, True, "of another kind of device: other masks and dropout are drawn"),
        (True, True, None),
    ],
)
def test_what_is_drawn_anew_is_said(tmp_path, monkeypatch, masks, dropout, words):
    run = train(settings_for(tmp_path / "run", train={"max_steps": 1})).run
    monkeypatch.setattr(trainer, "set_random_state", lambda state, device: dropout)
    monkeypatch.setattr(trainer.TrainingStep, "load_state_dict", lambda self, state: masks)
    heard = Heard()
    train(SettingsTree(), resume=run, reporter=heard)
    told = [text for text in heard.messages if "drawn from here on" in text]
    assert told == [] if words is None else words in told[0]
    assert len(told) == (words is not None)
