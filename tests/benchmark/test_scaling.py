"""The scaling suite's axes and its break-even; the data suite's verdict; idle time; ceilings."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from auxmae.benchmark import data_suite, scaling
from auxmae.benchmark.device import SAMPLE_MS, idle_share, kernel_clock
from auxmae.benchmark.roofline import ceilings
from auxmae.benchmark.scaling import AXES, break_even, curves, scaling_cases, size_of
from auxmae.benchmark.suites import JOINT, OURS
from auxmae.build import build_data
from auxmae.data.loading import Batch
from auxmae.settings.schema import SettingsTree

CPU = torch.device("cpu")


def rows(ours, joint, axis="channels"):
    return [
        {
            "suite": "scaling", "axis": axis, "provider": provider, "median_ms": value,
            "sizes": {"image_size": 64, "patch_size": 8, "channels": size, "width": 32},
        }
        for provider, values in ((OURS, ours), (JOINT, joint)) for size, value in values.items()
    ]  # fmt: skip


def test_the_break_even_is_where_the_curves_cross():
    # Joint attention grows with the square: equal at 16.
    ours = {size: 16.0 * size for size in (4, 8, 32, 64)}
    joint = {size: 1.0 * size**2 for size in (4, 8, 32, 64)}
    assert break_even(rows(ours, joint), "channels") == pytest.approx(16)


def test_no_break_even_without_a_crossing():
    always = {4: 1.0, 8: 2.0}
    slower = {4: 3.0, 8: 5.0}
    assert break_even(rows(always, slower), "channels") is None
    assert break_even(rows(slower, always), "channels") is None
    assert break_even([], "channels") is None
    # Joint attention ran out of memory before they crossed.
    assert break_even(rows({4: 2.0, 8: 3.0}, {4: 1.0, 8: None}), "channels") is None


def test_a_win_between_losses_is_no_break_even():
    def crossing(*gains):
        return break_even(rows(dict.fromkeys((4, 16, 64, 256), 1.0), dict(zip((4, 16, 64, 256), gains, strict=True))), "channels")

    assert crossing(0.5, 2.0, 2.0, 0.5) is None
    assert crossing(0.5, 2.0, 0.5, 0.5) is None
    assert crossing(2.0, 0.5, 2.0, 2.0) == pytest.approx(32)
    assert crossing(0.5, 2.0, 0.5, 2.0) == pytest.approx(128)


def test_along_an_axis_nothing_else_changes():
    for quick in (True, False):
        for axis, cases in scaling_cases(CPU, quick=quick).items():
            assert axis in AXES
            others = {"channels": {(c.image_size, c.width) for c in cases}, "positions": {(c.channels, c.width) for c in cases},
                      "width": {(c.channels, c.image_size) for c in cases}}[axis]  # fmt: skip
            assert len(others) == 1
            assert len({case.name for case in cases}) == len(cases) > 1


def test_a_short_run_gives_curves(monkeypatch):
    case = scaling.ModelCase("C=2", 1, 2, 16, 8, width=16, hidden=16, heads=2, depth=1, decoder_depth=1)
    cases = [case, replace(case, name="C=4", channels=4)]
    monkeypatch.setattr(scaling, "scaling_cases", lambda *_, **__: {"channels": cases})
    found = [row for rows in scaling.scaling_suite(device=CPU, repeats=1) for row in rows]
    assert [row["pass"] for row in found] == ["step"] * 2 * len(cases)
    assert {provider: [size for size, _ in line] for provider, line in curves(found, "channels").items()} == {
        OURS: [case.channels for case in cases],
        JOINT: [case.channels for case in cases],
    }
    assert size_of(found[0], "positions") == 4


def test_the_data_suite_names_the_slower_side():
    settings = SettingsTree.model_validate(
        {"data": {"synthetic_images": 24}, "train": {"batch_size": 4}, "model": {"depth": 1, "decoder_depth": 1}}
    )
    found = data_suite.data_suite(settings, build_data(settings), device=CPU, repeats=2, steps=1)
    assert [row["provider"] for row in found] == [data_suite.LOADER, data_suite.MODEL, data_suite.TOGETHER]
    for row in found:
        assert len(row["samples_ms"]) == 2
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["median_ms"])
    for row, median in zip(found, (9.0, 2.0, 10.0), strict=True):
        row["median_ms"] = median
    assert data_suite.limit(found).startswith("the loader limits training")
    found[1]["median_ms"] = 20.0
    assert data_suite.limit(found).startswith("the model limits training")


class Queue:
    """A loader on a clock of its own: a batch takes `cost` seconds to make, and up to four wait."""

    def __init__(self, now, cost):
        self.now, self.cost = now, cost

    def __iter__(self):
        ended, taken = 0.0, [0.0] * 4
        while True:
            ended = max(ended, taken[-4]) + self.cost
            self.now[0] = max(self.now[0], ended)
            taken.append(self.now[0])
            yield Batch(torch.zeros(4, 1, 1, 1), torch.ones(4, 1, 1, 1, dtype=torch.bool), torch.zeros(4))

    def state_dict(self):
        return {"epoch": 0, "position": 0}


@pytest.mark.parametrize(("loader", "model"), [(10.0, 2.0), (10.0, 9.0), (2.0, 10.0)])
def test_what_loader_processes_made_meanwhile_is_no_speed(monkeypatch, loader, model):
    now = [0.0]

    class Slow(torch.nn.Linear):
        def forward(self, image, **_):
            now[0] += model
            return SimpleNamespace(loss=super().forward(image).sum())

    monkeypatch.setattr(data_suite, "build_model", lambda *_: Slow(1, 1))
    monkeypatch.setattr("auxmae.benchmark.data_suite.time.perf_counter", lambda: now[0])
    settings = SettingsTree.model_validate({"data": {"workers": 2}})
    found = data_suite.data_suite(settings, SimpleNamespace(train=Queue(now, loader)), device=CPU, repeats=2)
    assert [row["median_ms"] / 1e3 for row in found] == pytest.approx([loader, model, max(loader, model)])


def test_idle_share():
    assert idle_share([]) is None
    assert idle_share([(0, 4), (6, 10)]) == pytest.approx(0.2)
    # Kernels on two streams, one inside another, in any order.
    assert idle_share([(5, 10), (0, 6), (1, 2)]) == 0
    assert idle_share([(0, 1), (0.5, 1), (3, 4)]) == pytest.approx(0.5)


def test_ceilings_are_rates_of_what_was_timed():
    found = ceilings(CPU, torch.float32, repeats=2, quick=True)
    for rate, amount, samples in (
        ("copy_bytes_per_second", "copy_bytes", "copy_samples_ms"),
        ("matmul_flops_per_second", "matmul_flops", "matmul_samples_ms"),
    ):
        assert len(found[samples]) == 2
        assert found[rate] == pytest.approx(1e3 * found[amount] / min(found[samples]))


def test_a_sample_of_short_work_lasts_long_enough_though_its_first_call_was_slow(monkeypatch):
    now, calls = [0.0], [0]
    monkeypatch.setattr("auxmae.benchmark.device.time.perf_counter", lambda: now[0])

    def work():
        calls[0] += 1
        now[0] += 5e-3 if calls[0] == 1 else 1e-5

    clock = kernel_clock(CPU)
    clock(work)
    before = calls[0]
    assert clock(work) == pytest.approx(0.01)
    assert (calls[0] - before) * 0.01 >= SAMPLE_MS


@pytest.mark.parametrize("lasts", [1e-5, 2e-2])
def test_a_part_of_a_sample_in_which_something_else_had_the_processor_does_not_count(monkeypatch, lasts):
    now, slow = [0.0], [False]
    monkeypatch.setattr("auxmae.benchmark.device.time.perf_counter", lambda: now[0])

    def work():
        now[0] += lasts + slow[0]
        slow[0] = False

    clock = kernel_clock(CPU)
    assert clock(work) == pytest.approx(1e3 * lasts)
    slow[0] = True
    assert clock(work) == pytest.approx(1e3 * lasts)


def test_a_device_with_a_queue_is_waited_for(monkeypatch):
    now, queued = [0.0], [0]

    def work():
        queued[0] += 1

    def wait():
        now[0] += 1e-2 * queued[0]
        queued[0] = 0

    monkeypatch.setattr("auxmae.benchmark.device.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.mps, "synchronize", wait)
    assert kernel_clock(torch.device("mps"))(work) == pytest.approx(10)
