"""Probes: what a simple classifier reads from frozen features, and whether that is more than the floors offer.

Shape letters: D features, n samples, R draws of the labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from auxmae.evaluation.features import Features

if TYPE_CHECKING:
    from auxmae.model.mae import AuxMAE

ENCODER = "encoder"
STATISTICS = "channel statistics"
RANDOM = "random initialisation"

PROBES = ("k-NN", "logistic regression")

# Inverse strengths of the penalty that cross-validation chooses from.
_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 3
# A few labels a class are drawn this often and the figures averaged: one draw says more about luck than about features.
_DRAWS = 5
# Samples of one image are alike, so whole images are resampled, unless there are too few of them to say anything.
_FEWEST_GROUPS = 10


@dataclass(frozen=True)
class ProbeResult:
    """One probe on one kind of features.

    Attributes:
        features: "encoder", "channel statistics" or "random initialisation".
        probe: "k-NN" or "logistic regression".
        labels_per_class: training labels per class, at most; 0: all.
        accuracy: part of the test samples whose class is found, mean over the draws of the labels.
        average_accuracy: mean over the test part's classes of the part found.
        interval: 95% bootstrap interval of the accuracy.
    """

    features: str
    probe: str
    labels_per_class: int
    accuracy: float
    average_accuracy: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, object]:
        """The result as `auxmae eval --json` prints it."""
        return {**asdict(self), "interval": list(self.interval)}


@dataclass(frozen=True)
class ProbeReport:
    """All probes, or why there are none.

    Attributes:
        results: empty where nothing could be probed.
        reason: why there are no results, one sentence; empty where there are.
        notices: what the reader of the figures should know, one sentence each.
        train_samples, test_samples: labelled samples in the two parts.
        majority: accuracy of naming the training part's commonest class for every test sample; None without results.
    """

    results: list[ProbeResult]
    reason: str = ""
    notices: list[str] = field(default_factory=list)
    train_samples: int = 0
    test_samples: int = 0
    majority: float | None = None

    def verdict(self) -> str:
        """Whether the encoder beats the floors, in words; empty where there is nothing to compare."""
        cases: dict[tuple[str, int], dict[str, float]] = {}
        for result in self.results:
            cases.setdefault((result.probe, result.labels_per_class), {})[result.features] = result.accuracy
        lost = []
        compared = 0
        for (probe, labels), accuracy in cases.items():
            floors = {name: value for name, value in accuracy.items() if name != ENCODER}
            if ENCODER not in accuracy or not floors:
                continue
            compared += 1
            best = max(floors, key=lambda name: floors[name])
            if accuracy[ENCODER] <= floors[best]:
                budget = "all labels" if labels == 0 else f"{labels} labels a class"
                lost.append(f"{probe}, {budget}: {accuracy[ENCODER]:.3f} against {floors[best]:.3f} of the {best}")
        if not compared:
            return ""
        if not lost:
            return f"The encoder beats the floors in all {compared} comparisons."
        return f"The encoder does not beat the floors in {len(lost)} of {compared} comparisons ({'; '.join(lost)})."


def run_probes(
    train: Mapping[str, Features],
    test: Mapping[str, Features],
    *,
    labels_per_class: Sequence[int],
    neighbours: int,
    bootstrap: int,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> ProbeReport:
    """Train every probe on the training part and measure it on the test part, for every kind of features alike.

    k-NN: majority of the `neighbours` nearest by Euclidean distance.  Logistic regression: L2 penalty, its strength
    chosen by cross-validation within the drawn training labels.  Both on features standardised by the drawn
    training samples.

    Args:
        train, test: kind of features → features; the rows of all kinds in a part are the same samples.
        labels_per_class: budgets; 0 means all.  The samples drawn are the same for every kind of features and probe.
        neighbours: k.
        bootstrap: resamples behind the intervals.
        seed: of the draws and the resampling.
        class_names: for the sentences; may be empty.
    """
    if set(train) != set(test):
        raise ValueError(f"train has the features {sorted(train)}, test {sorted(test)}")
    reference, held_out = next(iter(train.values())), next(iter(test.values()))
    classes, counts = np.unique(reference.y, return_counts=True)
    reason = _reason(classes, held_out, class_names)
    if reason:
        return ProbeReport([], reason, [], len(reference), len(held_out))
    notices = []
    unseen = np.setdiff1d(held_out.y, classes)
    if len(unseen):
        names = ", ".join(_name(c, class_names) for c in unseen)
        notices.append(f"The test part has classes that the training part lacks, which no probe can find: {names}.")
    short = [n for n in labels_per_class if n > counts.min()]
    if short:
        scarce = ", ".join(f"{_name(c, class_names)} ({n})" for c, n in zip(classes, counts, strict=True) if n < max(short))
        notices.append(f"Classes with fewer training samples than asked for, of which all are used: {scarce}.")
    results = []
    for budget in labels_per_class:
        draws = draw_labels(reference.y, budget, seed=seed)
        for probe in PROBES:
            for name, features in train.items():
                correct = np.stack([_correct(probe, features.take(rows), test[name], neighbours, seed) for rows in draws])
                recall = [correct[:, held_out.y == c].mean() for c in np.unique(held_out.y)]
                interval = bootstrap_interval(correct, held_out.groups, resamples=bootstrap, seed=seed)
                results.append(ProbeResult(name, probe, budget, float(correct.mean()), float(np.mean(recall)), interval))
    majority = float((held_out.y == classes[counts.argmax()]).mean())
    return ProbeReport(results, "", notices, len(reference), len(held_out), majority)


def untrained(model: AuxMAE, *, seed: int) -> AuxMAE:
    """The same network at its random initialisation: the floor that the architecture alone reaches.

    The caller's random state is left as it was.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(**model.config).eval()


