"""Probes: they find what is there, nothing where nothing is, and say why they cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from auxmae.data.loading import Batch
from auxmae.evaluation.classifiers import PROBES
from auxmae.evaluation.feature_floors import PCA
from auxmae.evaluation.features import Features, extract_all, statistics_extractor
from auxmae.evaluation.probes import ENCODER, Comparison, ProbeReport, draw_labels, find_copies, run_probes
from auxmae.evaluation.scores import Difference

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


def test_with_fewer_labels_than_k_the_nearest_neighbours_are_as_many_as_a_class_has() -> None:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y, y_test = labels(200, 5, 20), labels(300, 5, 21)
    train, test = make(y, 3.0, seed=22), make(y_test, 3.0, seed=23)
    report = run_probes({ENCODER: train}, {ENCODER: test}, labels_per_class=(1, 3, 20, 0), **SETTINGS)
    found = {result.labels_per_class: result.accuracy for result in report.results if result.probe == "k-NN"}
    for budget, k in ((1, 1), (3, 3), (20, 5), (0, 5)):
        expected = []
        for rows in draw_labels(y, budget, seed=SETTINGS["seed"]):
            nearest = make_pipeline(StandardScaler(), KNeighborsClassifier(k)).fit(train.x[rows], y[rows])
            expected.append((nearest.predict(test.x) == y_test).mean())
        assert found[budget] == pytest.approx(np.mean(expected)), budget
    # Five of five single samples would vote alike whatever the image.
    assert found[1] > 0.5


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
        ([], [], "either part"),
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


def test_level_comparisons_are_neither_won_nor_lost() -> None:
    gains = {1: 0.2, 5: 0.0, 0: -0.1}
    cases = [Comparison("k-NN", n, "floor", 0.5 + d, 0.5, Difference(d, (d, d), 0.01)) for n, d in gains.items()]
    lines = ProbeReport([], comparisons=cases).verdict().splitlines()
    assert "does not beat the floors in 2 of 3 comparisons (1 of them level), and beats them in 1, 1 of them" in lines[0]
    assert [line.partition(":")[0] for line in lines[1:]] == ["lost", "level", "widest lead"]
    assert lines[2].endswith("(level)")


def test_the_encoder_is_compared_with_the_best_floor_and_the_verdict_says_how_sure() -> None:
    y, y_test = labels(200, 4, 0), labels(400, 4, 1)

    def kinds(signal: dict[str, float]) -> tuple[dict[str, Features], dict[str, Features]]:
        return (
            {name: make(y, value, seed=2) for name, value in signal.items()},
            {name: make(y_test, value, seed=4) for name, value in signal.items()},
        )

    report = run_probes(*kinds({ENCODER: 4.0, "weak": 0.5, "middling": 1.5}), labels_per_class=(5, 0), **SETTINGS)
    assert len(report.comparisons) == 2 * len(PROBES)
    for case in report.comparisons:
        results = {r.features: r for r in report.results if (r.probe, r.labels_per_class) == (case.probe, case.labels_per_class)}
        assert case.floor == "middling"
        assert case.difference.difference == pytest.approx(results[ENCODER].accuracy - results["middling"].accuracy)
        assert case.beyond_chance
    assert "beats the floors in all 4 comparisons, in 4 of them beyond chance" in report.verdict()
    losing = run_probes(*kinds({ENCODER: 0.5, "strong": 4.0}), labels_per_class=(0,), **SETTINGS)
    assert "does not beat the floors in 2 of 2" in losing.verdict()
    assert "of the strong" in losing.verdict()
    # The very same features are no lead, and nothing is claimed of them.
    twins = run_probes(*kinds({ENCODER: 1.0, "twin": 1.0}), labels_per_class=(0,), **SETTINGS)
    assert all(case.difference.p_value == 1.0 and not case.beyond_chance for case in twins.comparisons)
    assert "does not beat the floors in 2 of 2 comparisons (2 of them level)" in twins.verdict()
    assert twins.verdict().count("level: ") == 2
    assert "lost" not in twins.verdict()
    assert run_probes(*kinds({ENCODER: 1.0}), labels_per_class=(0,), **SETTINGS).verdict() == ""


def test_principal_components_keep_their_sizes() -> None:
    """Blown up to one size, a hundred components of noise would drown the one that tells the classes apart."""
    y, y_test = labels(40, 2, 0), labels(300, 2, 1)

    def features(y: np.ndarray, seed: int) -> Features:
        x = np.random.default_rng(seed).normal(size=(len(y), 100)) * 0.05
        x[:, 0] = y * 4 + np.random.default_rng(seed + 1).normal(size=len(y))
        return Features(x.astype(np.float32), y, np.arange(len(y)))

    kinds = {name: features(y, 2) for name in (PCA, "other")}, {name: features(y_test, 4) for name in (PCA, "other")}
    report = run_probes(*kinds, labels_per_class=[0], **SETTINGS)
    accuracy = {(result.features, result.probe): result.accuracy for result in report.results}
    for probe in PROBES:
        assert accuracy[PCA, probe] > 0.9 > accuracy["other", probe]


def test_few_groups_are_told_and_many_widen_the_interval() -> None:
    y = np.arange(400) % 2
    donors = np.arange(400) // 20
    # Whole donors are right or wrong.
    right = (donors % 4 > 0).astype(float)[:, None] * np.where(y == 1, 1.0, -1.0)[:, None]
    wrong = (donors % 4 == 0).astype(float)[:, None] * np.where(y == 1, -1.0, 1.0)[:, None]
    x = ((right + wrong) * 9).astype(np.float32)
    train = {ENCODER: Features(np.where(y == 1, 9.0, -9.0).astype(np.float32)[:, None], y, np.arange(400))}
    widths = {}
    for name, groups in (("images", np.arange(400)), ("donors", donors), ("few", donors // 5)):
        report = run_probes(train, {ENCODER: Features(x, y, groups)}, labels_per_class=[0], **SETTINGS)
        low, high = report.results[0].interval
        widths[name] = high - low
        assert any("too few to be resampled" in notice for notice in report.notices) is (name == "few")
    assert widths["donors"] > 3 * widths["images"]


@pytest.mark.parametrize("windows", [1, 3])
def test_images_of_the_same_pixels_are_copies_and_others_of_their_values_are_none(windows: int) -> None:
    random = np.random.default_rng(0)
    images = np.stack([random.permutation(64) < 30 for _ in range(30 * windows)]).astype(np.float32).reshape(-1, windows, 1, 8, 8)

    def features(chosen: list[np.ndarray], size: int, padding: int = 0) -> Features:
        image = torch.from_numpy(np.concatenate(chosen))
        number = torch.arange(len(chosen)).repeat_interleave(windows)
        label, valid = torch.zeros_like(number), torch.ones_like(image, dtype=torch.bool)
        # As beside larger images.
        image, valid = (torch.nn.functional.pad(each, (0, padding, 0, padding)) for each in (image, valid))
        every = None if windows == 1 else number
        whole = Batch(image, valid, label, image_number=every, group=number)
        parts = [
            Batch(*(None if column is None else column[start : start + size] for column in whole))  # type: ignore[arg-type]
            for start in range(0, len(image), size)
        ]
        return extract_all({"": statistics_extractor()}, parts)[""]

    train, others = list(images[:20]), list(images[20:])
    assert find_copies(features(train, 4), features(others, 7)) == 0
    assert find_copies(features(train, 4), features([*others, train[3], train[3], train[19]], 7, padding=2)) == 3
    # The same windows in another order are another image.
    if windows > 1:
        assert find_copies(features(train, 4), features([image[::-1] for image in train], 4)) == 0


@pytest.mark.parametrize(("groups", "told"), [(1, True), (5, True), (6, False), (60, False)])
def test_a_penalty_that_is_chosen_on_single_samples_is_told(groups: int, told: bool) -> None:
    y = labels(60, 3, 0)
    few = make(y, 2.0, seed=1)
    few = Features(few.x, few.y, np.arange(60) % groups)
    report = run_probes({ENCODER: few}, {ENCODER: make(y, 2.0, seed=2)}, labels_per_class=(0,), **SETTINGS)
    assert any("penalty" in notice and f"{groups} group" in notice for notice in report.notices) is told


def test_draws_in_few_groups_are_told_though_the_part_has_enough() -> None:
    y = np.arange(80) % 2
    blocks = make(y, 2.0, seed=1)
    blocks = Features(blocks.x, blocks.y, np.arange(80) // 10)
    arguments = {ENCODER: blocks}, {ENCODER: make(y, 2.0, seed=2)}
    told = [n for n in run_probes(*arguments, labels_per_class=(1, 3, 0), **SETTINGS).notices if "penalty" in n]
    assert len(told) == 1
    assert told[0].startswith("With 3 labels a class, those of a draw lie in too few of the 8 groups")
    assert not [n for n in run_probes(*arguments, labels_per_class=(1, 30, 0), **SETTINGS).notices if "penalty" in n]
