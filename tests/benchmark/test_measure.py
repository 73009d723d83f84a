"""Peak memory against allocations of known size; the order of the turns; the median."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise

import pytest
import torch

from auxmae.benchmark.measure import Timing, Visit, attempt, held_bytes, interleaved, peak_bytes, turns

CPU = torch.device("cpu")
MIB = 2**20


def floats(mib):
    return torch.ones(mib * MIB // 4)


def test_peak_is_the_highest_moment_and_not_the_sum():
    def work():
        first = floats(24)
        del first
        second, third = floats(8), floats(8)
        return second.sum() + third.sum()

    assert peak_bytes(work, CPU) == pytest.approx(24 * MIB, abs=4096)


def test_resident_tensors_count_once_and_in_full():
    weight = floats(8)
    views = [weight, weight[:10], weight.view(2, -1), floats(4)]
    assert peak_bytes(lambda: floats(16).sum(), CPU, views) == pytest.approx(28 * MIB, abs=4096)


def test_a_device_without_a_counter_has_no_peak():
    assert peak_bytes(lambda: floats(1), torch.device("mps"), [floats(1)]) is None


def test_what_earlier_work_left_does_not_count():
    kept = []
    peak_bytes(lambda: kept.append(floats(64)), CPU)
    assert peak_bytes(lambda: floats(16).sum(), CPU) == pytest.approx(16 * MIB, abs=4096)


def test_held_is_what_lives_as_long_as_the_result():
    def work():
        high, kept = floats(24), floats(8)
        del high
        return kept

    assert held_bytes(work, CPU) == pytest.approx(8 * MIB, abs=4096)
    assert held_bytes(lambda: floats(8).sum().item(), CPU) == 0


def test_work_that_only_frees_has_no_peak():
    kept = [floats(8)]
    assert peak_bytes(kept.clear, CPU) == 0


def test_the_profiler_is_quiet_and_the_environment_as_before(capfd, monkeypatch):
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    peak_bytes(lambda: floats(1).sum(), CPU)
    assert "KINETO_LOG_LEVEL" not in os.environ
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", range(1, 7))
def test_turns_are_balanced(count):
    rounds = [turns(count, number) for number in range(count if count % 2 == 0 else 2 * count)]
    assert all(sorted(order) == list(range(count)) for order in rounds)
    repetitions = len(rounds) // count
    for place in zip(*rounds, strict=True):
        assert Counter(place) == dict.fromkeys(range(count), repetitions)
    followers = Counter(pair for order in rounds for pair in pairwise(order))
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    assert followers == dict.fromkeys(pairs, repetitions)


def test_interleaved_takes_turns():
    calls = []

    def provider(name):
        return lambda: calls.append(name)

    names = ("a", "b", "c")
    told = []
    timings = interleaved(
        {name: provider(name) for name in names},
        device=CPU,
        repeats=4,
        warmup=2,
        resident=dict.fromkeys(names, list),
        progress=told.append,
    )
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]
    rounds = [calls[start : start + 3] for start in range(6, 18, 3)]
    assert rounds == [[names[turn] for turn in turns(3, number)] for number in range(4)]
    assert calls[18:] == list(names), "peak memory is measured after all rounds"
    for name in names:
        assert len(timings[name].samples_ms) == 4
    assert len(told) == 3 + 4


def test_a_later_visit_goes_on_with_the_order_and_measures_times_alone():
    calls = []
    names = ("a", "b", "c")
    timings = interleaved(
        {name: lambda name=name: calls.append(name) for name in names},
        device=CPU,
        repeats=2,
        warmup=0,
        resident=dict.fromkeys(names, list),
        visit=Visit(2, {("suite", "case", "a", "pass")}),
    )
    assert calls == [names[turn] for number in (4, 5) for turn in turns(3, number)]
    assert [(len(timing.samples_ms), timing.peak_bytes) for timing in timings.values()] == [(2, None)] * 3


def test_samples_are_milliseconds_in_the_order_taken(monkeypatch):
    durations = iter([0.5, 0.25, 0.003, 0.001, 0.002])
    now = [0.0]
    monkeypatch.setattr("auxmae.benchmark.measure.time.perf_counter", lambda: now[0])
    # The last call is for peak memory, and is not timed.
    timings = interleaved(
        {"only": lambda: now.__setitem__(0, now[0] + next(durations, 9.0))},
        device=CPU,
        repeats=3,
        warmup=2,
        resident={"only": lambda: [floats(1)]},
    )
    assert timings["only"].samples_ms == pytest.approx([3.0, 1.0, 2.0])
    assert timings["only"].median_ms == pytest.approx(2.0)
    assert timings["only"].peak_bytes >= MIB


@pytest.mark.parametrize(
    ("samples", "median"), [([5.0], 5.0), ([9.0, 1.0, 2.0], 2.0), ([4.0, 1.0], 2.5), ([8.0, 1.0, 4.0, 2.0], 3.0)]
)
def test_median(samples, median):
    assert Timing(samples, 0).median_ms == median


@pytest.mark.parametrize("module", ["triton.runtime.errors", "torch._dynamo.exc"])
def test_a_compilers_own_error_costs_its_provider_alone(module):
    def work():
        raise type("OutOfResources", (Exception,), {"__module__": module})("out of\n resource: shared memory")

    assert attempt(work, CPU) == ("failed", "out of resource: shared memory")


def test_another_error_is_a_fault_of_the_benchmark():
    with pytest.raises(TypeError):
        attempt(lambda: len(3), CPU)
