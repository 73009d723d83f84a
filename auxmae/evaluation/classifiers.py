"""The probes: k nearest neighbours and logistic regression, the same for every kind of features.

Shape letters: D features, n training samples, m test samples.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.evaluation.features import Features

PROBES = ("k-NN", "logistic regression")

# Inverse strengths of the penalty that the validation part chooses from.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 3
# Above this many samples one validation part (a third) is as good as three, and takes a third of the time.
_ONE_FOLD = 600
_SEED = 0


def predict(probe: str, train: Features, x_test: NDArray[np.float32], *, neighbours: int) -> NDArray[np.int64]:
    """(m,) predicted classes.

    k-NN: majority of the `neighbours` nearest by Euclidean distance.  Logistic regression: multinomial, L2 penalty, its
    strength one of `STRENGTHS`, chosen by the accuracy on validation parts of the training samples that hold whole groups
    (images or blocks), so that neighbours of one place lie on one side.  Both on features standardised by the training
    samples.

    Args:
        probe: one of `PROBES`.
        train: features, classes and groups.
        x_test: (m, D).
        neighbours: k.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.x.astype(np.float64))
    x, x_rest = _span(scaler.transform(train.x), scaler.transform(x_test))
    if probe == "k-NN":
        from sklearn.neighbors import KNeighborsClassifier

        classifier = KNeighborsClassifier(n_neighbors=min(neighbours, len(train))).fit(x, train.y)
    else:
        classifier = fit_logistic(x, train.y, train.groups)
    return np.asarray(classifier.predict(x_rest), dtype=np.int64)


def _span(x: NDArray[Any], x_test: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates in the space that the n training rows span, where that is smaller than D.

    Neither probe changes: the penalised weights lie in that space, and what a test sample has outside of it is equally
    far from all training samples.
    """
    x, x_test = np.asarray(x, dtype=np.float64), np.asarray(x_test, dtype=np.float64)
    if x.shape[1] <= x.shape[0]:
        return x, x_test
    # By the Gram matrix: D may be ten times n.
    squares, vectors = np.linalg.eigh(x @ x.T)
    kept = squares > 1e-12 * max(float(squares[-1]), 1e-300)
    if not kept.any():
        return x[:, :1], x_test[:, :1]
    sizes, vectors = np.sqrt(squares[kept]), vectors[:, kept]
    return vectors * sizes, x_test @ (x.T @ (vectors / sizes))


def fit_logistic(x: NDArray[np.float64], y: NDArray[np.int64], groups: NDArray[np.int64]) -> Any:
    """Logistic regression on standardised features, its penalty chosen as `predict` says; C = 1 where nothing can choose."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    hits = np.zeros(len(STRENGTHS))
    with warnings.catch_warnings():
        # An unfinished fit is judged by its accuracy like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for fit, check in validation_folds(y, groups):
            # From strong to weak penalty, each from the solution before it.
            trial = LogisticRegression(max_iter=50, tol=1e-3, warm_start=True)
            for i, strength in enumerate(STRENGTHS):
                trial.set_params(C=strength).fit(x[fit], y[fit])
                hits[i] += (trial.predict(x[check]) == y[check]).sum()
        # argmax takes the first of equals: the strongest penalty.
        best = STRENGTHS[int(hits.argmax())] if hits.any() else 1.0
        return LogisticRegression(C=best, max_iter=1000).fit(x, y)


def validation_folds(y: NDArray[np.int64], groups: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(rows to fit, rows to check) pairs: whole groups on one side, classes in proportion; by samples where groups are few.

    A class whose samples are all checked is only fitted in the other folds; a fold with one class to fit is left out.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # A class of one sample cannot be on both sides: it is then always fitted.
    classes, counts = np.unique(y, return_counts=True)
    frequent = np.isin(y, classes[counts > 1])
    rows, alone = np.flatnonzero(frequent), np.flatnonzero(~frequent)
    if not len(rows):
        return []
    own = groups[rows]
    if len(np.unique(own)) >= 2 * _FOLDS:
        splits = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=_SEED).split(rows, y[rows], own)
    else:
        folds = min(_FOLDS, int(counts[counts > 1].min()))
        splits = StratifiedKFold(folds, shuffle=True, random_state=_SEED).split(rows, y[rows])
    with warnings.catch_warnings():
        # scikit-learn warns where a class has fewer samples than there are folds.
        warnings.simplefilter("ignore", UserWarning)
        found = [(np.concatenate([rows[fit], alone]), rows[check]) for fit, check in splits]
    found = [(fit, check) for fit, check in found if len(np.unique(y[fit])) > 1 and len(check)]
    return found[:1] if len(y) > _ONE_FOLD else found
