"""Probes: what a simple classifier reads from frozen features, and whether that is more than the floors offer.

Shape letters: D features, n samples, R draws of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from auxmae.evaluation.classifiers import PROBES, folds_single_samples, predict
from auxmae.evaluation.feature_floors import COMMON_SCALE
from auxmae.evaluation.features import Features
from auxmae.evaluation.scores import FEWEST_GROUPS, Difference, bootstrap_interval, paired_bootstrap, score

if TYPE_CHECKING:
    from auxmae.model.mae import AuxMAE

ENCODER = "encoder"
RANDOM = "random initialisation"

# A few labels a class are drawn this often and the figures averaged: one draw says more about luck than about features.
_DRAWS = 5
# Where the paired test finds a smaller p-value, a difference is called more than chance.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ProbeResult:
    """One probe on one kind of features.

    Attributes:
        features: "encoder", or the name of a floor.
        probe: "k-NN" or "logistic regression".
        labels_per_class: training labels per class, at most; 0: all.
        accuracy: part of the test samples whose class is found, mean over the draws of the labels.
        average_accuracy: mean over the test part's classes of the part found.
        interval: 95% bootstrap interval of the accuracy.
        macro_f1, kappa: as in `Scores`, mean over the draws.
        spread: standard deviation of the accuracy over the draws; 0 for a single draw.
        draws: how many draws of the labels.
    """

    features: str
    probe: str
    labels_per_class: int
    accuracy: float
    average_accuracy: float
    interval: tuple[float, float]
    macro_f1: float = 0.0
    kappa: float = 0.0
    spread: float = 0.0
    draws: int = 1

    def to_dict(self) -> dict[str, object]:
        """The result as `auxmae eval --json` prints it."""
        return {**asdict(self), "interval": list(self.interval)}


@dataclass(frozen=True)
class Comparison:
    """The encoder against the best floor, on the same samples, probe, labels and draws.

    Attributes:
        probe, labels_per_class: which case.
        floor: the floor with the highest accuracy on the test part: the hardest choice for the encoder.
        accuracy, floor_accuracy: of the encoder and of that floor.
        difference: of the two, its interval, and the paired bootstrap's p-value.
    """

    probe: str
    labels_per_class: int
    floor: str
    accuracy: float
    floor_accuracy: float
    difference: Difference

    @property
    def beyond_chance(self) -> bool:
        """Whether the paired test tells the two apart."""
        return self.difference.p_value < SIGNIFICANT

    def describe(self) -> str:
        """One line for people."""
        budget = "all labels" if self.labels_per_class == 0 else f"{self.labels_per_class} a class"
        gain = 100 * self.difference.difference
        beyond = "beyond chance" if self.beyond_chance else "not beyond chance"
        difference = f"{gain:+.1f} points, p = {self.difference.p_value:.2g}, {beyond}" if gain else "level"
        return f"{self.probe}, {budget}: {self.accuracy:.3f} against {self.floor_accuracy:.3f} of the {self.floor} ({difference})"

    def to_dict(self) -> dict[str, object]:
        """The comparison as `auxmae eval --json` prints it."""
        content = {"probe": self.probe, "labels_per_class": self.labels_per_class, "floor": self.floor}
        test = {**asdict(self.difference), "interval": list(self.difference.interval), "test": "paired bootstrap"}
        return {**content, "accuracy": self.accuracy, "floor_accuracy": self.floor_accuracy, **test}


@dataclass(frozen=True)
class ProbeReport:
    """All probes, or why there are none.

    Attributes:
        results: empty where nothing could be probed.
        reason: why there are no results, one sentence; empty where there are.
        notices: what the reader of the figures should know, one sentence each.
        train_samples, test_samples: labelled samples in the two parts.
        majority: accuracy of naming the training part's commonest class for every test sample; None without results.
        comparisons: the encoder against the best floor, for every probe and number of labels.
    """

    results: list[ProbeResult]
    reason: str = ""
    notices: list[str] = field(default_factory=list)
    train_samples: int = 0
    test_samples: int = 0
    majority: float | None = None
    comparisons: list[Comparison] = field(default_factory=list)

    def verdict(self) -> str:
        """Whether the encoder beats the floors, in words; empty where there is nothing to compare."""
        if not self.comparisons:
            return ""
        count = len(self.comparisons)
        won = [c for c in self.comparisons if c.difference.difference > 0]
        level = [c for c in self.comparisons if c.difference.difference == 0]
        lost = [c for c in self.comparisons if c.difference.difference < 0]
        sure = sum(c.beyond_chance for c in won)
        if len(won) == count:
            text = f"The encoder beats the floors in all {count} comparisons, in {sure} of them beyond chance"
        else:
            text = f"The encoder does not beat the floors in {len(lost) + len(level)} of {count} comparisons"
            text += f" ({len(level)} of them level)" if level else ""
            text += f", and beats them in {len(won)}, {sure} of them beyond chance" if won else ""
        text += " (paired bootstrap, 95%)."
        worst = min(self.comparisons, key=lambda c: c.difference.difference)
        best = max(self.comparisons, key=lambda c: c.difference.difference)
        lines = [text, *(f"lost: {c.describe()}" for c in lost), *(f"level: {c.describe()}" for c in level)]
        if won:
            lines.append(f"widest lead: {best.describe()}")
        if len(won) == count and best is not worst:
            lines.append(f"closest: {worst.describe()}")
        return "\n".join(lines)


def run_probes(
    train: Mapping[str, Features],
    test: Mapping[str, Features],
    *,
    labels_per_class: Sequence[int],
    neighbours: int,
    bootstrap: int,
    seed: int = 0,
    class_names: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> ProbeReport:
    """Train every probe on the training part and measure it on the test part, for every kind of features alike.

    See `classifiers.predict` for the probes.  The encoder is compared with the best floor by a paired bootstrap.

    Args:
        train, test: kind of features → features; the rows of all kinds in a part are the same samples.
        labels_per_class: budgets; 0 means all.  The samples drawn are the same for every kind of features and probe.
        neighbours: k; with fewer labels a class (the median of a draw's classes), as many as those.
        bootstrap: resamples behind the intervals.
        seed: of the draws and the resampling.
        class_names: for the sentences; may be empty.
        progress: told what is being measured.
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
    units = len(np.unique(held_out.groups))
    if units < min(FEWEST_GROUPS, len(held_out)):
        notices.append(
            f"The {len(held_out)} test samples lie in {units} group{'s' * (units > 1)}, too few to be resampled: intervals and "
            "tests take them for independent, and are narrower than they should be."
        )
    drawn_rows = {budget: draw_labels(reference.y, budget, seed=seed) for budget in labels_per_class}
    own = len(np.unique(reference.groups))
    consequence = "it is chosen on single samples, and may be too weak for other groups."
    parted = [
        str(budget or "all")
        for budget, draws in drawn_rows.items()
        if any(folds_single_samples(reference.y[rows], reference.groups[rows]) for rows in draws)
    ]
    if folds_single_samples(reference.y, reference.groups):
        notices.append(
            f"The {len(reference)} training samples lie in {own} group{'s' * (own > 1)}, too few to choose the penalty of the "
            f"logistic regression on whole ones: {consequence}"
        )
    elif parted:
        notices.append(
            f"With {', '.join(parted)} labels a class, those of a draw lie in too few of the {own} groups to choose the penalty "
            f"of the logistic regression on whole ones: {consequence}"
        )
    short = [n for n in labels_per_class if n > counts.min()]
    if short:
        scarce = ", ".join(f"{_name(c, class_names)} ({n})" for c, n in zip(classes, counts, strict=True) if n < max(short))
        notices.append(f"Classes with fewer training samples than asked for, of which all are used: {scarce}.")
    results, comparisons = [], []
    for budget, draws in drawn_rows.items():
        found = {}
        for name, features in train.items():
            if progress is not None:
                progress(f"{budget or 'all'} labels, {name}")
            together = name in COMMON_SCALE
            found[name] = [predict(features.take(rows), test[name].x, neighbours=neighbours, together=together) for rows in draws]
        for probe in PROBES:
            right: dict[str, NDArray[np.bool_]] = {}
            for name, drawn in found.items():
                predicted = [one[probe] for one in drawn]
                right[name] = np.stack(predicted) == held_out.y
                scores = [score(held_out.y, one) for one in predicted]
                accuracy = [one.accuracy for one in scores]
                results.append(
                    ProbeResult(
                        name,
                        probe,
                        budget,
                        float(np.mean(accuracy)),
                        float(np.mean([one.average_accuracy for one in scores])),
                        bootstrap_interval(right[name], held_out.groups, resamples=bootstrap, seed=seed),
                        float(np.mean([one.macro_f1 for one in scores])),
                        float(np.mean([one.kappa for one in scores])),
                        float(np.std(accuracy)),
                        len(draws),
                    )
                )
            comparison = _compare(probe, budget, right, held_out.groups, bootstrap, seed)
            if comparison is not None:
                comparisons.append(comparison)
    majority = float((held_out.y == classes[counts.argmax()]).mean())
    return ProbeReport(results, "", notices, len(reference), len(held_out), majority, comparisons)


def find_copies(train: Features, test: Features) -> int:
    """How many test samples are made of the same pixels as a training sample; 0 where their pixels are not known."""
    if train.pixels is None or test.pixels is None:
        return 0
    return int(np.isin(test.pixels, train.pixels).sum())


def _compare(
    probe: str, budget: int, right: Mapping[str, NDArray[np.bool_]], groups: NDArray[np.int64], resamples: int, seed: int
) -> Comparison | None:
    floors = {name: float(correct.mean()) for name, correct in right.items() if name != ENCODER}
    if ENCODER not in right or not floors:
        return None
    best = max(floors, key=lambda name: floors[name])
    difference = paired_bootstrap(right[ENCODER], right[best], groups, resamples=resamples, seed=seed)
    return Comparison(probe, budget, best, float(right[ENCODER].mean()), floors[best], difference)


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


def _reason(classes: NDArray[np.int64], test: Features, class_names: Sequence[str]) -> str:
    if not len(classes) and not len(test):
        return "No sample of either part is labelled."
    if not len(classes):
        return "No sample of the training part is labelled."
    if not len(test):
        return "No sample of the test part is labelled."
    if len(classes) == 1:
        return f"All labelled samples of the training part are of one class, {_name(classes[0], class_names)}."
    return ""


def _name(c: int, class_names: Sequence[str]) -> str:
    return class_names[c] if 0 <= c < len(class_names) else f"class {c}"
