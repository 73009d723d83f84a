"""The probes agree with scikit-learn's own, and the validation part does not leak."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from auxmae.evaluation import classifiers
from auxmae.evaluation.classifiers import predict, validation_folds
from auxmae.evaluation.features import Features


def draw(count: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, count)
    x = random.normal(size=(count, width)) @ np.random.default_rng(9).normal(size=(width, width)) / width**0.5
    x[:, 0] += y
    return x.astype(np.float32), y


@pytest.mark.parametrize("width", [4, 150])
def test_more_features_than_samples_change_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(60, width, 0)
    x_test, _ = draw(200, width, 1)
    train = Features(x, y, np.arange(60))
    monkeypatch.setattr(classifiers, "STRENGTHS", (0.1,))
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000, tol=1e-8)).fit(x, y).predict(x_test)
    assert (predict(train, x_test, neighbours=5)["logistic regression"] == expected).mean() > 0.985
    expected = make_pipeline(StandardScaler(), KNeighborsClassifier(5)).fit(x, y).predict(x_test)
    assert (predict(train, x_test, neighbours=5)["k-NN"] == expected).mean() > 0.985


def test_the_penalty_is_chosen_on_groups_that_were_not_fitted() -> None:
    random = np.random.default_rng(3)
    y, groups = random.integers(0, 3, 120), np.repeat(np.arange(30), 4)
    folds = validation_folds(y, groups)
    assert len(folds) == 3
    for fit, check in folds:
        assert not set(groups[fit]) & set(groups[check])
        assert len(fit) + len(check) == 120
    # A single group leaves only its samples to split, a single sample of each class nothing at all.
    assert all(not set(fit) & set(check) for fit, check in validation_folds(y, np.zeros(120, dtype=np.int64)))
    assert validation_folds(np.arange(5), np.arange(5)) == []


@pytest.mark.parametrize("each", [1, 2, 3])
def test_few_samples_a_class_in_groups_of_their_own_are_folded_as_far_as_they_go(each: int) -> None:
    y = np.repeat(np.arange(4), each)
    x = np.random.default_rng(0).normal(size=(len(y), 3)) + 9 * y[:, None]
    folds = validation_folds(y, np.arange(len(y)))
    assert len(folds) == (each if each > 1 else 0)
    assert all(not set(fit) & set(check) for fit, check in folds)
    assert (classifiers.fit_logistic(x, y, np.arange(len(y))).predict(x) == y).all()


def test_nearest_neighbours_of_one_label_for_each_of_many_classes_warn_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    x = np.arange(25, dtype=np.float32)[:, None]
    found = predict(Features(x, np.arange(25), np.arange(25)), x + 0.1, neighbours=1, probes=("k-NN",))
    assert found["k-NN"].tolist() == list(range(25))
    assert not [one for one in recwarn if issubclass(one.category, UserWarning)]


def test_k_is_at_most_the_labels_that_half_of_the_classes_have() -> None:
    # One label a class, and a test sample at each: with three of them to ask, the first class would win every vote.
    x = np.eye(3, dtype=np.float32)
    one = Features(x, np.arange(3), np.arange(3))
    assert predict(one, x, neighbours=3, probes=("k-NN",))["k-NN"].tolist() == [0, 1, 2]
    # A rare class beside two common ones does not make k 1 for these: a stray label beside a sample is outvoted.
    x = np.array([0.0, 0.1, 0.2, 0.3, 0.31, 9.0, 9.1, 9.2, 9.3, 5.0], dtype=np.float32)[:, None]
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2])
    rare = Features(x, y, np.arange(10))
    assert predict(rare, np.array([[0.311]], dtype=np.float32), neighbours=3, probes=("k-NN",))["k-NN"].tolist() == [0]


def test_a_weak_signal_in_many_dimensions_asks_for_a_strong_penalty() -> None:
    x, y = draw(90, 60, 4)
    chosen = classifiers.fit_logistic(StandardScaler().fit_transform(x), y, np.arange(90))
    assert chosen.strength <= 1.0


def test_constant_features_and_a_single_sample_a_class_do_no_harm() -> None:
    flat = Features(np.ones((3, 8), dtype=np.float32), np.arange(3), np.arange(3))
    for predicted in predict(flat, np.ones((4, 8), dtype=np.float32), neighbours=5).values():
        assert set(predicted) <= {0, 1, 2}
