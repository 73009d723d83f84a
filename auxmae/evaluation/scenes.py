"""Dense labels: every pixel of a scene by the features of the window around it, one half against the other.

Shape letters: B batch, C channels, D features, n positions; H, W of the scene, px.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from auxmae.data.loading import Batch
from auxmae.evaluation.classifiers import predict
from auxmae.evaluation.feature_floors import (
    CONVOLUTIONS,
    PCA,
    RAW_PATCH,
    RAW_SPECTRUM,
    STATISTICS,
    convolution_extractor,
    pca_extractor,
    raw_extractor,
    sample_patches,
    spectrum_extractor,
)
from auxmae.evaluation.features import Extractor, Features, statistics_extractor
from auxmae.evaluation.probes import ENCODER, RANDOM, ProbeReport, run_probes, untrained

if TYPE_CHECKING:
    from auxmae.model.mae import AuxMAE

LEFT_RIGHT, RIGHT_LEFT, AT_RANDOM, GIVEN = "left → right", "right → left", "random pixels", "given pixels"
LEAKAGE = (
    "The split of random pixels leaks: a test pixel's neighbours, which share most of its window and often its label, are "
    "trained on.  Its figures are shown beside the halves to tell by how much it flatters."
)
# The probe behind the map.
MAP = "logistic regression"
_MOST_POSITIONS = 20_000
# Where labels cover less than this part of a scene, and its grid meets fewer of them than the probes could use, all are used.
_SPARSE = 0.1
_FEW_PER_CLASS = 20
# So many windows go through the networks at a time, or fewer, since memory grows with the tokens they have together.
_BATCH = 128
_TOKENS = 100_000
# Patches that the floors are fitted on come from this many windows.
_FIT_WINDOWS = 600


@dataclass(frozen=True)
class SceneResult:
    """Probes on one scene.

    Attributes:
        reports: split → probes; both halves and random pixels, or the given pixels alone.
        digests: split → hex digest of which pixels were trained and tested on.
        prediction: (H, W) int64 class of every pixel by logistic regression on the encoder's features: each half from all
            labels of the other half, or everything from the given training pixels; −1 where the scene has no valid pixel or
            nothing could be fitted.
        labels: (H, W) int64, −1: none; of given test pixels, theirs.
        window, stride: px.
        gap: columns next to the border between the halves that nothing is trained on, so that no window of a training
            position shares a pixel with a window of a test position; at most half of a half; 0 where the pixels are given.
        labelled, used: valid pixels that have a label, and those of them that were drawn for the probes.
        notices: what the reader of the figures should know, one sentence each.
    """

    reports: dict[str, ProbeReport]
    digests: dict[str, str]
    prediction: NDArray[np.int64]
    labels: NDArray[np.int64]
    window: int
    stride: int
    gap: int
    labelled: int
    used: int
    notices: list[str]

    def to_dict(self) -> dict[str, object]:
        """The result as `auxmae eval --dense --json` prints it."""
        splits = {
            name: {
                "split": self.digests[name],
                "train": report.train_samples,
                "test": report.test_samples,
                "probes": [result.to_dict() for result in report.results],
                "comparisons": [comparison.to_dict() for comparison in report.comparisons],
                "verdict": report.verdict(),
                "reason": report.reason,
                "notices": report.notices,
            }
            for name, report in self.reports.items()
        }
        return {
            "window": self.window,
            "stride": self.stride,
            "gap": self.gap,
            "labelled_pixels": self.labelled,
            "used_pixels": self.used,
            "notices": self.notices,
            "splits": splits,
            **({"warning": LEAKAGE} if AT_RANDOM in splits else {}),
        }


def evaluate_scene(
    model: AuxMAE,
    image: Tensor,
    valid: Tensor,
    labels: NDArray[np.int64],
    *,
    pool: str,
    stride: int = 0,
    max_samples: int,
    labels_per_class: Sequence[int],
    neighbours: int,
    bootstrap: int,
    seed: int,
    device: torch.device | str,
    class_names: Sequence[str] = (),
    channels: Tensor | None = None,
    test_labels: NDArray[np.int64] | None = None,
    progress: Callable[[str], None] | None = None,
) -> SceneResult:
    """Probes pixels by the features of the window around them.

    A pixel's features are those of the patch at the centre of its window (with pool = "cls", the window's CLS tokens behind
    them).  Floors see the same window: its channel statistics and random convolutions, its centre's spectrum,
    patch (of 3 × 3 px at least), and principal components, and the untrained network.

    Without `test_labels` one half is trained on and the other tested on, both ways, and a split of random pixels stands beside
    them.  With them there is one split: every pixel that has one is tested on, and the others that have a label are trained on.

    The pixels lie on a grid.  Where less than a tenth of the scene is labelled, and the grid meets fewer labelled pixels than
    the largest of `labels_per_class` (20 at least) for each class and part, all labelled pixels are drawn from instead.

    Args:
        model: the encoder, left in the mode in which it came.
        image, valid: (C, H, W), scaled, with the model's channels, or those at the indices `channels`.
        labels: (H, W), −1: none.
        pool: see `AuxMAE.dense_features`.
        stride: px between positions; 0: the smallest that leaves at most 20 000.
        max_samples: labelled positions per half (or to train on and to test on), at most, drawn at random.
        labels_per_class, neighbours, bootstrap, class_names: see `run_probes`.
        seed: of all draws.
        device: where the model is.
        channels: of the model, those that the image has; None: all.
        test_labels: (H, W), −1: none; a benchmark's own test pixels.
        progress: told what is being done.

    Raises:
        ValueError: the shapes differ.
    """
    if test_labels is not None and test_labels.shape != labels.shape:
        raise ValueError(f"labels are {labels.shape}, those to test on {test_labels.shape}")
    if image.shape[1:] != labels.shape or valid.shape != image.shape:
        raise ValueError(f"image {tuple(image.shape)}, valid {tuple(valid.shape)}, labels {labels.shape}: sizes differ")
    say = progress or (lambda text: None)
    height, width = labels.shape
    stride = stride or max(1, math.ceil(math.sqrt(height * width / _MOST_POSITIONS)))
    patches = max(model.image_size // model.patch_size, 1)
    window = (patches - (patches + 1) % 2) * model.patch_size
    rows, columns = (_centres(side, stride) for side in (height, width))
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid[valid.any(dim=0).numpy()[grid[:, 0], grid[:, 1]]]
    windows = _Windows(image, valid, window, model.patch_size, channels)

    say("the encoder's features")
    both = 0
    if test_labels is not None:
        both = int(((labels >= 0) & (test_labels >= 0)).sum())
        labels = np.where(test_labels >= 0, test_labels, labels)
    tokens = len(model.groups) * (window // model.patch_size) ** 2
    together = max(1, min(_BATCH, _TOKENS // tokens))
    encoder = _extract(windows, grid, together, {ENCODER: _centre_extractor(model, pool, device)})[ENCODER]
    labelled = (labels >= 0) & valid.any(dim=0).numpy()
    on_grid = np.flatnonzero(labelled[grid[:, 0], grid[:, 1]])
    sparse = _is_sparse(len(on_grid), labels[labelled], int(valid.any(dim=0).sum()), labels_per_class)
    places = np.argwhere(labelled) if sparse else grid[on_grid]
    random = np.random.default_rng(seed)
    first = places[:, 1] < width // 2 if test_labels is None else test_labels[places[:, 0], places[:, 1]] < 0
    chosen = np.sort(np.concatenate([random.permutation(np.flatnonzero(part))[:max_samples] for part in (first, ~first)]))
    drawn = places[chosen]
    y = labels[drawn[:, 0], drawn[:, 1]]
    # Whole windows are resampled, and kept on one side when the penalty is chosen.
    tiles = drawn // window
    groups = tiles[:, 0] * (width // window + 1) + tiles[:, 1]
    say("the floors' features")
    kinds = _floors(windows, grid, model, seed) | {
        RANDOM: _centre_extractor(untrained(model, seed=seed).to(device), pool, device)
    }
    if sparse:
        kinds[ENCODER] = _centre_extractor(model, pool, device)
    found = _extract(windows, drawn, together, kinds)
    samples = {
        name: Features(found[name] if name in found else encoder[on_grid[chosen]], y, groups) for name in (ENCODER, *kinds)
    }

    column, half = drawn[:, 1], width // 2
    gap = min(window - 1, half // 2) if test_labels is None else 0
    reports, digests = {}, {}
    if test_labels is None:
        mixed = np.random.default_rng([seed, 1]).permutation(len(chosen)) < len(chosen) // 2
        splits = {
            LEFT_RIGHT: (column < half - gap, column >= half),
            RIGHT_LEFT: (column >= half + gap, column < half),
            AT_RANDOM: (mixed, ~mixed),
        }
    else:
        splits = {GIVEN: (first[chosen], ~first[chosen])}
    for name, (train, held) in splits.items():
        fit, test = np.flatnonzero(train), np.flatnonzero(held)
        order = np.concatenate([drawn[fit], [[-1, -1]], drawn[test]])
        digests[name] = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16]
        reports[name] = run_probes(
            {kind: features.take(fit) for kind, features in samples.items()},
            {kind: features.take(test) for kind, features in samples.items()},
            labels_per_class=labels_per_class,
            neighbours=neighbours,
            bootstrap=bootstrap,
            seed=seed,
            class_names=class_names,
            progress=lambda what, name=name: say(f"{name}: {what}"),  # type: ignore[misc]
        )
    say("the map")
    predicted = np.full(len(grid), -1, dtype=np.int64)
    left = grid[:, 1] < half
    for name, shown in {LEFT_RIGHT: ~left, RIGHT_LEFT: left, GIVEN: np.ones_like(left)}.items():
        if name in reports and not reports[name].reason and shown.any():
            fit = np.flatnonzero(splits[name][0])
            predicted[shown] = predict(samples[ENCODER].take(fit), encoder[shown], neighbours=neighbours, probes=(MAP,))[MAP]
    total = int(labelled.sum())
    notices = []
    if test_labels is not None:
        notices += _closeness(drawn[first[chosen]], drawn[~first[chosen]], window, (height, width))
    if test_labels is None and gap < window - 1:
        notices.append(
            f"The scene is too narrow for its windows of {window} px: those of training pixels share up to {window - 1 - gap} "
            "columns with those of test pixels, which flatters all features that see a window (smaller: model.image_size)."
        )
    if both:
        notices.append(f"{both} pixels have a label to train on and one to test on: they are only tested on.")
    if sparse:
        notices.append(f"The grid (eval.stride = {stride}) meets {len(on_grid)} of {total} labelled pixels: all are drawn from.")
    if len(drawn) < total:
        reasons = [f"eval.stride = {stride}"] if len(places) < total else []
        reasons += [f"eval.max_samples = {max_samples}"] if len(drawn) < len(places) else []
        notices.append(f"The probes use {len(drawn)} of {total} labelled pixels ({', '.join(reasons)}).")
    prediction = _spread(predicted, grid, valid, stride)
    return SceneResult(reports, digests, prediction, labels, window, stride, gap, total, len(drawn), notices)


def _is_sparse(met: int, known: NDArray[np.int64], valid: int, labels_per_class: Sequence[int]) -> bool:
    """Whether a grid that meets so many of the `known` labels misses what the probes could use (see `evaluate_scene`)."""
    wanted = 2 * len(np.unique(known)) * max(_FEW_PER_CLASS, *labels_per_class)
    return len(known) < _SPARSE * valid and met < min(wanted, len(known))


def _centres(side: int, stride: int) -> NDArray[np.int64]:
    """One position in each `stride` px of a side, in the middle; in what is left over at its end, which may be less, too."""
    starts = np.arange(0, side, stride)
    return np.minimum(starts + stride // 2, side - 1)


def _closeness(train: NDArray[np.int64], test: NDArray[np.int64], window: int, size: tuple[int, int]) -> list[str]:
    """Says how many test pixels (n, 2) have a window that shares pixels with a training pixel's."""
    near = torch.zeros(1, 1, *size)
    near[0, 0, train[:, 0], train[:, 1]] = 1
    reach = F.max_pool2d(near, 2 * window - 1, stride=1, padding=window - 1)[0, 0].numpy() > 0
    count = int(reach[test[:, 0], test[:, 1]].sum())
    if not count:
        return []
    return [
        f"The windows of {count} of {len(test)} test pixels share pixels with training windows ({window} px wide), and "
        "neighbours often have one label: that flatters all features that see a window."
    ]


