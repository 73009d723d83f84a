"""The model suite's correctness check: ours passes in every type, and a fault in any part costs its figures."""

from __future__ import annotations

import sys

import pytest
import torch
from auxmae_kernels import KernelUnavailableError, attention_reference, dispatch, reference

from auxmae.benchmark.cases import ModelCase
from auxmae.benchmark.model_gate import LOOKED_UP, counterparts
from auxmae.benchmark.suites import OURS, PLAIN, RECOMPUTED, check_ours, model_suite, our_model, plain_model
from auxmae.model.embedding import sincos_positions

CPU = torch.device("cpu")
TINY = ModelCase("tiny", 2, channels=3, image_size=32, patch_size=8, width=32, hidden=64, heads=4, depth=1, decoder_depth=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 5])
def test_ours_is_the_plain_design_with_its_weights(dtype, channels):
    case = ModelCase("odd", 2, channels=channels, image_size=24, patch_size=4, width=32, hidden=48, heads=2)
    before = torch.get_rng_state()
    assert check_ours(case, CPU, dtype) == ("ok", "")
    assert torch.equal(torch.get_rng_state(), before)


def test_kernels_that_were_asked_for_need_not_run_on_the_cpu(monkeypatch):
    """On a GPU they compute what is timed, and not the fp64 that ours is compared in first."""
    asked = []

    def choose(function, dtype, device, key):
        asked.append((dispatch.backend(), dtype))
        if asked[-1] == ("triton", torch.float64):
            raise KernelUnavailableError("the tensors are on the CPU")
        return "torch"

    monkeypatch.setenv("AUXMAE_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "choose", choose)
    assert check_ours(TINY, CPU, torch.float32) == ("ok", "")
    assert set(asked) == {("torch", torch.float64), ("triton", torch.float32)}


def test_every_parameter_has_a_counterpart():
    ours, plain = dict(our_model(TINY).named_parameters()), counterparts(plain_model(TINY))
    assert {name: tensor.numel() for name, tensor in ours.items()} == {name: tensor.numel() for name, tensor in plain.items()}


def no_attention(x, *_, **__):
    return 0.0 * x


def scaled(function):
    return lambda *arguments, **named: 1.000001 * function(*arguments, **named)


@pytest.mark.parametrize(
    ("module", "name", "fault", "reason"),
    [
        (reference, "attention_block", no_attention, ""),
        (reference, "feed_forward", scaled(reference.feed_forward), ""),
        (reference, "embed_visible", scaled(reference.embed_visible), ""),
        (reference, "assemble", scaled(reference.assemble), ""),
        (reference, "masked_loss", scaled(reference.masked_loss), ""),
        (attention_reference, "_joint_channel_attention", scaled(attention_reference._joint_channel_attention), LOOKED_UP),
    ],
)
def test_a_fault_in_a_part_is_found(monkeypatch, module, name, fault, reason):
    monkeypatch.setattr(module, name, fault)
    status, said = check_ours(TINY, CPU, torch.float32)
    assert status == "wrong"
    assert reason in said


@pytest.mark.parametrize(("name", "value"), [("NORM_EPS", 1e-3), ("sincos_positions", scaled(sincos_positions))])
def test_a_changed_constant_or_table_is_found(monkeypatch, name, value):
    # Everywhere, as if its definition were another: the plain design must not follow.
    for module in [module for path, module in sys.modules.items() if path.startswith("auxmae.") and hasattr(module, name)]:
        monkeypatch.setattr(module, name, value)
    assert check_ours(TINY, CPU, torch.float32)[0] == "wrong"


def test_a_fault_without_gradients_alone_is_found(monkeypatch):
    right = reference.attention_block

    def fault(x, *arguments, **named):
        return right(x, *arguments, **named) if torch.is_grad_enabled() else x

    monkeypatch.setattr(reference, "attention_block", fault)
    status, said = check_ours(TINY, CPU, torch.float32)
    assert (status, "no gradients" in said) == ("wrong", True)


def test_a_wrong_model_gets_no_figure_and_the_others_do(monkeypatch):
    monkeypatch.setattr(reference, "attention_block", no_attention)
    for row in model_suite(TINY, device=CPU, repeats=1, peers=(PLAIN,), recompute_too=True):
        if row["provider"] in (OURS, OURS + RECOMPUTED):
            assert (row["status"], row["median_ms"], row["samples_ms"]) == ("wrong", None, [])
            assert "with the weights of the plain published design" in row["reason"]
        else:
            assert row["status"] == "ok"


def test_a_model_that_cannot_be_checked_gets_no_figure(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of registers")

    monkeypatch.setattr(reference, "attention_block", fail)
    assert check_ours(TINY, CPU, torch.float32) == ("failed", "out of registers")
