"""Ratios of times: paired by rounds, with an interval that holds the true median as often as it says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from auxmae.benchmark.compare import agreement, read_document
from auxmae.benchmark.ratios import base_of, median_interval, ratio, ratios
from auxmae.benchmark.suites import OURS, PLAIN


def row(provider, samples, case="reference"):
    median = sorted(samples)[len(samples) // 2] if samples else None
    return {"suite": "model", "case": case, "provider": provider, "pass": "step", "samples_ms": samples, "median_ms": median}


@pytest.mark.parametrize("count", [1, 3, 5, 6, 9, 15, 30])
def test_the_interval_holds_the_median_as_often_as_it_says(count):
    values = np.random.default_rng(count).exponential(size=(20_000, count))

    def held(pairs):
        return np.mean([low <= math.log(2) <= high for low, high in pairs])

    asked = 0.95 if count > 5 else 1 - 2 / 2**count
    assert held(map(median_interval, values.tolist())) >= asked - 0.01
    # And it is no wider than it has to be: with one more value left out at either end, it holds too little.
    low, high = median_interval(list(range(count)))
    if count > 5:
        assert held(np.sort(values)[:, [low + 1, high - 1]]) < 0.95


def test_what_slows_both_down_falls_out():
    found = ratio(row(OURS, [8.0, 80.0, 9.0]), row(PLAIN, [10.0, 100.0, 10.0]))
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8, 0.9))
    assert found.verdict == "faster"


def test_a_visit_counts_once():
    visits = {"samples_a_visit": 3}
    # Within a visit the rounds are alike; from one to the next they are not.
    ours = row(OURS, [8.0, 8.0, 80.0, 9.0, 9.0, 9.0, 11.0, 11.0, 0.1]) | visits
    plain = row(PLAIN, [10.0] * 9) | visits
    found = ratio(ours, plain)
    assert (found.value, found.low, found.high, found.count) == pytest.approx((0.9, 0.8, 1.1, 3))
    assert found.verdict == "within the spread"
    # A run that was stopped: of the last visit only the base is there.
    stopped = ratio(ours | {"samples_ms": ours["samples_ms"][:6]}, plain)
    assert (stopped.low, stopped.high, stopped.count) == pytest.approx((0.8, 0.9, 2))
    # One visit is all there is: then it is the rounds that count.
    alone = ratio(row(OURS, [8.0, 9.0, 11.0]) | visits, row(PLAIN, [10.0] * 3) | visits)
    assert (alone.low, alone.high, alone.count) == pytest.approx((0.8, 1.1, 3))


def test_verdicts():
    ten = row(PLAIN, [10.0] * 3)
    for samples, verdict in [
        ([8.0, 9.0, 9.9], "faster"),
        ([10.1, 11.0, 12.0], "slower"),
        ([8.0, 9.0, 10.1], "within the spread"),
        ([9.99, 10.0, 10.04], "the same"),
        ([8.0, 9.0], "two samples"),
        ([8.0], "a single sample"),
    ]:
        assert ratio(row(OURS, samples), ten).verdict == verdict


def test_every_row_finds_its_own_base():
    rows = [row(OURS, [1.0]), row(OURS, [3.0], "other"), row(PLAIN, [2.0]), row(PLAIN, [], "other")]
    assert base_of(rows, rows[0]) is rows[2]
    assert base_of(rows, rows[1]) is None
    assert {key: found.value for key, found in ratios({"rows": rows}).items()} == {("model", "reference", OURS, "step"): 0.5}


RECORDED = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("first", sorted(RECORDED.glob("*-1.json")), ids=lambda path: path.stem)
def test_what_was_recorded_twice_agrees_within_its_spread(first):
    one, two = read_document(first), read_document(first.with_name(first.name.replace("-1.json", "-2.json")))
    pairs = agreement(one, two)
    assert pairs
    assert len(pairs) == len(ratios(one)) == len(ratios(two))
    assert [key for key, before, after in pairs if not before.agrees(after)] == []
