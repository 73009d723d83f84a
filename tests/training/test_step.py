"""The training step never waits for the device: nothing in it reads a value, so that a GPU's queue stays full."""

from __future__ import annotations

import pytest
import torch
from auxmae_kernels import attention_reference, boundary, products
from torch.utils._python_dispatch import TorchDispatchMode

from auxmae.settings.schema import SettingsTree
from auxmae.training import trainer
from auxmae.training.graph import WARMUP_STEPS
from auxmae.training.session import train

# What makes the host wait on a GPU: reading a value, or a result whose size depends on values.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}


class Synchronisations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.overloadpacket.__name__
        if name in WAITING:
            self.found.append(name)
        return function(*arguments, **(named or {}))


def settings_for(folder, device="cpu", patch_size=16, **data):
    return SettingsTree.model_validate(
        {
            "data": {"source": "synthetic", "synthetic_images": 48, **data},
            "model": {"patch_size": patch_size, "width": 16, "depth": 2, "heads": 2, "decoder_depth": 1},
            "train": {"batch_size": 8, "max_steps": 4, "figure_every": 0},
            "run": {"folder": str(folder), "device": device},
            "eval": {"bootstrap": 10},
        }
    )


@pytest.fixture
def counted(monkeypatch):
    """Synchronisations of every step."""
    # Asked once a process, on a CPU: whether oneDNN multiplies right.
    products.onednn()
    steps = []
    original = trainer.Trainer._train_step

    def step(self, batches):
        # Loading is the host's work; what is read there never was on the device.
        batch = [next(batches) for _ in range(self.plan.accumulation)]
        with Synchronisations() as mode:
            result = original(self, iter(batch))
        steps.append(mode.found)
        return result

    monkeypatch.setattr(trainer.Trainer, "_train_step", step)
    return steps


def test_no_step_waits(counted, tmp_path):
    train(settings_for(tmp_path / "run"))
    assert counted == [[]] * 4


def test_no_step_waits_where_tokens_are_gathered_by_place(counted, tmp_path, monkeypatch):
    """More than 384 visible tokens an image, and values are not read, as on a GPU."""
    gathered = []
    original = attention_reference._gathered_channel_attention
    monkeypatch.setattr(boundary, "reading_is_free", lambda tensor: False)
    monkeypatch.setattr(
        attention_reference,
        "_gathered_channel_attention",
        lambda parts, *rest: (gathered.append(parts[0].shape[:3]), original(parts, *rest))[1],
    )
    train(settings_for(tmp_path / "run", patch_size=4))
    assert counted == [[]] * 4
    assert torch.Size([8, 13, 65]) in gathered


def test_the_count_finds_a_value_that_is_read(counted, tmp_path, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_

    def reading(*arguments):
        norm = clip(*arguments)
        assert float(norm) >= 0
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", reading)
    train(settings_for(tmp_path / "run"))
    assert counted == [["_local_scalar_dense"]] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("cuda_graphs", ["off", "on"])
@pytest.mark.parametrize(
    ("patch_size", "kernels"),
    [
        (16, "torch"),
        (4, "torch"),
        pytest.param(4, "triton", marks=pytest.mark.xdist_group("kernels of a small model")),
    ],
)
def test_no_step_waits_for_the_gpu(tmp_path, monkeypatch, patch_size, kernels, cuda_graphs):
    monkeypatch.setenv("AUXMAE_KERNELS", kernels)
    original = trainer.Trainer._train_step

    def step(self, batches):
        if self.step <= WARMUP_STEPS:
            # Tables are built, libraries set up, and the graph captured.
            return original(self, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(self, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trainer.Trainer, "_train_step", step)
    settings = settings_for(tmp_path / "run", device="cuda", patch_size=patch_size)
    changes = {"cuda_graphs": cuda_graphs, "max_steps": WARMUP_STEPS + 4}
    train(settings.model_copy(update={"train": settings.train.model_copy(update=changes)}))
