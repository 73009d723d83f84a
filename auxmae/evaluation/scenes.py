"""Dense labels: every pixel of a scene by the features of the window around it, one half against the other.

Shape letters: B batch, C channels, D features, n positions; H, W of the scene, px.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from auxmae.evaluation.classifiers import predict
from auxmae.evaluation.features import Features
from auxmae.evaluation.pixel_probes import PixelProbes, describe_splits
from auxmae.evaluation.pixel_windows import FIT_WINDOWS, LabelledScene, PixelWindows, Positions
from auxmae.evaluation.probes import ENCODER, ProbeReport

if TYPE_CHECKING:
    from auxmae.model.mae import AuxMAE

LEFT_RIGHT, RIGHT_LEFT, AT_RANDOM, GIVEN = "left → right", "right → left", "random pixels", "given pixels"
LEAKAGE = (
    "The split of random pixels leaks: a test pixel's neighbours, which share most of its window and often its label, are "
    "trained on.  Its figures are shown beside the halves to tell by how much it flatters."
)
# The probe behind the map.
MAP = "logistic regression"


@dataclass(frozen=True)
class SceneResult:
    """Probes on one scene.

    Attributes:
        reports: split → probes; both halves and random pixels, or the given pixels alone.
        digests: split → hex digest of which pixels were trained and tested on.
        prediction: (H, W) int64 class of every pixel by logistic regression on the encoder's features, each square of the grid
            by one pixel of it: each half from what the probes of that split are trained on, all of its labels, or everything
            from the given training pixels; −1 where the scene has no valid pixel or nothing could be fitted.
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
        splits = describe_splits(self.reports, self.digests)
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
    scene: LabelledScene,
    probes: PixelProbes,
    *,
    test_labels: NDArray[np.int64] | None = None,
    progress: Callable[[str], None] | None = None,
) -> SceneResult:
    """Probes pixels by the features of the window around them.

    A pixel's features are those of the patch at the centre of its window (with pool = "cls", the window's CLS tokens behind
    them).  Floors see the same window: its channel statistics and random convolutions, its centre's spectrum,
    patch (of 3 × 3 px at least), and principal components, and the untrained network.

    Without `test_labels` one half is trained on and the other tested on, both ways, and a split of random pixels stands beside
    them.  With them there is one split: every pixel that has one is tested on, and the others that have a label are trained on.

    The pixels lie on a grid, or are all labelled ones, with `test_labels` and where a grid meets too few of the labels (see
    `find_positions`).

    Args:
        model: the encoder, left in the mode in which it came.
        scene: with the model's channels, or those at the indices `probes.channels`.
        probes: how they are probed; of each half at most `max_samples` labelled positions are used.
        test_labels: (H, W), −1: none; a benchmark's own test pixels.
        progress: told what is being done.

    Raises:
        ValueError: the shapes differ, or not one pixel is valid.
    """
    image, valid, labels = scene
    if test_labels is not None and test_labels.shape != labels.shape:
        raise ValueError(f"labels are {labels.shape}, those to test on {test_labels.shape}")
    if image.shape[1:] != labels.shape or valid.shape != image.shape:
        raise ValueError(f"image {tuple(image.shape)}, valid {tuple(valid.shape)}, labels {labels.shape}: sizes differ")
    if not valid.any():
        raise ValueError("not one pixel is valid")
    say = progress or (lambda text: None)
    height, width = labels.shape
    notices = []
    if test_labels is not None:
        both = int(((labels >= 0) & (test_labels >= 0)).sum())
        if both:
            notices.append(f"{both} pixels have a label to train on and one to test on: they are only tested on.")
        labels = np.where(test_labels >= 0, test_labels, labels)
    windows = PixelWindows(image, valid, model, probes.channels)
    window = windows.window
    found = probes.find(valid.any(dim=0).numpy(), labels, every_label=test_labels is not None)
    grid, places = found.grid, found.places

    say("the encoder's features")
    encode = probes.encoder(model)
    encoder = windows.extract(grid, {ENCODER: encode})[ENCODER]
    random = np.random.default_rng(probes.seed)
    first = places[:, 1] < width // 2 if test_labels is None else test_labels[places[:, 0], places[:, 1]] < 0
    parts = [random.permutation(np.flatnonzero(part))[: probes.max_samples] for part in (first, ~first)]
    chosen = np.sort(np.concatenate(parts))
    drawn = places[chosen]
    y = labels[drawn[:, 0], drawn[:, 1]]
    # Whole windows are resampled, and kept on one side when the penalty is chosen.
    groups = windows.tiles(drawn)
    say("the floors' features")
    picked = np.random.default_rng([probes.seed, 2]).permutation(len(grid))[:FIT_WINDOWS]
    of_drawn = encoder[found.on_grid[chosen]] if not found.whole else windows.extract(drawn, {ENCODER: encode})[ENCODER]
    rows = {ENCODER: of_drawn, **windows.extract(drawn, probes.floors(model, [windows.batch(grid[picked])]))}
    samples = {name: Features(x, y, groups) for name, x in rows.items()}

    column, half = drawn[:, 1], width // 2
    gap = min(window - 1, half // 2) if test_labels is None else 0
    if test_labels is None:
        mixed = np.random.default_rng([probes.seed, 1]).permutation(len(chosen)) < len(chosen) // 2
        splits = {
            LEFT_RIGHT: (column < half - gap, column >= half),
            RIGHT_LEFT: (column >= half + gap, column < half),
            AT_RANDOM: (mixed, ~mixed),
        }
    else:
        splits = {GIVEN: (first[chosen], ~first[chosen])}
    reports, digests = {}, {}
    for name, (train, held) in splits.items():
        reports[name], digests[name] = probes.run(
            samples,
            drawn,
            train,
            held,
            lambda what, name=name: say(f"{name}: {what}"),  # type: ignore[misc]
        )
    say("the map")
    predicted = np.full(len(grid), -1, dtype=np.int64)
    left = grid[:, 1] < half
    for name, shown in {LEFT_RIGHT: ~left, RIGHT_LEFT: left, GIVEN: np.ones_like(left)}.items():
        if name in reports and not reports[name].reason and shown.any():
            known = samples[ENCODER].take(np.flatnonzero(splits[name][0]))
            predicted[shown] = predict(known, encoder[shown], neighbours=probes.neighbours, probes=(MAP,))[MAP]
    if test_labels is not None:
        notices = [*_closeness(drawn[first[chosen]], drawn[~first[chosen]], window, (height, width)), *notices]
    elif gap < window - 1:
        notices.append(
            f"The scene is too narrow for its windows of {window} px: those of training pixels share up to {window - 1 - gap} "
            "columns with those of test pixels, which flatters all features that see a window (smaller: model.image_size)."
        )
    notices += _left_out(found, len(drawn), probes.max_samples)
    prediction = _spread(predicted, grid, valid, found.stride)
    return SceneResult(reports, digests, prediction, labels, window, found.stride, gap, found.labelled, len(drawn), notices)


def _left_out(found: Positions, used: int, max_samples: int) -> list[str]:
    """Says which of a scene's labels are used, where not all of the grid's are, or not all."""
    notices = []
    if found.whole:
        met = f"meets {len(found.on_grid)} of {found.labelled} labelled pixels"
        notices.append(f"The grid (eval.stride = {found.stride}) {met}: all are drawn from.")
    if used < found.labelled:
        reasons = [f"eval.stride = {found.stride}"] if len(found.places) < found.labelled else []
        reasons += [f"eval.max_samples = {max_samples}"] if used < len(found.places) else []
        notices.append(f"The probes use {used} of {found.labelled} labelled pixels ({', '.join(reasons)}).")
    return notices


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
