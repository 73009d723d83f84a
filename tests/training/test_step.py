"""The training step never waits for the device: nothing in it reads a value, so that a GPU's queue stays full."""

from __future__ import annotations

import json
import math

import pytest
import torch
from auxmae_kernels import attention_reference, boundary, products
from torch.utils._python_dispatch import TorchDispatchMode

from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import SettingsTree
from auxmae.training import trainer
from auxmae.training.feed import Inputs
from auxmae.training.graph import WARMUP_STEPS
from auxmae.training.session import train
from auxmae.training.step import TrainingStep

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
            "eval": {"bootstrap": 100},
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


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("name", ["encoder.0.patch_attention.qkv.weight", "head.weight"])
def test_an_overflow_anywhere_skips_the_step_of_every_optimizer(name, clip_norm):
    """Muon has the first of these matrices, AdamW the other."""
    model = AuxMAE(3, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, image_size=16)
    step = TrainingStep(
        model, optimizer="muon", learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.95), clip_norm=clip_norm,
        precision="fp32", seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    image = torch.rand(2, 3, 16, 16)
    given = [Inputs(image, torch.ones_like(image, dtype=torch.bool), None)]

    def weights():
        return {key: value.detach().clone() for key, value in model.named_parameters()}

    step.compute(given)
    before = weights()
    overflow = model.get_parameter(name).register_hook(lambda gradient: gradient * math.inf)
    _, norm = step.compute(given)
    overflow.remove()
    assert not norm.isfinite()
    assert all(torch.equal(before[key], value) for key, value in weights().items())
    assert step.scaler.get_scale() == 2.0**9
    step.compute(given)
    after = weights()
    assert all(value.isfinite().all() for value in after.values())
    assert not any(torch.equal(before[key], after[key]) for key in ("encoder.0.patch_attention.qkv.weight", "head.weight"))


def test_the_log_of_a_step_that_overflowed_is_json(tmp_path, monkeypatch):
    compute = TrainingStep.compute
    monkeypatch.setattr(TrainingStep, "compute", lambda self, given: (compute(self, given)[0], torch.tensor(math.inf)))
    run = train(settings_for(tmp_path / "run")).run

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    steps = [record for record in records if record["kind"] == "train"]
    assert steps
    assert all(record["grad_norm"] is None and record["loss"] > 0 for record in steps)


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
