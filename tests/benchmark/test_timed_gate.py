"""Ours and its variants are compared at the size and batch that are timed; a fault that comes with either costs their figures."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from auxmae_kernels import reference

from auxmae.benchmark import graphed, session
from auxmae.benchmark.cases import ModelCase
from auxmae.benchmark.suites import COMPILED, GRAPHED, OURS, PLAIN, RECOMPUTED, check_ours, model_suite, our_model, plain_model
from auxmae.benchmark.timed_gate import check_timed
from auxmae.model.mae import AuxMAE

CPU = torch.device("cpu")
CASE = ModelCase("tiny", 4, channels=5, image_size=32, patch_size=8, width=32, hidden=64, heads=4, depth=1, decoder_depth=1)


def check(case=CASE, dtype=torch.float32):
    return check_timed({OURS: our_model(case)}, plain_model(case), case.batch, CPU, dtype, learns=True)[OURS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (1, 5), (4, 1), (4, 13)])
def test_ours_is_the_plain_design(dtype, batch, channels):
    assert check(replace(CASE, batch=batch, channels=channels, depth=3), dtype) == ("ok", "")


@pytest.mark.parametrize(
    ("name", "applies"),
    [
        ("feed_forward", lambda x, **_: x.shape[0] >= 4),
        ("attention_block", lambda x, axis, **_: x.shape[1] >= 4 and axis == "patch"),
        ("attention_block", lambda x, slots, **_: x.shape[1] >= 4 and slots is not None),
        ("attention_block", lambda x, **_: x.shape[0] >= 4 and not torch.is_grad_enabled()),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sublayer_left_out_at_a_size_alone_is_found(monkeypatch, name, applies, dtype):
    right = getattr(reference, name)
    signature = inspect.signature(right)

    def fault(*arguments, **named):
        given = signature.bind(*arguments, **named)
        given.apply_defaults()
        return arguments[0] if applies(**given.arguments) else right(*arguments, **named)

    monkeypatch.setattr(reference, name, fault)
    assert check_ours(CASE, CPU, dtype) == ("ok", "")
    status, reason = check(dtype=dtype)
    assert status == "wrong"
    assert "at this size" in reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_wrong_at_a_size_alone_is_found(monkeypatch, dtype):
    right = reference.feed_forward

    def fault(x, *rest, **named):
        out = right(x, *rest, **named)
        return x + (out - x).detach() if x.shape[0] >= 4 else out

    monkeypatch.setattr(reference, "feed_forward", fault)
    assert check_ours(CASE, CPU, dtype) == ("ok", "")
    status, reason = check(dtype=dtype)
    assert (status, "gradient of" in reason) == ("wrong", True)


def test_a_loss_that_is_not_its_predictions_is_found(monkeypatch):
    right = reference.masked_loss
    monkeypatch.setattr(reference, "masked_loss", lambda *rest, **named: 1.01 * right(*rest, **named))
    status, reason = check()
    assert (status, "loss" in reason) == ("wrong", True)


def without_blocks(model, *_):
    for block in model.encoder:
        block.register_forward_hook(lambda module, inputs, output: 0.0 * output)


def measured(**options):
    rows = model_suite(CASE, device=CPU, repeats=1, peers=(PLAIN,), **options)
    return {(row["provider"], row["pass"]): row for row in rows}


@pytest.mark.parametrize(
    ("method", "option", "variant"),
    [("compile_blocks", "compile_too", COMPILED), ("set_recompute", "recompute_too", RECOMPUTED)],
)
def test_a_variant_that_computes_something_else_gets_no_figure(monkeypatch, method, option, variant):
    monkeypatch.setattr(AuxMAE, method, without_blocks)
    # The plain design's own variant is another test's matter.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    found = measured(**{option: True})
    row = found[OURS + variant, "step"]
    assert (row["status"], row["median_ms"], row["samples_ms"]) == ("wrong", None, [])
    assert "at this size" in row["reason"]
    assert found[OURS, "step"]["status"] == found[PLAIN, "step"]["status"] == "ok"
    assert session.wrong_providers({"rows": list(found.values())}) == [f"model · {CASE.name} · {OURS}{variant}"]


def test_a_gradient_that_recomputing_gets_wrong_is_found(monkeypatch):
    def detached(model, *_):
        model.encoder[0].register_forward_hook(lambda module, inputs, output: output.detach())

    monkeypatch.setattr(AuxMAE, "set_recompute", detached)
    row = measured(recompute_too=True)[OURS + RECOMPUTED, "step"]
    assert (row["status"], "gradient of" in row["reason"]) == ("wrong", True)


def test_a_graph_that_is_not_its_pass_gets_no_figure(monkeypatch):
    # Stand-ins for the capture: the pass twice over.
    monkeypatch.setattr(graphed, "capture_cuda_graph", lambda work, generators: lambda: (work(), work()))
    found = measured(graph_too=True)
    for name in (OURS, PLAIN):
        row = found[name + GRAPHED, "step"]
        assert (row["status"], row["median_ms"]) == ("wrong", None)
        assert "the CUDA graph is not the pass" in row["reason"]
        assert found[name, "step"]["status"] == "ok"


def test_a_graph_begins_from_the_state_before_its_comparison(monkeypatch):
    monkeypatch.setattr(graphed, "capture_cuda_graph", lambda work, generators: work)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    seen = []

    def work():
        seen.append(weight.detach().clone())
        loss = (weight * torch.rand(3)).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    graphed.replayed(work, CPU, optimizer)()
    *_, third, eager, first, counted = seen
    assert torch.equal(eager, first)
    assert torch.equal(eager, counted)
    assert not torch.equal(third, counted)
