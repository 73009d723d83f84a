"""Probes: they find what is there, nothing where nothing is, and say why they cannot."""

from __future__ import annotations

import numpy as np
import pytest

from auxmae.evaluation.features import Features
from auxmae.evaluation.probes import (
    ENCODER,
    PROBES,
    RANDOM,
    STATISTICS,
    ProbeReport,
    ProbeResult,
    bootstrap_interval,
    draw_labels,
    run_probes,
)

SETTINGS = {"neighbours": 5, "bootstrap": 100, "seed": 0}


def make(y: np.ndarray, signal: float, *, seed: int, width: int = 6) -> Features:
    """Features whose first columns hold the class, one-hot, `signal` strong, under unit noise."""
    x = np.random.default_rng(seed).normal(size=(len(y), width))
    x[np.arange(len(y)), y % width] += signal
    return Features(x.astype(np.float32), y, np.arange(len(y)))


def labels(count: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, count)


def test_separable_classes_are_found_and_shuffled_labels_give_chance() -> None:
    y, y_test = labels(200, 4, 0), labels(400, 4, 1)
    train = {"good": make(y, 6.0, seed=2), "none": make(np.random.default_rng(3).permutation(y), 6.0, seed=2)}
    train["none"] = Features(train["none"].x, y, train["none"].groups)
    test = {name: make(y_test, 6.0, seed=4) for name in train}
    report = run_probes(train, test, labels_per_class=(5, 0), **SETTINGS)
    assert not report.reason
    assert len(report.results) == 2 * len(PROBES) * 2
    for result in report.results:
        low, high = result.interval
        assert low <= result.accuracy <= high
        if result.features == "good":
            assert result.accuracy > 0.95
            assert result.average_accuracy > 0.95
        else:
            assert abs(result.accuracy - 0.25) < 0.12
    assert report.majority == pytest.approx((y_test == np.bincount(y).argmax()).mean())
    assert (report.train_samples, report.test_samples) == (200, 400)


def test_accuracies_are_those_of_scikit_learn_by_hand() -> None:
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y, y_test = labels(90, 3, 5) % 3, np.repeat([0, 1, 2], [50, 20, 5])
    train, test = make(y, 1.5, seed=6), make(y_test, 1.5, seed=7)
    report = run_probes({ENCODER: train}, {ENCODER: test}, labels_per_class=(0,), **SETTINGS)
    found = make_pipeline(StandardScaler(), KNeighborsClassifier(5)).fit(train.x, y).predict(test.x)
    knn = next(result for result in report.results if result.probe == "k-NN")
    assert knn.accuracy == pytest.approx((found == y_test).mean())
    assert knn.average_accuracy == pytest.approx(balanced_accuracy_score(y_test, found))


def test_results_repeat_and_never_see_the_test_labels() -> None:
    y, y_test = labels(60, 3, 8), labels(60, 3, 9)
    train, test = {ENCODER: make(y, 1.0, seed=1)}, {ENCODER: make(y_test, 1.0, seed=2)}
    first = run_probes(train, test, labels_per_class=(5,), **SETTINGS)
    assert first == run_probes(train, test, labels_per_class=(5,), **SETTINGS)
    # Predictions cannot depend on the test labels: with every label cycled, the three accuracies add up to 1.
    cycled = [
        run_probes(
            train,
            {ENCODER: Features(test[ENCODER].x, (y_test + k) % 3, test[ENCODER].groups)},
            labels_per_class=(5,),
            **SETTINGS,
        )
        for k in range(3)
    ]
    for i in range(len(PROBES)):
        assert sum(report.results[i].accuracy for report in cycled) == pytest.approx(1.0)


def test_draws_hold_so_many_labels_of_each_class() -> None:
    y = np.repeat([0, 1, 4], [30, 8, 3])
    draws = draw_labels(y, 5, seed=0)
    assert len(draws) > 1
    for rows in draws:
        assert len(set(rows.tolist())) == len(rows)
        np.testing.assert_array_equal(np.bincount(y[rows]), [5, 5, 0, 0, 3])
    assert not np.array_equal(draws[0], draws[1])
    (everything,) = draw_labels(y, 0, seed=0)
    np.testing.assert_array_equal(everything, np.arange(41))
    (everything,) = draw_labels(y, 30, seed=0)
    assert len(everything) == 41


