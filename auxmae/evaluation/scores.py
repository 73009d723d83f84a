"""Scores of predicted classes: accuracies, macro-F1, kappa, their bootstrap intervals, and a paired comparison.

Shape letters: n samples, R draws of the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

# Samples of one image or group are alike, so whole ones are resampled, unless there are too few of them to say anything.
FEWEST_GROUPS = 10
# Of so few units that differ a paired bootstrap makes too much: all of their signs are tried, 2**8 at most.
_FEW_DIFFER = 8


@dataclass(frozen=True)
class Scores:
    """Agreement of predicted with true classes.

    Attributes:
        accuracy: part of the samples whose class is found ("overall accuracy").
        average_accuracy: mean over the true classes of the part found.
        macro_f1: mean of F1 over the classes that are true or predicted somewhere.
        kappa: Cohen's kappa, agreement beyond chance; 0 where chance agreement is already whole.
    """

    accuracy: float
    average_accuracy: float
    macro_f1: float
    kappa: float


def score(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> Scores:
    """Scores of (n,) predictions; n ≥ 1."""
    classes, codes = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    k, n = len(classes), len(truth)
    table = np.bincount(codes[:n] * k + codes[n:], minlength=k * k).reshape(k, k)
    hits, true, named = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    accuracy = float(hits.sum() / n)
    chance = float((true / n) @ (named / n))
    return Scores(
        accuracy,
        float((hits[true > 0] / true[true > 0]).mean()),
        float((2 * hits / (true + named)).mean()),
        (accuracy - chance) / (1 - chance) if chance < 1 else 0.0,
    )


def bootstrap_interval(
    correct: NDArray[np.bool_], groups: NDArray[np.int64], *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy (Efron 1979).

    Draws of the labels and images are both resampled with replacement, so that the interval covers the luck of the
    labels and of the test part.  Where fewer than 10 images hold the samples, the samples themselves are resampled;
    such an interval is too narrow, since neighbouring samples are alike.  Where what is resampled is all of one accuracy, as
    where all predictions are right, no resample differs: the interval is Wilson's (1927) then, of as many trials.

    Args:
        correct: (R, n) bool.
        groups: (n,) image of each sample.
        resamples: number of resamples.
        seed: of the resampling.
        level: of the interval.
    """
    low, high = _interval(_resampled(correct.astype(np.float64), groups, resamples, seed).clip(0, 1), level)
    return _wilson(low, len(np.unique(_units(groups))), level) if low == high else (low, high)


def _wilson(share: float, trials: int, level: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    # Where the share is 0 or 1 it is an end of the interval, whatever rounding makes of it.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


@dataclass(frozen=True)
class Difference:
    """Accuracy of one less that of another on the same samples.

    Attributes:
        difference: of the accuracies, mean over the draws.
        interval: its 95% bootstrap interval.
        p_value: two-sided, of no difference.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float


def paired_bootstrap(
    first: NDArray[np.bool_], second: NDArray[np.bool_], groups: NDArray[np.int64], *, resamples: int, seed: int
) -> Difference:
    """Paired bootstrap test of two accuracies (Efron and Tibshirani 1993, chapter 16).

    Both are resampled together, images and draws as in `bootstrap_interval`.  The p-value is twice the smaller share
    of resamples on either side of no difference, each with one added, so that it is never 0.  Of few units that differ it
    would be too small: up to 8 of them it is at least that of the exact permutation test of their signs (Fisher 1935, section
    21), which for single samples and one draw is the exact form of McNemar's (1947).

    Args:
        first, second: (R, n) bool, whether each prediction is right; the same samples and draws.
        groups: (n,) image of each sample.
        resamples: number of resamples.
        seed: of the resampling.
    """
    gain = first.astype(np.float64) - second
    values = _resampled(gain, groups, resamples, seed)
    tail = min(int((values <= 0).sum()), int((values >= 0).sum()))
    of_units = np.bincount(_units(groups), weights=gain.sum(axis=0)).astype(np.float64)
    p_value = max(2 * (tail + 1) / (resamples + 1), _sign_flips(of_units))
    return Difference(float(gain.mean()), _interval(values, 0.95), min(1.0, p_value))


def _sign_flips(gain: NDArray[np.float64]) -> float:
    """Part of the signs of few units' gains whose sum is as far from 0 as theirs; 0 where more than 8 differ."""
    differing = gain[gain != 0]
    if len(differing) > _FEW_DIFFER:
        return 0.0
    signs = 1 - 2 * (np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing)) & 1)
    # The gains are whole numbers: their sums are exact.
    return float((np.abs(signs @ differing) >= abs(differing.sum())).mean())


def _interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _units(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) number of what is resampled that holds each sample: its group, or itself where groups are few."""
    codes: NDArray[np.int64] = np.unique(groups, return_inverse=True)[1]
    return np.arange(len(groups)) if codes.max() + 1 < FEWEST_GROUPS else codes


def _resampled(gain: NDArray[np.float64], groups: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.float64]:
    """(resamples,) means of `gain` (R, n) over resampled draws and groups.

    Means of few draws scatter less than they should when these are resampled, and so they are spread, as Student's t has it: the
    expanded percentile interval of Hesterberg (2015, "What teachers should know about the bootstrap"), for the draws alone.
    """
    generator = np.random.default_rng(seed)
    codes = _units(groups)
    units = int(codes.max()) + 1
    sizes = np.bincount(codes, minlength=units)
    sums = np.stack([np.bincount(codes, weights=row, minlength=units) for row in gain])
    spread = _spread_of_draws(len(sums))
    mean = np.empty(resamples)
    for i in range(resamples):
        weights = np.bincount(generator.integers(0, units, units), minlength=units)
        of_draws = sums @ weights / (sizes @ weights)
        chosen = of_draws[generator.integers(0, len(sums), len(sums))]
        mean[i] = of_draws.mean() + spread * (chosen.mean() - of_draws.mean())
    return mean


def _spread_of_draws(count: int) -> float:
    """How many times wider the 95% interval of a mean of so many draws is by Student's t than by resampling them."""
    from scipy.special import stdtrit

    return 1.0 if count == 1 else float((count / (count - 1)) ** 0.5 * stdtrit(count - 1, 0.975) / NormalDist().inv_cdf(0.975))
