"""Probes during training: effective rank against its closed form, k-NN, the collapse watchdog, training left unchanged."""

from __future__ import annotations

import math
import multiprocessing

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from auxmae.build import build_data, build_model
from auxmae.evaluation.features import Features
from auxmae.settings.schema import SettingsTree
from auxmae.training.probe import Probe, effective_rank, knn_accuracy
from auxmae.training.run import open_run
from auxmae.training.session import _probe, train
from auxmae.training.watch import CollapseWatch
from auxmae.visuals.figures import batch_to_show
from tests.training.small_runs import Heard, folder_of_images, settings_for


def test_effective_rank_is_the_exponential_of_the_entropy():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 12)).astype(np.float32) + 100
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))
    assert effective_rank(x) == pytest.approx(math.exp(entropy(np.sqrt(eigenvalues))), rel=1e-6)
    # k orthogonal directions of equal strength have rank k, wherever the mean lies.
    basis = np.concatenate([np.eye(5, 9), -np.eye(5, 9)])
    assert effective_rank((3 * basis + 7).astype(np.float32)) == pytest.approx(5)
    line = np.outer(np.linspace(-1, 1, 20), np.ones(6)).astype(np.float32)
    assert effective_rank(line) == pytest.approx(1)
    assert effective_rank(np.full((20, 6), 0.1, dtype=np.float32)) == 0
    assert math.isnan(effective_rank(np.array([[1.0, math.nan]], dtype=np.float32)))


def test_neighbours_find_what_is_there_and_only_that():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = (rng.normal(size=(300, 4)) + 9 * np.eye(3, 4)[y]).astype(np.float32)
    groups = np.arange(300)
    parts = Features(x[:200], y[:200], groups[:200]), Features(x[200:], y[200:], groups[200:])
    assert knn_accuracy(*parts) > 0.97
    shuffled = Features(parts[0].x, rng.permutation(parts[0].y), parts[0].groups)
    assert knn_accuracy(shuffled, parts[1]) < 0.55
    # Of one label a class the nearest one decides: a vote of all three would be the same for every sample.
    assert knn_accuracy(Features(x[:3], y[:3], groups[:3]), parts[1]) > 0.8


def test_a_collapse_is_said_once():
    watch = CollapseWatch()
    assert watch.update(40.0) is None
    assert watch.update(10.0) is None
    assert "effective rank 3.0" in watch.update(3.0)
    again = CollapseWatch()
    again.load_state_dict(watch.state_dict())
    assert again == watch
    assert again.update(2.5) is None
    assert again.update(20.0) is None
    assert "nan" in again.update(math.nan)
    assert "1.5" in CollapseWatch().update(1.5)


def run(folder, listener=None, workers=0, **options):
    tree = {
        "data": {"source": "synthetic", "synthetic_images": 60, "samples_per_epoch": 0, "workers": workers},
        "model": {"patch_size": 16, "image_size": 32, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "dropout": 0.1},
        "train": {"batch_size": 8, "max_steps": 12, "figure_every": 0, **options},
        "run": {"folder": str(folder), "device": "cpu"},
    }
    return train(SettingsTree.model_validate(tree), reporter=listener)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_probes_are_logged_and_change_nothing(tmp_path, workers):
    listener = Heard()
    probed = run(tmp_path / "probed", listener, workers, probe_every=1)
    plain = run(tmp_path / "plain", workers=workers)
    records = [record for record in open_run(probed.run).metrics() if record["kind"] == "probe"]
    assert [record["epoch"] for record in records] == [0, 1, 2][: len(records)]
    assert len(records) >= 2
    for record in records:
        assert 0 <= record["knn_accuracy"] <= 1
        assert 1 < record["effective_rank"] <= 16
    assert any("effective rank" in text and "k-NN accuracy" in text for text in listener.messages)
    assert not [record for record in open_run(plain.run).metrics() if record["kind"] == "probe"]
    first, second = (open_run(result.run).load_model("last").state_dict() for result in (probed, plain))
    assert all(torch.equal(first[name], second[name]) for name in first)


