"""What only a GPU can show: clocks, graphs, launches, and that Triton kernels pass the benchmark's gate."""

from __future__ import annotations

import pytest
import torch
from auxmae_kernels import dispatch

from auxmae.benchmark.device import graph_ms, kernel_clock, occupation
from auxmae.benchmark.kernel_cases import Shape
from auxmae.benchmark.kernel_suite import EAGER, OURS, TRITON, kernel_suite
from auxmae.benchmark.suites import GRAPHED, QUICK, model_suite

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
SHAPES = [Shape("small", 4, 13, 64, 16, 128, 8), Shape("odd", 3, 5, 48, 8, 96, 4), Shape("many", 2, 70, 64, 8, 128, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_kernel_passes_the_gate(dtype):
    rows = [
        row for rows in kernel_suite(SHAPES, device=torch.device("cuda"), dtype=dtype, repeats=1) for row in rows
    ]  # fmt: skip
    for row in rows:
        if row["provider"] in (OURS, EAGER, TRITON):
            assert row["status"] == "ok", (row["case"], row["provider"], row["reason"])
    measured = {row["function"] for row in rows if row["provider"] == TRITON}
    assert measured >= dispatch.TRITON_FUNCTIONS


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
    # A host synchronisation cannot be captured.
    assert graph_ms(lambda: float(x.sum()), device) is None


def test_the_model_suite_in_bf16():
    rows = model_suite(QUICK, device=torch.device("cuda"), repeats=1, dtype=torch.bfloat16, graph_too=True)
    assert OURS + GRAPHED in {row["provider"] for row in rows}
    for row in rows:
        assert row["status"] == "ok", (row["provider"], row["reason"])
        assert row["kernel_launches"] > 0
