"""What is left of features and reconstructions when the images change: fewer channels, other sizes, noise, another gain.

The classifier and the model stay as they are: they know unchanged images only.

Shape letters: B batch, C channels, D features, G channel groups; h, w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auxmae.errors import DataError
from auxmae.evaluation.classifiers import fit_logistic, standard
from auxmae.evaluation.feature_floors import COMMON_SCALE, RELATIONS, STATISTICS, relation_channels
from auxmae.evaluation.features import Extractor, Features, extract_all
from auxmae.evaluation.linear_floor import LINEAR, LinearFloor
from auxmae.evaluation.logistic import Logistic, principal_axes
from auxmae.evaluation.probes import ENCODER, RANDOM
from auxmae.evaluation.reconstruction import ReconstructionResult, evaluate_reconstruction, image_generator
from auxmae.model.pooling import CHANNEL_BY_CHANNEL, WITH_EMBEDDING

if TYPE_CHECKING:
    from auxmae.data.loading import Batch
    from auxmae.data.statistics import Scaling
    from auxmae.model.mae import AuxMAE

UNCHANGED, LEFT_OUT, COUNT, SIZE, NOISE, GAIN = "unchanged", "left out", "channels", "size", "noise", "gain"
# Standard deviation of the noise, as a part of each channel's own over the training pixels; factor on pixel values.
NOISES = (0.1, 0.3, 1.0)
GAINS = (0.7, 0.9, 1.1, 1.4)
SIZES = (0.5, 0.75, 1.5, 2.0)
# Channel groups that are left out one by one, at most, and draws of which ones stay where only some do.
MOST_LEFT_OUT = 32
_DRAWS = 3


@dataclass(frozen=True)
class Change:
    """One way to change an image.

    Attributes:
        kind: one of the names above.
        label: for people.
        value: number of channel groups, side in px, part of the deviation, or factor; the group's place for `LEFT_OUT`.
        dropped: indices of the image's channels that are taken away.
    """

    kind: str
    label: str
    value: float
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class RobustnessResult:
    """Figures under one change; means over the draws where there are several.

    Attributes:
        kind, label, value: of the change.
        accuracy: kind of features → accuracy of its logistic regression; floors that the change leaves no way to compute
            are missing.  Empty without labels.
        masked_l1, floor_l1: error of the reconstruction, and of the best floor, on the channels that are left.
        unchanged_l1: the model's error on the same channels of unchanged images.
        draws: how many.
        samples: labelled test images, or patches, behind the accuracies.
        windows: images, or windows of them, behind the errors.
    """

    kind: str
    label: str
    value: float
    accuracy: dict[str, float] = field(default_factory=dict)
    masked_l1: float | None = None
    floor_l1: float | None = None
    unchanged_l1: float | None = None
    draws: int = 1
    samples: int = 0
    windows: int = 0

    def best_floor(self) -> str | None:
        """The floor with the highest accuracy under this change."""
        floors = {name: value for name, value in self.accuracy.items() if name != ENCODER}
        return max(floors, key=lambda name: floors[name]) if floors else None

    def to_dict(self) -> dict[str, object]:
        """The result as `auxmae eval --robustness --json` prints it."""
        return {**asdict(self), "best_floor": self.best_floor()}


def plan_changes(groups: Sequence[Sequence[int]], names: Sequence[str], sizes: Sequence[int], *, seed: int) -> list[Change]:
    """All changes, the unchanged images first.

    Args:
        groups: indices of the image's channels, by channel group.
        names: of the image's channels.
        sizes: sides, px, at which images can be had.
        seed: of the channels that stay.
    """
    changes = [Change(UNCHANGED, "unchanged", 0.0)]
    count = len(groups)
    if count > 1:
        for g in np.unique(np.linspace(0, count - 1, min(count, MOST_LEFT_OUT)).round().astype(int)).tolist():
            members = groups[g]
            label = names[members[0]] if len(members) == 1 else f"{names[members[0]]} … {names[members[-1]]}"
            changes.append(Change(LEFT_OUT, f"without {label}", g, tuple(members)))
    kept = count
    while kept > 1:
        kept = -(-kept // 2)
        for draw in range(_DRAWS):
            order = np.random.default_rng([seed, kept, draw]).permutation(count)
            dropped = sorted(c for g in order[kept:].tolist() for c in groups[g])
            changes.append(
                Change(COUNT, f"{kept} of {count} {'channels' if count == len(names) else 'groups'}", kept, tuple(dropped))
            )
    changes += [Change(SIZE, f"{side} px", side) for side in sizes]
    changes += [Change(NOISE, f"noise {part:g} σ", part) for part in NOISES]
    return changes + [Change(GAIN, f"gain {factor:g}", factor) for factor in GAINS]


def evaluate_robustness(
    model: AuxMAE,
    train: Iterable[Batch],
    test: Callable[[int | None], Iterable[Batch] | None],
    extractors: Mapping[str, Extractor],
    known: Mapping[str, Features],
    *,
    changes: Sequence[Change],
    scaling: Scaling,
    pool: str,
    patch_size: int | None,
    limit: int,
    seed: int,
    mask_seed: int,
    device: torch.device | str,
    linear: LinearFloor | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[RobustnessResult]:
    """Accuracy and reconstruction error under every change; see `RobustnessResult`.

    The logistic regressions are trained on unchanged training images, with all their labels.  Where channels are taken
    away, the encoder goes without them; in floors, and where its pooling keeps channels apart, what is missing is replaced by
    its mean over the training images.

    Args:
        model: the encoder.
        train: the training images.
        test: side, px (None: the usual one) → batches in a fixed order, or None where images are too small.
        extractors: `ENCODER`, `RANDOM` and the floors.
        known: the extractors' features of the unchanged training images; empty where there is nothing to classify.
        changes: from `plan_changes`.
        scaling: of the image's channels.
        pool: of the encoder's features.
        patch_size: as for `extract_all`.
        limit: labelled test samples, at most.
        seed: of samples and noise.
        mask_seed: of the masks.
        device: where the model is.
        linear: one more floor of the reconstruction, fitted on unchanged training images.
        progress: told what is being done.
    """
    say = progress or (lambda text: None)
    say("training images")
    fill, deviation = _channel_moments(train)
    classifiers = {}
    for name, features in known.items():
        say(f"training on {name}")
        if len(np.unique(features.y)) > 1:
            classifiers[name] = _Classifier(features, together=name in COMMON_SCALE)
    found: dict[tuple[str, float], list[RobustnessResult]] = {}
    unchanged: ReconstructionResult | None = None
    for change in changes:
        batches = test(int(change.value) if change.kind == SIZE else None)
        if batches is None:
            continue
        say(change.label)
        changed = _Batches(partial(_changed, batches, change, scaling, fill, deviation, seed))
        accuracy, samples = dict[str, float](), 0
        if classifiers:
            adapted = {
                name: _adapt(name, extract, change, classifiers[name].mean, pool, model)
                for name, extract in extractors.items()
                if name in classifiers
            }
            accuracy, samples = _accuracies(classifiers, adapted, changed, patch_size, limit, seed)
        kept = [c for c in range(len(fill)) if c not in change.dropped]
        floors = {} if linear is None else {LINEAR: linear.select(kept)}
        left = (_without(batch, change) for batch in changed)
        try:
            result = evaluate_reconstruction(model, left, seed=mask_seed, device=device, more_floors=floors)
        except DataError:
            # Of a single patch nothing can be hidden.
            found.setdefault((change.kind, change.value), []).append(
                RobustnessResult(change.kind, change.label, change.value, accuracy, samples=samples)
            )
            continue
        unchanged = unchanged or result
        # Both sides are means over the channels that are left, each of the same weight.
        channels = [name for name in result.per_channel if name in unchanged.per_channel]
        same, ours, *theirs = (
            float(np.mean([errors[name] for name in channels]))
            for errors in (unchanged.per_channel, result.per_channel, *result.floors_per_channel.values())
        )
        counts = {"samples": samples, "windows": result.windows}
        found.setdefault((change.kind, change.value), []).append(
            RobustnessResult(change.kind, change.label, change.value, accuracy, ours, min(theirs), same, **counts)
        )
    return [_mean(results) for results in found.values()]


class _Classifier:
    """Standardise, then logistic regression: as `classifiers.predict`, kept for many test sets."""

    def __init__(self, features: Features, *, together: bool) -> None:
        self.mean, self.spread = standard(features.x, together=together)
        x = (features.x - self.mean) / self.spread
        axes, _ = principal_axes(x, x[:0])
        fitted = fit_logistic(axes, features.y, features.groups)
        # Back from the axes: x = axes · Vᵀ, so that V = xᵀ · axes / squares.
        squares = np.square(axes).sum(axis=0)
        weight = x.T @ (axes / np.where(squares > 0, squares, 1.0) @ fitted.weight[:-1])
        self.fitted = Logistic(fitted.classes, np.concatenate([weight, fitted.weight[-1:]]), fitted.strength)

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        return self.fitted.predict((x - self.mean) / self.spread)


@dataclass(frozen=True)
class _Batches:
    """Batches that are made anew on every pass: all at once, those of large scenes would not fit the memory."""

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


def _accuracies(
    classifiers: Mapping[str, _Classifier],
    extractors: Mapping[str, Extractor],
    batches: Iterable[Batch],
    patch_size: int | None,
    limit: int,
    seed: int,
) -> tuple[dict[str, float], int]:
    """Kind of features → accuracy; of how many samples."""
    accuracy, samples = {}, 0
    for name, features in extract_all(extractors, batches, patch_size=patch_size, limit=limit, seed=seed).items():
        samples = len(features)
        # Raw pixels of another size are other features.
        if len(features) and features.x.shape[1] == len(classifiers[name].mean):
            accuracy[name] = float((classifiers[name].predict(features.x) == features.y).mean())
    return accuracy, samples


def _changed(
    batches: Iterable[Batch], change: Change, scaling: Scaling, fill: Tensor, deviation: Tensor, seed: int
) -> Iterator[Batch]:
    """Batches with noise or gain; channels that are to go hold the training mean, for the floors."""
    images = 0
    for batch in batches:
        image = batch.image
        if change.kind == NOISE:
            streams = [image_generator(seed, images + i) for i in range(len(image))]
            noise = torch.stack([torch.randn(image.shape[1:], generator=stream) for stream in streams])
            image = image + change.value * deviation[:, None, None] * noise
        elif change.kind == GAIN:
            image = scaling.apply(scaling.invert(image) * change.value)
        if change.dropped:
            gone = torch.zeros(image.shape[1], dtype=torch.bool)
            gone[list(change.dropped)] = True
            image = torch.where(gone[:, None, None], fill[:, None, None], image)
        images += len(image)
        yield batch._replace(image=image.masked_fill(~batch.valid, 0.0))


def _without(batch: Batch, change: Change) -> Batch:
    """A batch that lacks the channels which are to go."""
    if not change.dropped:
        return batch
    kept = torch.tensor([c for c in range(batch.image.shape[1]) if c not in change.dropped])
    channels = kept if batch.channels is None else batch.channels[kept]
    return batch._replace(image=batch.image[:, kept], valid=batch.valid[:, kept], channels=channels)


def _adapt(name: str, extract: Extractor, change: Change, mean: NDArray[np.float64], pool: str, model: AuxMAE) -> Extractor:
    """The extractor of features when channels are gone: what is of them alone is replaced by its mean over the training part."""
    if not change.dropped:
        return extract
    usual = torch.from_numpy(mean.astype(np.float32))

    def statistics(batch: Batch) -> Tensor:
        channels = batch.image.shape[1]
        of = torch.eye(channels, dtype=torch.bool).repeat(2, 1) if name == STATISTICS else relation_channels(channels)
        return torch.where(of[:, list(change.dropped)].any(1), usual, extract(batch).cpu())

    def encoder(batch: Batch) -> Tensor:
        features = extract(_without(batch, change)).cpu()
        if pool not in CHANNEL_BY_CHANNEL:
            return features
        columns = range(len(model.channel_names)) if batch.channels is None else batch.channels.tolist()
        gone = {columns[c] for c in change.dropped}
        # In the model's order of groups, as the features are.
        present = [[names.index(n) for n in group] for group in model.groups if names.index(group[0]) in columns]
        stays = torch.tensor([not gone.intersection(group) for group in present])
        width = model.num_features * (2 if pool in WITH_EMBEDDING else 1)
        full = usual.view(-1, len(present), width).expand(*features.shape[:-1], -1, -1, -1).clone()
        full[..., stays, :] = features.view(*features.shape[:-1], full.shape[-3], -1, width)
        return full.flatten(-3)

    names = list(model.channel_names)
    return statistics if name in (STATISTICS, RELATIONS) else encoder if name in (ENCODER, RANDOM) else extract


def _channel_moments(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """(C,) mean and standard deviation of the valid pixels; 0 for a channel without any."""
    count: Tensor | float = 0.0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    for batch in batches:
        image = batch.image.masked_fill(~batch.valid, 0.0).to(torch.float64)
        count = count + batch.valid.sum((0, 2, 3)).to(torch.float64)
        total, squares = total + image.sum((0, 2, 3)), squares + image.square().sum((0, 2, 3))
    number = torch.as_tensor(count).clamp(min=1)
    mean = torch.as_tensor(total) / number
    return mean.float(), (torch.as_tensor(squares) / number - mean.square()).clamp(min=0).sqrt().float()


def _mean(results: Sequence[RobustnessResult]) -> RobustnessResult:
    """One result of several draws of the same change."""
    first = results[0]

    def average(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    accuracy = {name: float(np.mean([result.accuracy[name] for result in results])) for name in first.accuracy}
    return RobustnessResult(
        first.kind,
        first.label,
        first.value,
        accuracy,
        average([result.masked_l1 for result in results]),
        average([result.floor_l1 for result in results]),
        average([result.unchanged_l1 for result in results]),
        len(results),
        first.samples,
        first.windows,
    )
