"""The probes: k nearest neighbours and logistic regression, the same for every kind of features.

Shape letters: D features, n training samples, m test samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from auxmae.evaluation.features import Features
from auxmae.evaluation.logistic import Logistic, fit, principal_axes

PROBES = ("k-NN", "logistic regression")

# Inverse strengths of the penalty that the validation part chooses from.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 3
# Below so many groups single samples are folded.
FEWEST_TO_FOLD = 2 * _FOLDS
# Above this many samples one validation part (a third) is as good as three, and takes a third of the time.
_ONE_FOLD = 600
_SEED = 0
# To choose a penalty by its hits, a solution as exact as scikit-learn's default suffices.
_TRIAL_TOLERANCE = 1e-4


def predict(
    train: Features,
    x_test: NDArray[np.float32],
    *,
    neighbours: int,
    probes: Sequence[str] = PROBES,
    together: bool = False,
) -> dict[str, NDArray[np.int64]]:
    """Classes of test samples: probe → (m,).

    k-NN: majority of the nearest by Euclidean distance, as many as `limit_neighbours` says.  Logistic regression:
    multinomial, L2 penalty, its strength one of `STRENGTHS`, chosen by the accuracy on validation parts of the training
    samples that hold whole groups (images or blocks), so that neighbours of one place lie on one side.  Both on features
    standardised by the training samples, each for itself or all `together`.

    Args:
        train: features, classes and groups.
        x_test: (m, D).
        neighbours: k, at most.
        probes: which of `PROBES`.
        together: features share a unit, so that the size of one beside another says something: one scale for all.
    """
    mean, scale = standard(train.x, together=together)
    x, x_rest = principal_axes((train.x - mean) / scale, (x_test - mean) / scale)
    found = {}
    for probe in probes:
        if probe == "k-NN":
            from sklearn.neighbors import KNeighborsClassifier

            nearest = KNeighborsClassifier(n_neighbors=limit_neighbours(neighbours, train.y))
            with warnings.catch_warnings():
                # Of one label for each of many classes scikit-learn suspects that they are no classes.
                warnings.simplefilter("ignore", UserWarning)
                nearest.fit(x, train.y)
            found[probe] = np.asarray(nearest.predict(x_rest), dtype=np.int64)
        else:
            found[probe] = fit_logistic(x, train.y, train.groups).predict(x_rest)
    return found


def limit_neighbours(neighbours: int, y: NDArray[np.int64]) -> int:
    """k of a k-NN on samples of classes y (n,): `neighbours`, at most as many as a class has samples, of which the median counts.

    Beyond these, the nearest sample would be outvoted by those of other classes.  The median, as one rare class beside many
    common ones would set k to 1 for all.
    """
    return min(neighbours, int(np.median(np.unique(y, return_counts=True)[1])))


def standard(x: NDArray[np.float32], *, together: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D,) means and standard deviations of (n, D) features, 1 where one is 0; `together`: one deviation for all."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x.astype(np.float64))
    if together:
        size = float(np.sqrt(scaler.var_.mean()))
        return scaler.mean_, np.full_like(scaler.mean_, size if size > 0 else 1.0)
    return scaler.mean_, scaler.scale_


def fit_logistic(x: NDArray[np.float64], y: NDArray[np.int64], groups: NDArray[np.int64]) -> Logistic:
    """Logistic regression on standardised features, its penalty chosen as `predict` says; C = 1 where nothing can choose."""
    hits = np.zeros(len(STRENGTHS))
    path: list[Logistic] = []
    for rows, check in validation_folds(y, groups):
        # From strong to weak penalty, each from the solution before it.
        path = []
        for i, strength in enumerate(STRENGTHS):
            path.append(fit(x[rows], y[rows], strength, start=path[-1] if path else None, tolerance=_TRIAL_TOLERANCE))
            hits[i] += (path[-1].predict(x[check]) == y[check]).sum()
    # argmax takes the first of equals: the strongest penalty.
    best = int(hits.argmax())
    return fit(x, y, STRENGTHS[best] if hits.any() else 1.0, start=path[best] if path else None)


def validation_folds(y: NDArray[np.int64], groups: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(rows to fit, rows to check) pairs: whole groups on one side, classes in proportion; by samples where groups are few.

    A class whose samples are all checked is only fitted in the other folds; a fold with one class to fit is left out.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    frequent, counts = _frequent(y)
    rows, alone = np.flatnonzero(frequent), np.flatnonzero(~frequent)
    if not len(rows):
        return []
    own = groups[rows]
    if len(np.unique(own)) >= FEWEST_TO_FOLD:
        folds = min(_FOLDS, int(counts.max()))
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=_SEED).split(rows, y[rows], own)
    else:
        folds = min(_FOLDS, int(counts[counts > 1].min()))
        splits = StratifiedKFold(folds, shuffle=True, random_state=_SEED).split(rows, y[rows])
    with warnings.catch_warnings():
        # scikit-learn warns where a class has fewer samples than there are folds.
        warnings.simplefilter("ignore", UserWarning)
        found = [(np.concatenate([rows[fit], alone]), rows[check]) for fit, check in splits]
    found = [(fit, check) for fit, check in found if len(np.unique(y[fit])) > 1 and len(check)]
    return found[:1] if len(y) > _ONE_FOLD else found


def folds_single_samples(y: NDArray[np.int64], groups: NDArray[np.int64]) -> bool:
    """Whether `validation_folds` parts samples of one group, since there are too few groups."""
    own = groups[_frequent(y)[0]]
    return len(np.unique(own)) < min(FEWEST_TO_FOLD, len(own))


def _frequent(y: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(n,) whether a sample's class has another one, and how many each class has.

    A class of one sample cannot be on both sides of a fold: it is always fitted.
    """
    classes, counts = np.unique(y, return_counts=True)
    return np.isin(y, classes[counts > 1]), counts
