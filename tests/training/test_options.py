"""Every option trains, and makes a difference."""

from __future__ import annotations

import math

import pytest
import torch

from auxmae.model import mae
from auxmae.training import session
from auxmae.training.session import train
from tests.training.small_runs import settings_for, weights


def trained(folder, **tables):
    """The weights after two steps, which have to be finite; nothing is measured or drawn."""
    tables["train"] = {"max_steps": 2, **tables.get("train", {})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "conclude", lambda *_: None)
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