def probe_for(settings):
    data = build_data(settings)
    return data, _probe(build_model(settings, data), data, settings, torch.device("cpu"))


def test_neighbours_are_looked_for_among_the_training_images_each_once(tmp_path):
    data, probe = probe_for(settings_for(tmp_path / "run", data={"synthetic_images": 30, "samples_per_epoch": 512}))
    assert data.train.samples == 512
    features = probe._labelled(probe.train)
    items = data.splits.train.items
    assert sorted(features.groups.tolist()) == [*range(len(items))]
    assert len({*features.pixels.tolist()}) == len(items)
    assert features.y.tolist() == data.collection.labels[items].tolist()
    # As they are: neither cut nor flipped, by whatever epoch the training is in.
    data.train.dataset.set_epoch(3)
    again = probe._labelled(probe.train)
    assert np.array_equal(again.pixels, features.pixels)
    assert data.train.dataset.epoch == 3


@pytest.mark.parametrize("samples", [0, 512])
def test_neighbours_in_scenes_are_of_the_windows_that_cover_the_training_blocks(tmp_path, samples):
    random = np.random.default_rng(0)
    np.save(tmp_path / "scene.npy", random.uniform(size=(3, 96, 96)).astype(np.float32))
    np.save(tmp_path / "labels.npy", random.integers(0, 3, size=(96, 96)))
    source = {"source": str(tmp_path / "scene.npy"), "labels": str(tmp_path / "labels.npy"), "layout": "scenes"}
    tables = {
        "data": {**source, "axes": "CHW", "block_size": 24, "samples_per_epoch": samples},
        "model": {"image_size": 16, "patch_size": 4},
    }
    data, probe = probe_for(settings_for(tmp_path / "run", **tables))
    windows = list(probe.train)
    held = sum(int((batch.label_map >= 0).sum()) for batch in windows)
    own = sum(int(height * width) for *_, height, width in data.splits.train.blocks.tolist())
    count = sum(len(batch.image) for batch in windows)
    # No pixel counts twice, and a probe takes no more windows than an epoch: here of a block's four, or one.
    blocks = len(data.splits.train.blocks)
    assert count == (4 * blocks if samples else blocks)
    assert held == own if samples else held < own


def test_images_that_were_read_are_kept_once(tmp_path):
    source = folder_of_images(tmp_path / "data", *"abcdefghij")
    data = build_data(settings_for(tmp_path / "run", data={"source": str(source), "axes": "CHW"}))
    for _ in data.train:
        pass
    kept = dict(data.train.dataset._cache)
    assert len(kept) == data.train.dataset.images
    measured = data.train.measured()
    assert sum(len(batch.image) for batch in measured) == len(kept)
    assert all(measured.dataset._cache[item] is image for item, image in kept.items())


@pytest.mark.slow
def test_no_process_waits_for_the_next_probe_or_picture(tmp_path):
    settings = settings_for(tmp_path / "run", data={"source": "synthetic", "synthetic_images": 30, "workers": 1})
    data = build_data(settings)
    before = {*multiprocessing.active_children()}
    probe = Probe(build_model(settings, data), data.train, data.validation, pool="mean", dense=False, device=torch.device("cpu"))
    assert "knn_accuracy" in probe()
    assert batch_to_show(data.validation, 2) is not None
    assert {*multiprocessing.active_children()} == before


def test_tensorboard_gets_the_probe(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tree = {
        "data": {"source": "synthetic", "synthetic_images": 40, "samples_per_epoch": 0},
        "model": {"patch_size": 16, "image_size": 32, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1},
        "train": {"batch_size": 8, "max_steps": 2, "figure_every": 0, "probe_every": 1},
        "run": {"folder": str(tmp_path / "run"), "device": "cpu", "tensorboard": True},
    }
    train(SettingsTree.model_validate(tree))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (logged,) = [record for record in open_run(tmp_path / "run").metrics() if record["kind"] == "probe"]
    for name in ("effective_rank", "knn_accuracy"):
        (event,) = events.Scalars(f"probe/{name}")
        assert (event.step, event.value) == (2, pytest.approx(logged[name], rel=1e-5))
