"""Our logistic regression solves scikit-learn's problem."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from auxmae.evaluation.logistic import Logistic, fit, principal_axes


def draw(n: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, variances that span four orders of magnitude, correlated and not centred."""
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, n)
    x = random.normal(size=(n, width)) * np.logspace(0, -2, width)
    x[:, :classes] += 0.7 * np.eye(classes)[y][:, : min(classes, width)]
    return x @ np.linalg.qr(random.normal(size=(width, width)))[0] + 0.3, y


@pytest.mark.parametrize(("n", "width", "classes"), [(150, 20, 4), (80, 300, 3), (120, 30, 2), (60, 200, 2)])
@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_weights_and_probabilities_are_those_of_scikit_learn(n: int, width: int, classes: int, strength: float) -> None:
    x, y = draw(n, width, classes, seed=n)
    x_test, _ = draw(500, width, classes, seed=n + 1)
    reference = LogisticRegression(C=strength, tol=1e-9, max_iter=100_000).fit(x, y)
    axes, test = principal_axes(x, x_test)
    ours = fit(axes, y, strength, tolerance=1e-8)
    decision = ours.decision(test)
    shares = np.exp(decision - decision.max(axis=1, keepdims=True))
    np.testing.assert_allclose(shares / shares.sum(axis=1, keepdims=True), reference.predict_proba(x_test), atol=2e-4)
    # At the tolerance of the probes hardly a prediction is another one.
    assert (fit(axes, y, strength).predict(test) == reference.predict(x_test)).mean() > 0.985


def test_the_start_changes_nothing_but_the_time() -> None:
    x, y = draw(100, 40, 3, seed=5)
    axes, _ = principal_axes(x, x)
    cold = fit(axes, y, 10.0, tolerance=1e-8)
    warm = fit(axes, y, 10.0, start=fit(axes, y, 0.1), tolerance=1e-8)
    np.testing.assert_allclose(warm.decision(axes), cold.decision(axes), atol=1e-2)
    # A start of other classes is of no use: a fold may lack one.
    other = Logistic(np.array([0, 1]), np.ones((axes.shape[1] + 1, 2)), 1.0)
    np.testing.assert_array_equal(fit(axes, y, 10.0, start=other).weight, fit(axes, y, 10.0).weight)


@pytest.mark.parametrize("width", [5, 70])
def test_principal_axes_keep_distances_between_training_and_test_rows(width: int) -> None:
    random = np.random.default_rng(2)
    x, x_test = random.normal(size=(30, width)), random.normal(size=(9, width))
    x[:, -1] = x[:, 0]
    axes, test = principal_axes(x, x_test)
    assert axes.shape[1] == min(width - 1, 30)
    gram = axes.T @ axes
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-9 * gram.max())
    distance = np.square(x_test[:, None] - x).sum(axis=2)
    inside = np.square(test[:, None] - axes).sum(axis=2)
    # What lies outside of the training rows' span adds the same to all of a test row's distances.
    np.testing.assert_allclose(distance - distance[:, :1], inside - inside[:, :1], atol=1e-8)
    assert np.isfinite(principal_axes(np.zeros((4, 3)), np.ones((2, 3)))[1]).all()