def draw_labels(y: NDArray[np.int64], per_class: int, *, seed: int) -> list[NDArray[np.int64]]:
    """Rows of the training samples given to a probe, one array per draw.

    Args:
        y: (n,) class of each sample.
        per_class: samples per class; a class that has fewer gives all.  0: all samples, one draw.
        seed: of the draws.
    """
    everything = np.arange(len(y))
    classes, counts = np.unique(y, return_counts=True)
    if per_class == 0 or per_class >= counts.max():
        return [everything]
    draws = []
    for draw in range(_DRAWS):
        generator = np.random.default_rng([seed, per_class, draw])
        chosen = []
        for c in classes:
            members = everything[y == c]
            chosen.append(generator.permutation(members)[:per_class])
        draws.append(np.sort(np.concatenate(chosen)))
    return draws


def bootstrap_interval(
    correct: NDArray[np.bool_], groups: NDArray[np.int64], *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy (Efron 1979).

    Draws of the labels and images are both resampled with replacement, so that the interval covers the luck of the
    labels and of the test part.  Where fewer than 10 images hold the samples, the samples themselves are resampled;
    such an interval is too narrow, since neighbouring samples are alike.

    Args:
        correct: (R, n) bool.
        groups: (n,) image of each sample.
        resamples: number of resamples.
        seed: of the resampling.
        level: of the interval.
    """
    generator = np.random.default_rng(seed)
    codes = np.unique(groups, return_inverse=True)[1]
    if codes.max() + 1 < _FEWEST_GROUPS:
        codes = np.arange(correct.shape[1])
    units = int(codes.max()) + 1
    sizes = np.bincount(codes, minlength=units)
    hits = np.stack([np.bincount(codes, weights=row, minlength=units) for row in correct])
    accuracy = np.empty(resamples)
    for i in range(resamples):
        weights = np.bincount(generator.integers(0, units, units), minlength=units)
        draws = generator.integers(0, len(hits), len(hits))
        accuracy[i] = (hits[draws] @ weights).mean() / (sizes @ weights)
    tail = (1 - level) / 2
    low, high = np.quantile(accuracy, [tail, 1 - tail])
    return float(low), float(high)


def _correct(probe: str, train: Features, test: Features, neighbours: int, seed: int) -> NDArray[np.bool_]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.x.astype(np.float64))
    x, x_test = scaler.transform(train.x), scaler.transform(test.x)
    if probe == "k-NN":
        from sklearn.neighbors import KNeighborsClassifier

        classifier = KNeighborsClassifier(n_neighbors=min(neighbours, len(train))).fit(x, train.y)
    else:
        classifier = _fit_logistic(x, train.y, seed)
    return np.asarray(classifier.predict(x_test) == test.y)


def _fit_logistic(x: NDArray[np.float64], y: NDArray[np.int64], seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    # A class of one sample cannot be in two folds: it is then always in the training folds.
    classes, counts = np.unique(y, return_counts=True)
    frequent = np.isin(y, classes[counts > 1])
    best = 1.0
    with warnings.catch_warnings():
        # An unfinished fit is judged by its accuracy like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if frequent.any():
            rows, alone = np.flatnonzero(frequent), np.flatnonzero(~frequent)
            folds = StratifiedKFold(min(_FOLDS, int(counts[counts > 1].min())), shuffle=True, random_state=seed).split(
                rows, y[rows]
            )
            hits = np.zeros(len(_STRENGTHS))
            for fit, check in folds:
                fit_rows, check_rows = np.concatenate([rows[fit], alone]), rows[check]
                if len(np.unique(y[fit_rows])) < 2:
                    continue
                for i, strength in enumerate(_STRENGTHS):
                    trial = LogisticRegression(C=strength, max_iter=100, tol=1e-3).fit(x[fit_rows], y[fit_rows])
                    hits[i] += (trial.predict(x[check_rows]) == y[check_rows]).sum()
            # argmax takes the first of equals: the strongest penalty.
            best = _STRENGTHS[int(hits.argmax())]
        return LogisticRegression(C=best, max_iter=1000).fit(x, y)


def _reason(classes: NDArray[np.int64], test: Features, class_names: Sequence[str]) -> str:
    if not len(classes) and not len(test):
        return "The data carry no labels."
    if not len(classes):
        return "No sample of the training part is labelled."
    if not len(test):
        return "No sample of the test part is labelled."
    if len(classes) == 1:
        return f"All labelled samples of the training part are of one class, {_name(classes[0], class_names)}."
    return ""


def _name(c: int, class_names: Sequence[str]) -> str:
    return class_names[c] if 0 <= c < len(class_names) else f"class {c}"