def test_scarce_and_unseen_classes_are_named() -> None:
    y, y_test = np.repeat([0, 1, 2], [20, 20, 1]), np.repeat([0, 1, 3], 10)
    train, test = {ENCODER: make(y, 5.0, seed=1)}, {ENCODER: make(y_test, 5.0, seed=2)}
    report = run_probes(train, test, labels_per_class=(5, 0), class_names=("tree", "water", "dirt", "road"), **SETTINGS)
    assert any("dirt (1)" in notice for notice in report.notices)
    assert any("road" in notice for notice in report.notices)
    assert all(result.accuracy <= 2 / 3 for result in report.results)
    assert max(result.average_accuracy for result in report.results) > 0.6


def test_one_sample_per_class_is_enough_to_run() -> None:
    y = np.array([0, 1, 2])
    report = run_probes(
        {ENCODER: make(y, 8.0, seed=1)},
        {ENCODER: make(labels(30, 3, 2), 8.0, seed=3)},
        labels_per_class=(0, 1),
        **SETTINGS,
    )
    assert len(report.results) == 4


@pytest.mark.parametrize(
    ("y", "y_test", "words"),
    [
        ([], [], "no labels"),
        ([], [0, 1], "training part"),
        ([0, 1], [], "test part"),
        ([2, 2, 2], [0, 2], "one class, dirt"),
    ],
)
def test_what_cannot_be_probed_is_said(y: list[int], y_test: list[int], words: str) -> None:
    train, test = (make(np.array(v, dtype=np.int64), 1.0, seed=0) for v in (y, y_test))
    report = run_probes(
        {ENCODER: train}, {ENCODER: test}, labels_per_class=(0,), class_names=("tree", "water", "dirt"), **SETTINGS
    )
    assert report.results == []
    assert words in report.reason
    assert report.verdict() == ""


def test_constant_features_do_no_harm() -> None:
    y = labels(40, 2, 0)
    flat = Features(np.ones((40, 3), dtype=np.float32), y, np.arange(40))
    report = run_probes({ENCODER: flat}, {ENCODER: flat}, labels_per_class=(0,), **SETTINGS)
    assert all(0.3 < result.accuracy < 0.7 for result in report.results)


def test_bootstrap_interval_agrees_with_the_binomial() -> None:
    correct = np.random.default_rng(0).random((1, 400)) < 0.8
    low, high = bootstrap_interval(correct, np.arange(400), resamples=2000, seed=1)
    half = 1.96 * np.sqrt(correct.mean() * (1 - correct.mean()) / 400)
    assert low == pytest.approx(correct.mean() - half, abs=0.01)
    assert high == pytest.approx(correct.mean() + half, abs=0.01)


def test_samples_of_one_image_are_resampled_together() -> None:
    # 40 images of 25 samples that are all right or all wrong carry no more information than 40 samples.
    right = np.random.default_rng(2).random(40) < 0.7
    correct, groups = np.repeat(right, 25)[None], np.repeat(np.arange(40), 25)
    low, high = bootstrap_interval(correct, groups, resamples=1000, seed=0)
    naive_low, naive_high = bootstrap_interval(correct, np.arange(1000), resamples=1000, seed=0)
    assert high - low > 3 * (naive_high - naive_low)


def test_the_verdict_says_where_the_encoder_loses() -> None:
    def result(features: str, probe: str, accuracy: float) -> ProbeResult:
        return ProbeResult(features, probe, 0, accuracy, accuracy, (accuracy, accuracy))

    winning = [result(ENCODER, "k-NN", 0.9), result(STATISTICS, "k-NN", 0.8), result(RANDOM, "k-NN", 0.7)]
    losing = [result(ENCODER, "logistic regression", 0.6), result(STATISTICS, "logistic regression", 0.8)]
    assert "beats the floors in all 1" in ProbeReport(winning).verdict()
    verdict = ProbeReport([*winning, *losing]).verdict()
    assert "does not beat the floors in 1 of 2" in verdict
    assert "0.600 against 0.800 of the channel statistics" in verdict
