"""The device that the settings name is the one on which everything takes place."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from auxmae.benchmark import session
from auxmae.cli.app import app
from auxmae.device import configure, process_state_kept
from auxmae.settings.schema import SettingsTree


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs' bookkeeping, of which the first is current."""
    current = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.__setitem__(0, getattr(device, "index", device)))
    return current


@pytest.mark.parametrize(("name", "rank", "current"), [("cuda:1", None, 1), ("cuda", 1, 1), ("cuda", None, 0), ("cpu", None, 0)])
def test_the_chosen_gpu_is_current_and_in_the_end_the_callers_is_again(gpus, name, rank, current):
    with process_state_kept():
        configure(SettingsTree.model_validate({"run": {"device": name}}), rank)
        assert gpus == [current]
    assert gpus == [0]


def test_a_benchmark_times_on_the_chosen_gpu(gpus, monkeypatch):
    monkeypatch.setattr(session, "run", lambda *_, **__: {"current": gpus[0]})
    monkeypatch.setattr(session, "wrong_providers", lambda document: [])
    done = CliRunner().invoke(app, ["benchmark", "--device", "cuda:1", "--precision", "fp32", "--json"])
    assert json.loads(done.stdout) == {"current": 1}
