"""Scores against scikit-learn; intervals and the paired test against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from auxmae.evaluation.probes import SIGNIFICANT
from auxmae.evaluation.scores import bootstrap_interval, paired_bootstrap, score
from auxmae.settings.schema import EvalSettings


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_scores_are_those_of_scikit_learn(seed: int, count: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = random.integers(0, classes, (2, count)) * 3
    found = score(truth, predicted)
    assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))
    recall = [(predicted[truth == c] == c).mean() for c in np.unique(truth)]
    assert found.average_accuracy == pytest.approx(np.mean(recall))
    assert found.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    if len(np.unique(np.concatenate([truth, predicted]))) > 1:
        assert found.kappa == pytest.approx(cohen_kappa_score(truth, predicted))


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


def test_the_paired_test_agrees_with_mcnemar_and_is_seldom_wrong() -> None:
    from scipy.stats import binomtest

    random = np.random.default_rng(5)
    for lead, expected in ((0.15, True), (0.0, False)):
        first = random.random(500) < 0.6 + lead
        # Paired: the second is right where the first is, but for a few.
        second = np.where(random.random(500) < 0.8, first, random.random(500) < 0.6)
        if lead:
            second &= random.random(500) < 0.9
        found = paired_bootstrap(first[None], second[None], np.arange(500), resamples=2000, seed=0)
        better, worse = int((first & ~second).sum()), int((~first & second).sum())
        exact = binomtest(better, better + worse).pvalue
        assert (found.p_value < 0.05) == (exact < 0.05) == expected
        assert found.difference == pytest.approx((better - worse) / 500)
        assert found.interval[0] <= found.difference <= found.interval[1]
    wrong = 0
    for seed in range(60):
        noise = np.random.default_rng(seed).random((2, 200)) < 0.7
        wrong += paired_bootstrap(noise[:1], noise[1:], np.arange(200), resamples=200, seed=seed).p_value < 0.05
    assert wrong <= 9


@pytest.mark.parametrize("draws", [2, 5])
def test_the_luck_of_few_draws_is_seldom_taken_for_a_difference(draws: int) -> None:
    """Two methods that are equally good over all draws of labels or seeds, and not in the few that there are."""
    rng = np.random.default_rng(draws)
    found, covered, trials = 0, 0, 300
    for trial in range(trials):
        # Test samples are hard or easy alike for both; a draw is good or bad for either.
        hard, luck = rng.uniform(size=150), rng.normal(0.7, 0.06, (2, draws, 1))
        first, second = (one > hard for one in luck)
        result = paired_bootstrap(first, second, np.arange(150), resamples=199, seed=trial)
        found += result.p_value < SIGNIFICANT
        low, high = bootstrap_interval(first, np.arange(150), resamples=199, seed=trial)
        covered += low <= 0.7 <= high
    assert found / trials < 0.08
    assert covered / trials > 0.92


@pytest.mark.parametrize(("better", "worse"), [(4, 0), (5, 0), (6, 1), (7, 1), (5, 3), (0, 5), (0, 0)])
@pytest.mark.parametrize("count", [12, 400])
def test_few_differences_are_no_surer_than_mcnemar(better: int, worse: int, count: int) -> None:
    from scipy.stats import binomtest

    right = np.zeros((2, 1, count), dtype=bool)
    right[0, 0, :better] = right[1, 0, better : better + worse] = True
    found = paired_bootstrap(right[0], right[1], np.arange(count), resamples=1000, seed=0)
    exact = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert found.p_value >= exact * (1 - 1e-9)
    # Samples of one group count once.
    groups = np.repeat(np.arange(count), 5)
    of_groups = paired_bootstrap(*(np.repeat(one, 5, axis=1) for one in right), groups, resamples=1000, seed=0)
    assert of_groups.p_value >= exact * (1 - 1e-9)
    # Nor do more draws of the same make it surer.
    drawn = paired_bootstrap(*(np.repeat(one, 5, axis=0) for one in right), np.arange(count), resamples=1000, seed=0)
    assert drawn.p_value >= exact * (1 - 1e-9)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_interval_of_a_clean_sweep_is_wilsons(share: float) -> None:
    from scipy.stats import binomtest

    for correct, groups in (
        (np.ones(12), np.arange(12)),
        (np.ones(60), np.repeat(np.arange(12), 5)),
        (np.ones(12), np.zeros(12)),
    ):
        low, high = bootstrap_interval((correct * share)[None] > 0, groups.astype(np.int64), resamples=200, seed=0)
        expected = binomtest(round(12 * share), 12).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high))


def test_the_fewest_resamples_that_can_be_set_find_a_clear_lead() -> None:
    fewest = EvalSettings.model_json_schema()["properties"]["bootstrap"]["minimum"]
    first, second = np.ones((1, 50), dtype=bool), np.zeros((1, 50), dtype=bool)
    assert paired_bootstrap(first, second, np.arange(50), resamples=fewest, seed=0).p_value < SIGNIFICANT