def _spread(predicted: NDArray[np.int64], grid: NDArray[np.int64], valid: Tensor, stride: int) -> NDArray[np.int64]:
    """Positions' classes → (H, W): every valid pixel gets that of its position's square."""
    height, width = valid.shape[1:]
    squares = np.full((-(-height // stride), -(-width // stride)), -1, dtype=np.int64)
    squares[grid[:, 0] // stride, grid[:, 1] // stride] = predicted
    full = squares.repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]
    return np.where(valid.any(dim=0).numpy(), full, -1)


class _Windows:
    """Windows of a scene, each with its pixel in the centre patch; what lies beyond the scene is not valid."""

    def __init__(self, image: Tensor, valid: Tensor, window: int, patch_size: int, channels: Tensor | None = None) -> None:
        self.window, self.patch_size, self.channels = window, patch_size, channels
        before = window // patch_size // 2 * patch_size + patch_size // 2
        margin = (before, window - before, before, window - before)
        self.image = F.pad(image.masked_fill(~valid, 0.0), margin)
        self.valid = F.pad(valid, margin)

    def batch(self, positions: NDArray[np.int64]) -> Batch:
        """A batch of the windows around (n, 2) positions."""
        side = self.window
        cuts = [(slice(None), slice(row, row + side), slice(column, column + side)) for row, column in positions.tolist()]
        image, valid = (torch.stack([whole[cut] for cut in cuts]) for whole in (self.image, self.valid))
        return Batch(image, valid, torch.zeros(len(positions), dtype=torch.int64), None, self.channels)

    def centre(self, batch: Batch, *, least: int = 1) -> Batch:
        """The centre patches alone; where these are smaller, the `least` px around the pixel, as far as the window goes."""
        first, side = self.window // self.patch_size // 2 * self.patch_size, self.patch_size
        if side < least <= self.window:
            first, side = first + side // 2 - least // 2, least
        inside = slice(first, first + side)
        return batch._replace(image=batch.image[..., inside, inside], valid=batch.valid[..., inside, inside])


def _centre_extractor(model: AuxMAE, pool: str, device: torch.device | str) -> Extractor:
    def extract(batch: Batch) -> Tensor:
        image, valid = batch.image.to(device), batch.valid.to(device)
        was_training = model.training
        model.eval()
        try:
            maps = model.dense_features(image, valid=valid, channels=batch.channels, pool=pool)
            return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
        finally:
            model.train(was_training)

    return extract


def _floors(windows: _Windows, grid: NDArray[np.int64], model: AuxMAE, seed: int) -> dict[str, Extractor]:
    """The floors that are no network; PCA and filters are fitted on unlabelled windows of the whole scene."""
    picked = np.random.default_rng([seed, 2]).permutation(len(grid))[:_FIT_WINDOWS]
    p = model.patch_size
    patches = sample_patches([windows.batch(grid[picked])], {p, 3}, seed=seed)
    components = pca_extractor(patches[p], patch_size=p, components=model.num_features, dense=True)
    spectrum, patch = spectrum_extractor(p), raw_extractor()
    return {
        STATISTICS: statistics_extractor(),
        RAW_SPECTRUM: lambda batch: spectrum(windows.centre(batch))[:, 0],
        RAW_PATCH: lambda batch: patch(windows.centre(batch, least=3)),
        PCA: lambda batch: components(windows.centre(batch))[:, 0],
        CONVOLUTIONS: convolution_extractor(patches[3], windows.image.shape[0], patch_size=None, seed=seed),
    }


@torch.inference_mode()
def _extract(
    windows: _Windows, positions: NDArray[np.int64], together: int, extractors: dict[str, Extractor]
) -> dict[str, NDArray[np.float32]]:
    """name → (n, D), of so many windows at a time."""
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in extractors}
    for start in range(0, len(positions), together):
        batch = windows.batch(positions[start : start + together])
        for name, extract in extractors.items():
            parts[name].append(extract(batch).to("cpu", torch.float32).numpy())
    return {name: np.concatenate(found) if found else np.zeros((0, 1), np.float32) for name, found in parts.items()}
