"""What only a GPU can show: clocks, graphs, launches, and that Triton kernels pass the benchmark's gate."""

from __future__ import annotations

import time

import pytest
import torch
from auxmae_kernels import dispatch

from auxmae.benchmark import kernel_suite
from auxmae.benchmark.device import graph_ms, kernel_clock, occupation
from auxmae.benchmark.kernel_cases import Shape, kernel_cases
from auxmae.benchmark.suites import GRAPHED, OURS, QUICK, model_suite

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
SHAPES = [Shape("small", 4, 13, 64, 16, 128, 8), Shape("odd", 3, 5, 48, 8, 96, 4), Shape("many", 2, 70, 64, 8, 128, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_kernel_passes_the_gate(dtype, shape):
    device = torch.device("cuda")
    checked = set()
    for name, build in kernel_cases([shape], device, dtype).items():
        case = build()
        providers = kernel_suite._providers(case, device, False)
        kernel_suite._check(case, providers, kernel_suite._upstream(case), dtype)
        for provider in (kernel_suite.OURS, kernel_suite.EAGER, kernel_suite.TRITON):
            assert providers[provider].status == "ok", (name, provider, providers[provider].reason)
        checked.add(case.function)
    assert checked >= dispatch.TRITON_FUNCTIONS


def test_the_kernel_suite_times_every_pass():
    """With the device's own time of each, and as a graph, ours included."""
    chosen = {"axial_attention/patch/small", "feed_forward/small"}.__contains__
    suite = kernel_suite.kernel_suite(SHAPES, device=torch.device("cuda"), dtype=torch.bfloat16, repeats=2, chosen=chosen)
    rows = [row for rows in suite for row in rows]
    assert {row["pass"] for row in rows} == set(kernel_suite.PASSES)
    for row in rows:
        if row["provider"] in (kernel_suite.OURS, kernel_suite.EAGER, kernel_suite.TRITON):
            label = (row["case"], row["provider"], row["pass"])
            assert row["median_ms"] > 0, label
            assert row["graph_ms"] is not None, label
            # Caches are warm in a graph, and what is left of the host's time is not in it.
            assert row["graph_ms"] < 2 * row["median_ms"] + 0.05, label


def test_clocks_and_counts():
    device = torch.device("cuda")
    x = torch.randn(2048, 2048, device=device)

    def work():
        return (x + 1).mul_(2)

    assert 0 < kernel_clock(device)(work) < 100
    assert graph_ms(work, device) > 0
    found = occupation(work, device)
    assert found["kernel_launches"] == 2
    assert 0 <= found["device_idle_share"] < 1
    assert 0 <= found["host_idle_share"] <= 1
    # The host's time to launch is not the kernel's.
    assert kernel_clock(device)(lambda: (time.sleep(2e-3), x.add_(1))) < 1
    # A host synchronisation cannot be captured; whatever draws afterwards still can.
    assert graph_ms(lambda: float(x.sum()), device) is None
    assert torch.rand(3, device=device).max() > 0
    assert graph_ms(lambda: torch.rand(3, device=device), device) > 0


@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_the_model_suite_in_bf16(monkeypatch, kernels):
    monkeypatch.setenv("AUXMAE_KERNELS", kernels)
    rows = model_suite(QUICK, device=torch.device("cuda"), repeats=1, dtype=torch.bfloat16, graph_too=True)
    assert OURS + GRAPHED in {row["provider"] for row in rows}
    for row in rows:
        assert row["status"] == "ok", (row["provider"], row["reason"])
        assert row["kernel_launches"] > 0
