"""The choice of tiles, and autotuning with a clock of our own."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from auxmae_kernels import tuning
from auxmae_kernels.tuning import Tile


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_tuned", {})


@pytest.mark.parametrize("arch", tuning.ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0, 1, 5, 13, 16, 17, 33, 64, 65, 128, 129, 4096])
def test_a_tile_holds_a_sequence_or_it_streams(arch, length, dtype):
    for head_tile in tuning.HEADS:
        tile = tuning.attention_tile(length, head_tile, dtype, arch)
        assert (tile.rows >= length) == (length <= tuning.longest_packed(head_tile, dtype, arch))
        assert tuning.attention_candidates(length, head_tile, dtype, arch)


def test_tiles_waste_few_rows():
    rows = {length: tuning.attention_tile(length, 32, torch.bfloat16, "sm_90").rows for length in (5, 13, 16, 17, 64)}
    assert rows == {5: 16, 13: 16, 16: 16, 17: 64, 64: 64}


def measured(times, calls):
    def measure(work):
        return work() or times[calls[-1]]

    return measure


def test_the_fastest_tile_is_measured_once_and_kept(monkeypatch):
    calls = []
    times = {Tile(16, 1): 3.0, Tile(32, 2): 1.0}
    for _ in range(2):
        assert tuning.fastest("a", list(times), calls.append, measured(times, calls)) == Tile(32, 2)
    assert len(calls) == 2
    monkeypatch.setattr(tuning, "_tuned", {})
    # A new process reads the file.
    assert tuning.fastest("a", list(times), calls.append, measured(times, calls)) == Tile(32, 2)
    assert len(calls) == 2
    assert json.loads(tuning.cache_file().read_text())["a"]["rows"] == 32


def test_tiles_that_fail_are_passed_over_and_a_broken_cache_is_no_fault():
    tuning.cache_file().parent.mkdir(parents=True)
    tuning.cache_file().write_text("{broken")

    def run(tile):
        if tile.rows == 16:
            raise ValueError("does not fit")

    assert tuning.fastest("b", [Tile(16, 1), Tile(32, 1)], run, lambda work: work() or 1.0) == Tile(32, 1)
    with pytest.raises(RuntimeError, match="no tile works"):
        tuning.fastest("c", [Tile(16, 1)], run, lambda work: work() or 1.0)


def test_autotuning_is_only_on_request(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.delenv("AUXMAE_AUTOTUNE", raising=False)
    assert not tuning.autotuning(gpu)
    monkeypatch.setenv("AUXMAE_AUTOTUNE", "1")
    assert tuning.autotuning(gpu)
    assert not tuning.autotuning(torch.device("cpu"))
