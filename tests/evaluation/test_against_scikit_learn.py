"""The real command's floors, computed again from the images with NumPy and scikit-learn alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.evaluation.small_run import invoke, make_run

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)


def logistic(strength: float, tolerance: float = 1e-4):
    # Turned into the space that the samples span, where the weights under an L2 penalty lie: exact, and much faster.
    turn = PCA(svd_solver="full")
    return make_pipeline(StandardScaler(), turn, LogisticRegression(C=strength, tol=tolerance, max_iter=5000))


@pytest.mark.slow
def test_floors_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from auxmae.run_data import open_run_data, settings_on_data
    from auxmae.training.run import open_run

    folder = make_run(tmp_path / "run")
    document = json.loads(invoke(str(folder), "--json", "--set", "eval.labels_per_class=[0]").stdout)
    run = open_run(folder)
    data = open_run_data(run, run.load_model("last"), settings_on_data(run))
    # The images and the split are the data's affair; everything from here on is done without the project.
    parts = {}
    for name, loader in (("train", data.train), ("test", data.test)):
        assert loader is not None
        batches = list(loader)
        pixels = np.concatenate([batch.image.numpy() for batch in batches]).astype(np.float64)
        # Sixteen windows of each image, all of whose pixels are valid; the features of an image are their mean.
        number = np.concatenate([batch.image_number.numpy() for batch in batches]).reshape(-1, 16)
        assert (number == number[:, :1]).all()
        parts[name] = (pixels, np.concatenate([batch.label.numpy() for batch in batches])[::16])
    (train, y), (test, y_test) = parts["train"], parts["test"]
    kinds = {
        "channel statistics": lambda x: np.concatenate([x.mean(axis=(2, 3)), x.std(axis=(2, 3))], axis=1),
        "raw pixels": lambda x: x.reshape(len(x), -1),
    }
    rows = {(row["features"], row["probe"]): row for row in document["probes"]}
    for name, features in kinds.items():
        x, x_test = (features(part).reshape(len(part) // 16, 16, -1).mean(axis=1) for part in (train, test))
        neighbours = make_pipeline(StandardScaler(), KNeighborsClassifier(3)).fit(x, y).predict(x_test)
        assert rows[(name, "k-NN")]["accuracy"] == pytest.approx(accuracy_score(y_test, neighbours), abs=1.01 / len(y_test))

        # One label an image: every image is a group of its own.  The strongest of equally good penalties.
        hits = np.zeros(len(STRENGTHS))
        for fit, check in StratifiedKFold(3, shuffle=True, random_state=1).split(x, y):
            for i, strength in enumerate(STRENGTHS):
                hits[i] += (logistic(strength).fit(x[fit], y[fit]).predict(x[check]) == y[check]).sum()
        # Other folds may prefer a neighbouring penalty: the command's figure is that of one that is about as good.
        good = [strength for strength, found in zip(STRENGTHS, hits, strict=True) if found >= hits.max() - 4]
        predictions = [logistic(strength, 1e-6).fit(x, y).predict(x_test) for strength in good]
        row = rows[(name, "logistic regression")]
        near = [p for p in predictions if abs(accuracy_score(y_test, p) - row["accuracy"]) < 1.01 / len(y_test)]
        assert near, (name, row["accuracy"], [accuracy_score(y_test, p) for p in predictions])
        for metric, key in ((balanced_accuracy_score, "average_accuracy"), (cohen_kappa_score, "kappa")):
            assert min(abs(metric(y_test, p) - row[key]) for p in near) < 0.05
        assert min(abs(f1_score(y_test, p, average="macro") - row["macro_f1"]) for p in near) < 0.05
