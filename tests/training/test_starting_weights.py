"""Trainings that start from the weights of others."""

from __future__ import annotations

import pytest
import torch

from auxmae.build import build_data, build_model
from auxmae.errors import CheckpointError
from auxmae.training import session
from auxmae.training.run import create_run
from auxmae.training.session import train
from tests.training.small_runs import settings_for, weights


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
