"""Trainings that start from the weights of others."""

from __future__ import annotations

import json

import pytest
import torch

from auxmae.build import build_data, build_model
from auxmae.errors import CheckpointError
from auxmae.training import session
from auxmae.training.run import create_run
from auxmae.training.session import new_model, train
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


GROUPS = [["B01", "B02", "B03", "B04"], ["B05", "B06", "B07", "B08"], ["B8A", "B09", "B10", "B11"], ["B12"]]
SWAPPED = [["B05", "B02", "B03", "B04"], ["B01", "B06", "B07", "B08"], *GROUPS[2:]]


@pytest.mark.parametrize(
    ("key", "saved", "here"),
    [
        ("heads", "4", "2"),
        ("decoder_heads", "1", "2"),
        ("embedding_activation", '"gelu"', '"none"'),
        ("output_activation", '"sigmoid"', '"none"'),
        ("channel_attention", '"slotwise"', '"aligned"'),
        ("channel_groups", json.dumps(SWAPPED), json.dumps(GROUPS)),
        ("channel_groups", json.dumps(SWAPPED), "4"),
    ],
)
def test_another_network_of_the_same_shapes_is_refused_by_its_setting(tmp_path, key, saved, here):
    decoder = {"decoder_width": 16, "decoder_heads": 2}

    def settings(folder, value):
        # What the sigmoid may give is what this scaling does.
        return settings_for(folder, model={**decoder, key: json.loads(value)}, scaling={"method": "percentile"})

    given = settings(tmp_path / "given", saved)
    build_model(given, build_data(given)).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError) as told:
        train(settings(tmp_path / "run", here), init_from=tmp_path / "model")
    assert told.value.message == f"{tmp_path / 'model'} was trained with model.{key} = {saved}, and here it is {here}"
    assert told.value.hint == f"set model.{key} = {saved}"
    assert not (tmp_path / "run").exists()


def test_what_is_no_part_of_the_network_may_differ(tmp_path):
    first = settings_for(tmp_path / "first", model={"channel_groups": 4})
    model = build_model(first, build_data(first))
    model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    stored = json.loads(config.read_text())
    del stored["channel_attention"]  # not in models of before
    config.write_text(json.dumps(stored))
    second = settings_for(
        tmp_path / "second",
        model={"channel_groups": GROUPS, "dropout": 0.5, "image_size": 32},
        masking={"strategy": "block", "ratio": 0.5},
        loss={"kind": "mse", "normalize": True},
        scaling={"method": "percentile"},
    )
    taken = new_model(second, build_data(second), tmp_path / "model").state_dict()
    assert all(torch.equal(taken[name], value) for name, value in model.state_dict().items())


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
