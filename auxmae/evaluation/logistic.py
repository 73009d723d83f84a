"""Multinomial logistic regression with an L2 penalty, for wide features: scikit-learn's problem, solved in fewer steps.

`sklearn.linear_model.LogisticRegression` minimises the same objective by L-BFGS from the features as they are, and needs
thousands of steps where a few directions carry most of the variance, as in images.  Here the features come along their
principal axes, each coordinate is scaled by its curvature, and a path of penalties is followed from one solution to the next.

Shape letters: D features, K classes, n samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Largest gradient at the solution, of the mean loss; scikit-learn's default for its own is 1e-4.
TOLERANCE = 1e-5
_MOST_STEPS = 1000
# Pairs of steps that L-BFGS remembers.
_MEMORY = 20
# Directions whose share of the largest variance is below this are rounding.
_RANK = 1e-12


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier.

    Attributes:
        classes: (K,) ascending.
        weight: (D + 1, K), the last row the intercepts.
        strength: C, the inverse strength of the penalty.
    """

    classes: NDArray[np.int64]
    weight: NDArray[np.float64]
    strength: float

    def decision(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, K) log-probabilities, up to a constant for each sample."""
        return np.asarray(x @ self.weight[:-1] + self.weight[-1])

    def predict(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        """(n,) classes."""
        return np.asarray(self.classes[self.decision(x).argmax(axis=1)])


def principal_axes(x: NDArray[Any], x_test: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of (n, D) rows along their principal axes, those without extent left out, and of test rows along the same.

    Neither the penalised regression nor the order of neighbours changes: the weights lie in the space that the training
    rows span, and what a test row has outside of it is equally far from all of them.
    """
    x, x_test = np.asarray(x, dtype=np.float64), np.asarray(x_test, dtype=np.float64)
    wide = x.shape[1] > x.shape[0]
    # The smaller of the two products: D may be ten times n.
    squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = squares > _RANK * max(float(squares[-1]), 1e-300)
    if not kept.any():
        return x[:, :1], x_test[:, :1]
    sizes, vectors = np.sqrt(squares[kept]), vectors[:, kept]
    if wide:
        return vectors * sizes, (x_test @ x.T) @ (vectors / sizes)
    return x @ vectors, x_test @ vectors


def fit(
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    strength: float,
    *,
    start: Logistic | None = None,
    tolerance: float = TOLERANCE,
) -> Logistic:
    """Minimises C · Σ loss + ½ ‖w‖², the intercepts free, as scikit-learn's `LogisticRegression` does.

    Args:
        x: (n, D) along their principal axes (`principal_axes`); others are solved too, in more steps.
        y: (n,) at least two classes.
        strength: C.
        start: a solution to begin from; one of other classes is not used.
        tolerance: the largest entry of the gradient of the mean loss, penalty included, at the solution.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    classes, codes = np.unique(y, return_inverse=True)
    (n, width), count = x.shape, len(classes)
    # scikit-learn gives two classes one vector of weights, w: the softmax's two are ± w / 2, of half the penalty.
    penalty = (2.0 if count == 2 else 1.0) / (strength * n)
    truth = np.zeros((n, count))
    truth[np.arange(n), codes] = 1.0
    usable = start is not None and np.array_equal(start.classes, classes)
    begin = start.weight if start is not None and usable else np.zeros((width + 1, count))

    # The Hessian is close to curvature · xᵀx / n + penalty, nearly diagonal along the principal axes: in the coordinates
    # v = w / scale it is close to the identity.
    share = np.exp(log_softmax(x @ begin[:-1] + begin[-1], axis=1))
    curvature = max(float((share * (1 - share)).mean()), 1e-3)
    scale = np.empty((width + 1, 1))
    scale[:-1, 0] = 1 / np.sqrt(curvature * np.square(x).mean(axis=0) + penalty)
    scale[-1] = 1 / np.sqrt(curvature)
    latest: dict[str, Any] = {}

    def objective(v: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = v.reshape(width + 1, count) * scale
        log_share = log_softmax(x @ w[:-1] + w[-1], axis=1)
        rest = (np.exp(log_share) - truth) / n
        gradient = np.empty_like(w)
        gradient[:-1] = x.T @ rest + penalty * w[:-1]
        gradient[-1] = rest.sum(axis=0)
        latest.update(point=v.copy(), gradient=float(np.abs(gradient).max()))
        value = -float(np.vdot(log_share, truth)) / n + penalty / 2 * float(np.square(w[:-1]).sum())
        return value, (gradient * scale).ravel()

    def check(intermediate_result: Any) -> None:
        # The tolerance is one of the gradient in w, not in v.
        if latest["gradient"] <= tolerance and np.array_equal(intermediate_result.x, latest["point"]):
            raise StopIteration

    options: Any = {"maxiter": _MOST_STEPS, "maxfun": 2 * _MOST_STEPS, "maxcor": _MEMORY, "ftol": 0.0, "gtol": 0.0}
    found = minimize(objective, (begin / scale).ravel(), jac=True, method="L-BFGS-B", callback=check, options=options)
    return Logistic(classes, found.x.reshape(width + 1, count) * scale, strength)
