"""The model suite's rows, and its optional providers."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from auxmae_kernels import products

from auxmae.benchmark import graphed, suites
from auxmae.benchmark.cases import ModelCase
from auxmae.benchmark.joint import vit_mae
from auxmae.benchmark.suites import FUSED, GRAPHED, JOINT, OURS, PLAIN, model_suite
from auxmae.errors import MissingDependencyError

CPU = torch.device("cpu")
KEYS = {"suite", "case", "provider", "pass", "median_ms", "samples_ms", "peak_bytes", "images_per_second"}
TINY = ModelCase(
    "tiny", 2, channels=3, image_size=32, patch_size=8, width=32, hidden=64, heads=4, depth=1, decoder_depth=1
)  # fmt: skip
# Large enough for activations, and not weights, to be most of the memory.
MODERATE = ModelCase("moderate", 8, channels=6, width=64, hidden=128, heads=4, depth=4, decoder_depth=2)


def by_key(rows):
    return {(row["pass"], row["provider"]): row for row in rows}


def test_rows_are_complete():
    rows = model_suite(TINY, device=CPU, repeats=3, peers=(PLAIN, JOINT))
    providers = (OURS, PLAIN, JOINT)
    assert set(by_key(rows)) == {(name, provider) for name in ("forward", "step") for provider in providers}
    assert len(rows) == 6
    for row in rows:
        assert set(row) >= KEYS
        assert (row["suite"], row["case"]) == ("model", "tiny")
        assert len(row["samples_ms"]) == 3
        assert min(row["samples_ms"]) > 0
        assert row["median_ms"] == sorted(row["samples_ms"])[1]
        assert row["images_per_second"] == pytest.approx(2000 / row["median_ms"])
        # At least the weights.
        assert row["peak_bytes"] > 4 * row["parameters"]
    found = by_key(rows)
    assert found["step", OURS]["parameters"] == found["step", PLAIN]["parameters"]


def test_a_step_is_charged_for_gradients_and_optimiser():
    found = by_key(model_suite(TINY, device=CPU, repeats=1, peers=(PLAIN,)))
    for provider in (OURS, PLAIN):
        forward, step = found["forward", provider], found["step", provider]
        # Gradients and AdamW's two moments.
        assert step["peak_bytes"] > forward["peak_bytes"] + 2 * 4 * step["parameters"]


def test_recompute_takes_less_memory():
    found = by_key(model_suite(MODERATE, device=CPU, repeats=1, peers=(), recompute_too=True))
    recomputed = f"{OURS} (recompute)"
    assert found["step", recomputed]["peak_bytes"] < 0.8 * found["step", OURS]["peak_bytes"]
    # Without gradients there is nothing to compute again.
    assert ("forward", recomputed) not in found


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_provider():
    found = by_key(model_suite(TINY, device=CPU, repeats=1, peers=(PLAIN,), compile_too=True))
    for name in ("forward", "step"):
        for provider in (OURS, PLAIN):
            assert found[name, f"{provider} (compiled)"]["status"] == "ok"
            for key in ("parameters", "flops"):
                assert found[name, f"{provider} (compiled)"][key] == found[name, provider][key]


def test_no_case_is_eager_for_what_others_had_compiled(monkeypatch):
    """The tracing is the real one, what it traces is run as it is."""

    def compile_blocks(model):
        for block in (*model.encoder, *model.decoder):
            block.compile(backend="eager", dynamic=False)

    monkeypatch.setattr(suites.AuxMAE, "compile_blocks", compile_blocks)
    monkeypatch.setattr(suites, "_flops", lambda *_: 1)
    monkeypatch.setattr(suites, "_verdicts", lambda *_, **__: {})
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=3):
        for channels in (2, 3, 4):
            case = replace(TINY, channels=channels)
            found = by_key(model_suite(case, device=CPU, repeats=1, peers=(), compile_too=True, passes=("forward",)))
            assert found["forward", f"{OURS} (compiled)"]["status"] == "ok", found["forward", f"{OURS} (compiled)"]["reason"]


def test_a_step_is_three_forward_passes_of_arithmetic():
    found = by_key(model_suite(TINY, device=CPU, repeats=1, peers=(PLAIN, JOINT)))
    for provider in (PLAIN, JOINT):
        # Gradients of inputs and of weights; the image needs none.
        assert 2.5 < found["step", provider]["flops"] / found["forward", provider]["flops"] <= 3.2
        assert found["step", provider]["images_per_second"] > 0


def test_arithmetic_is_counted_whichever_library_multiplies(monkeypatch):
    monkeypatch.setattr(products, "smallest", lambda: 0)
    counts = []
    for library in ("0", "1"):
        monkeypatch.setenv("AUXMAE_ONEDNN", library)
        counts.append([row["flops"] for row in model_suite(TINY, device=CPU, repeats=1, peers=())])
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


def test_arithmetic_is_counted_whichever_kernels_were_asked_for(monkeypatch):
    # Without a GPU the Triton kernels cannot even run, and the counter would see nothing of them.
    monkeypatch.setenv("AUXMAE_KERNELS", "triton")
    assert suites._flops(TINY, OURS, "step", CPU) > 0
    assert os.environ["AUXMAE_KERNELS"] == "triton"


def test_one_image_too_many_for_the_memory_ends_nothing(monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(suites, "flops", too_much)
    rows = list(model_suite(TINY, device=CPU, repeats=1, peers=(PLAIN,), passes=("forward",)))
    assert [(row["status"], row["flops"], row["flops_per_second"]) for row in rows] == [("ok", None, None)] * 2


def test_the_plain_designs_arithmetic_is_that_of_its_formulas():
    case = TINY
    (row,) = [
        row for row in model_suite(case, device=CPU, repeats=1, peers=(PLAIN,), passes=("forward",)) if row["provider"] == PLAIN
    ]
    d, hidden, n = case.width, case.hidden, (case.image_size // case.patch_size) ** 2
    pixels = case.patch_size**2
    total = case.channels * n * d * pixels * 2  # embedding and head

    def block(tokens):
        maps = case.channels * tokens * (8 * d * d + 4 * d * hidden)
        return maps + case.channels * tokens * 2 * d * (tokens + case.channels)

    visible = 1 + n // 4
    total += block(visible) + case.channels * visible * d * d + block(1 + n)
    assert row["flops"] == pytest.approx(2 * case.batch * total, rel=1e-6)


def test_a_provider_that_cannot_run_gets_no_figure_and_the_others_do(monkeypatch):
    def broken(*_, **__):
        model = torch.nn.Linear(1, 1)
        model.forward = lambda image: torch.zeros(2, 3) @ torch.zeros(2, 3)
        return model

    monkeypatch.setattr(suites, "JointMAE", broken)
    monkeypatch.setattr(suites, "_flops", lambda *_: 1)
    found = by_key(model_suite(TINY, device=CPU, repeats=1, peers=(PLAIN, JOINT)))
    for name in ("forward", "step"):
        row = found[name, JOINT]
        assert (row["status"], row["median_ms"], row["samples_ms"], row["images_per_second"]) == ("failed", None, [], None)
        assert "shapes" in row["reason"]
        assert found[name, PLAIN]["median_ms"] > 0


def test_a_graph_is_captured_once_and_replayed(monkeypatch):
    """With a stand-in for the capture; the real one is measured in the GPU tests."""
    captured = []
    monkeypatch.setattr(graphed, "capture_cuda_graph", lambda work, generators: captured.append(work) or work)
    found = by_key(model_suite(TINY, device=CPU, repeats=3, peers=(PLAIN,), graph_too=True))
    assert len(captured) == 4  # forward pass and step, ours and the plain design's: a graph is no merit of ours
    for name, provider in itertools.product(("forward", "step"), (OURS, PLAIN)):
        row, plain = found[name, provider + GRAPHED], found[name, provider]
        assert (row["status"], len(row["samples_ms"]), row["peak_bytes"]) == ("ok", 3, None)
        assert (row["flops"], row["parameters"]) == (plain["flops"], plain["parameters"])


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_vit_mae_with_fused_channels():
    found = by_key(model_suite(TINY, device=CPU, repeats=1, peers=(FUSED,)))
    assert found["step", FUSED]["status"] == "ok"
    assert found["step", FUSED]["flops"] < found["step", OURS]["flops"]


def test_a_peers_package_that_cannot_be_imported_is_told(monkeypatch, tmp_path):
    (tmp_path / "transformers.py").write_text("raise ImportError('of another\\nrelease')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    with pytest.raises(MissingDependencyError, match="cannot be imported: of another release"):
        vit_mae(suites.QUICK)
