"""The loop: schedule, early stopping, atomic checkpoints, exact resume, run folders."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from auxmae import api
from auxmae.build import build_data, build_model
from auxmae.cli.app import app
from auxmae.errors import CheckpointError, DataError, SettingsError, UsageError
from auxmae.extractor import FeatureExtractor
from auxmae.locking import take_lock
from auxmae.model import mae
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import SettingsTree
from auxmae.training import checkpoint as checkpoints
from auxmae.training import run as runs
from auxmae.training import session, trainer
from auxmae.training.optimization import learning_rate_at, make_optimizers, parameter_groups, state_bytes
from auxmae.training.progress import EnduringReporter, SilentReporter
from auxmae.training.run import create_run, open_run
from auxmae.training.session import train
from auxmae.training.stopping import stopping_signals
from auxmae.training.watch import DivergedError, EarlyStopping, check_finite


def settings_for(folder, **tables):
    tree = {
        "data": {"source": "synthetic", "synthetic_images": 48},
        "model": {"patch_size": 16, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "dropout": 0.1},
        "train": {"batch_size": 8, "max_steps": 9, "figure_every": 0},
        "run": {"folder": str(folder), "device": "cpu"},
        "eval": {"bootstrap": 10},
    }
    for table, values in tables.items():
        tree[table] = {**tree.get(table, {}), **values}
    return SettingsTree.model_validate(tree)


def weights(run, which="last"):
    return open_run(run).load_model(which).state_dict()


def test_schedule_rises_then_falls():
    rates = [learning_rate_at(i / 100, peak=1.0, final=0.1, warmup=0.1) for i in range(101)]
    assert rates[5] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_norms_biases_and_embeddings_are_not_decayed():
    model = AuxMAE(3, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, channel_groups=2)
    decayed, others = (set(map(id, group["params"])) for group in parameter_groups(model, 0.1))
    for name, parameter in model.named_parameters():
        plain = "norm" in name or name.endswith("bias") or "channel_embedding" in name or "token" in name
        assert (id(parameter) in others) == plain, name
    assert not decayed & others


@pytest.mark.parametrize("kind", ["adamw", "adam", "muon"])
def test_memory_is_that_of_weights_gradients_and_moments(kind):
    model = AuxMAE(3, image_size=8, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    options = {"learning_rate": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "device": torch.device("cpu")}
    optimizers = make_optimizers(model, kind, **options)
    counted = state_bytes(model, optimizers)
    model(torch.rand(2, 3, 8, 8)).loss.backward()
    held = [tensor for parameter in model.parameters() for tensor in (parameter, parameter.grad)]
    for optimizer in optimizers:
        optimizer.step()
        held += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert counted == sum(tensor.numel() * tensor.element_size() for tensor in held)


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


@pytest.mark.parametrize(("optimizer", "asked_by"), [("adamw", signal.SIGTERM), ("muon", signal.SIGHUP)])
def test_resume_continues_exactly(tmp_path, monkeypatch, optimizer, asked_by):
    tables = {"train": {"optimizer": optimizer}}
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


def test_nohup_outlives_a_closed_terminal(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stopping_signals()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in stopping_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


def folder_of_images(folder, *names, constant=None):
    folder.mkdir(exist_ok=True)
    for name in names:
        random = np.random.default_rng(sum(name.encode()))
        array = random.uniform(size=(3, 32, 32)).astype(np.float32)
        if constant is not None:
            array[constant] = 7
        np.save(folder / f"{name}.npy", array)
    return folder


class Heard(SilentReporter):
    def __init__(self):
        self.messages = []

    def warning(self, text):
        self.message(f"warning: {text}")

    def message(self, text):
        self.messages.append(text)


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
    data = folder_of_images(tmp_path / "data", *"abcdefghij")
    run = train(settings_for(tmp_path / "run", data={"source": str(data)}, train={"max_steps": 2})).run
    settings = run / "settings.toml"
    settings.write_text(settings.read_text().replace("max_steps = 2", "max_steps = 3"))
    folder_of_images(data, "k")
    with pytest.raises(DataError, match=r"changed since .* was started with 10 images, .*32×32 px") as told:
        train(SettingsTree(), resume=run)
    assert f"--init-from {run}" in told.value.hint
    (data / "k.npy").unlink()
    np.save(data / "j.npy", np.ones((3, 40, 40)))
    with pytest.raises(DataError, match="changed since"):
        train(SettingsTree(), resume=run)
    folder_of_images(data, "j")
    assert train(SettingsTree(), resume=run).outcome.step == 3


@pytest.mark.parametrize("name", ["images.npy", "images.zarr"])
def test_a_run_goes_on_with_its_own_pixels_alone(tmp_path, name):
    """Written anew, in the same shape: refused where the pixels are others, whenever it was written."""
    place = tmp_path / name
    images = np.random.default_rng(0).normal(size=(20, 3, 32, 32)).astype(np.float32)

    def write(array):
        if name.endswith("npy"):
            np.save(place, array)
        else:
            zarr = pytest.importorskip("zarr")
            zarr.create_array(str(place), data=array, overwrite=True)

    write(images)
    settings = settings_for(tmp_path / "run", data={"source": str(place), "axes": "NCHW"}, train={"max_steps": 1})
    run = train(settings).run
    write(np.roll(images, 1, axis=0))
    with pytest.raises(DataError, match=r"changed since .* was started with 20 images"):
        train(SettingsTree(), resume=run)
    write(images)
    os.utime(place, (1e9, 1e9))
    assert train(SettingsTree(), resume=run).outcome.step == 1


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


def test_one_patch_cannot_be_hidden(tmp_path):
    data = folder_of_images(tmp_path / "data", *"abcdefghij")
    with pytest.raises(SettingsError, match=r"crops of 32 px are one patch of model\.patch_size = 32 px"):
        train(settings_for(tmp_path / "run", data={"source": str(data)}, model={"patch_size": 32}))


def test_a_run_without_a_checkpoint_cannot_go_on(tmp_path):
    run = create_run(str(tmp_path / "run"), settings_for(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="no checkpoint") as told:
        train(SettingsTree(), resume=run.path)
    assert "delete the folder" in told.value.hint


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


def test_init_from_takes_weights_only(tmp_path):
    first = train(settings_for(tmp_path / "first"))
    second = train(
        settings_for(tmp_path / "second", train={"max_steps": 1, "learning_rate": 1e-9, "min_learning_rate": 0}),
        init_from=first.run,
    )
    assert second.outcome.step == 1
    a, b = weights(first.run, "best"), weights(second.run)
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    with pytest.raises(CheckpointError, match=r"tensors differ|other shapes"):
        train(settings_for(tmp_path / "third", model={"width": 32}), init_from=first.run)
    with pytest.raises(CheckpointError, match=r"was trained on the channels B01, .*, the data has B04, B08"):
        train(settings_for(tmp_path / "fourth", data={"channels": ("B04", "B08")}), init_from=first.run)
    assert not (tmp_path / "fourth").exists()


def test_a_model_of_the_hub_of_other_sizes_is_refused_in_words(tmp_path, monkeypatch):
    import huggingface_hub

    def download(name, **options):
        assert name == "owner/name"
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    settings = settings_for(tmp_path / "run", train={"max_steps": 1})
    build_model(settings, build_data(settings)).save_pretrained(tmp_path / "hub")
    with pytest.raises(CheckpointError, match="other shapes"):
        train(settings_for(tmp_path / "wide", model={"width": 32}), init_from="owner/name")
    assert train(settings, init_from="owner/name").outcome.step == 1


def test_last_is_the_run_that_was_the_newest_when_training_was_asked_for(tmp_path, monkeypatch):
    """Another process of the same training may be quicker, and its run is then the newest."""
    monkeypatch.chdir(tmp_path)
    train(settings_for("runs/first", train={"max_steps": 1}))

    def slow(*arguments, **named):
        create_run("runs/newer", settings_for("runs/newer"))
        return build_data(*arguments, **named)

    monkeypatch.setattr(session, "build_data", slow)
    settings = settings_for("runs/second", train={"max_steps": 1, "learning_rate": 1e-9, "min_learning_rate": 0})
    assert train(settings, init_from="last").outcome.step == 1
    a, b = weights("runs/first", "best"), weights("runs/second")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_training_lowers_the_error(tmp_path):
    short = train(settings_for(tmp_path / "short", train={"max_steps": 1}))
    longer = train(settings_for(tmp_path / "long", train={"max_steps": 60, "learning_rate": 3e-3}, model={"dropout": 0.0}))
    assert longer.masked_l1 < 0.8 * short.masked_l1


def test_training_time_is_that_of_the_clock(tmp_path):
    """One that every look at moves on by a second: the training ends after so many looks, its rate having come down."""
    settings = settings_for(tmp_path / "run", train={"max_steps": 1000, "max_minutes": 0.5, "learning_rate": 1e-2})
    result = train(settings, clock=map(float, itertools.count()).__next__)
    assert 30 <= result.outcome.seconds < 40
    assert 5 <= result.outcome.step <= 30
    rates = [record["learning_rate"] for record in open_run(result.run).metrics() if record["kind"] == "train"]
    assert rates[-1] < 2e-3


def trained(folder, **tables):
    """The weights after two steps, which have to be finite; nothing is measured or drawn."""
    tables["train"] = {"max_steps": 2, **tables.get("train", {})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_conclude", lambda trained, *rest: None)
        train(settings_for(folder, **tables))
    found = weights(folder)
    assert all(value.isfinite().all() for value in found.values())
    return found


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def by_default(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("default") / "run")


@pytest.mark.parametrize(
    "tables",
    [
        {"data": {"channel_sampling": 0.5}},
        {"data": {"flips": False}},
        {"model": {"channel_groups": 4}},
        {"model": {"channel_embedding": "wavelength"}},
        {"model": {"channel_attention": "slotwise"}},
        {"model": {"embedding_activation": "gelu"}},
        {"model": {"output_activation": "sigmoid"}, "scaling": {"method": "percentile"}},
        {"masking": {"strategy": "shared"}},
        {"masking": {"strategy": "block"}},
        {"masking": {"strategy": "channel"}},
        {"masking": {"strategy": "mixed"}},
        {"masking": {"ratio": 0.5}},
        {"loss": {"kind": "mse"}},
        {"loss": {"kind": "smooth_l1"}},
        {"loss": {"normalize": True}},
        {"train": {"optimizer": "adam"}},
        {"train": {"optimizer": "muon"}},
        {"train": {"accumulation": 2}},
        {"train": {"weight_decay": 0.5}},
        {"train": {"clip_norm": 0.01}},
        {"train": {"betas": (0.5, 0.95)}},
        {"train": {"seed": 1}},
    ],
    ids=lambda tables: ", ".join(f"{key}={value}" for values in tables.values() for key, value in values.items()),
)
def test_every_option_trains_and_makes_a_difference(tmp_path, by_default, tables):
    assert not same(trained(tmp_path / "run", **tables), by_default)


def test_options_together_train_to_the_end(tmp_path):
    tables = {
        "model": {"channel_groups": 4, "channel_embedding": "wavelength"},
        "masking": {"strategy": "mixed"},
        "loss": {"kind": "smooth_l1", "normalize": True},
        "train": {"optimizer": "muon", "recompute": True, "accumulation": 2, "max_steps": 3},
    }
    assert math.isfinite(train(settings_for(tmp_path / "run", **tables)).masked_l1)


def test_recomputing_trains_the_same_weights(tmp_path, by_default, monkeypatch):
    recomputed, original = [], mae.checkpoint

    def counted(*arguments, **options):
        recomputed.append(arguments[0])
        return original(*arguments, **options)

    monkeypatch.setattr(mae, "checkpoint", counted)
    assert same(trained(tmp_path / "run", train={"recompute": True}), by_default)
    assert len(recomputed) == 2 * 2  # two blocks, two steps


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_too_little_space_for_checkpoints_is_said_before_training(tmp_path, monkeypatch, optimizer):
    tables = {"train": {"max_steps": 2, "optimizer": optimizer}, "model": {"width": 128}}
    first = train(settings_for(tmp_path / "first", **tables)).run
    saved = sum(path.stat().st_size for path in (first / "checkpoints" / "last").iterdir())
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=2**41, free=free))
    free = int(1.5 * saved)
    with pytest.raises(CheckpointError, match=rf"two checkpoints.* [\d.]+ MiB more, and {free / 2**20:.1f} MiB are free"):
        train(settings_for(tmp_path / "second", **tables))
    assert not (tmp_path / "second").exists()
    # One of the two is there.
    assert train(SettingsTree(), resume=first).outcome.step == 2
    free = int(2.1 * saved)
    assert train(settings_for(tmp_path / "second", **tables)).outcome.step == 2


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


def test_a_broken_state_is_named(tmp_path):
    (tmp_path / "training_state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="broken"):
        checkpoints.load_state(tmp_path)
    (tmp_path / "training_state.pt").unlink()
    with pytest.raises(CheckpointError, match="no training state"):
        checkpoints.load_state(tmp_path)


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(optimizer):
    from auxmae.model.mae import AuxMAE
    from auxmae.training.step import TrainingStep

    def step():
        torch.manual_seed(0)
        model = AuxMAE(2, image_size=8, patch_size=4, width=8, depth=1, heads=2)
        options = {"optimizer": optimizer, "learning_rate": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.95), "clip_norm": 1.0}
        return TrainingStep(model, **options, precision="fp32", seed=3, device=torch.device("cpu"))

    state = step().state_dict()
    own = step()
    assert own.load_state_dict(state)
    if optimizer == "adamw":
        # As checkpoints of before have it.
        before = {key: value for key, value in state.items() if key != "optimizers"}
        assert step().load_state_dict({**before, "optimizer": state["optimizers"][0]})
    state["masks"] = torch.arange(16, dtype=torch.uint8)  # as long as that of a GPU's generator
    one, two = step(), step()
    assert not one.load_state_dict(state)
    assert not two.load_state_dict(state)
    assert torch.equal(one.masks.get_state(), two.masks.get_state())
    assert not torch.equal(one.masks.get_state(), own.masks.get_state())


def test_warnings_survive_quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path / "data", *"abcdefghij", constant=1)
    command = ["train", "--data", "data", "--quiet", "--preset", "tiny", "--max-steps", "1", "--set", "model.patch_size=16"]
    done = CliRunner().invoke(app, [*command, "--set", "data.axes=CHW", "--device", "cpu", "--output", "run"])
    assert done.exit_code == 0, done.output
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: C2: constant")]
    assert "note:" not in done.output
    assert "step" not in done.output
