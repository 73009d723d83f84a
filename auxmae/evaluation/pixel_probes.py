"""How pixels are probed by the windows around them, of one scene or across scenes: the options, the features, and a split.

Shape letters: D features, n positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auxmae.evaluation.features import Extractor, Features
from auxmae.evaluation.pixel_windows import Positions, centre_extractor, find_positions, window_floors
from auxmae.evaluation.probes import RANDOM, ProbeReport, run_probes, untrained

if TYPE_CHECKING:
    from auxmae.data.loading import Batch
    from auxmae.model.mae import AuxMAE


@dataclass(frozen=True)
class PixelProbes:
    """What is the same for every scene and split.

    Attributes:
        pool: see `AuxMAE.dense_features`.
        max_samples: labelled pixels to train on, and to test on, at most, drawn at random.
        labels_per_class, neighbours, bootstrap, class_names: see `run_probes`.
        seed: of all draws.
        device: where the model is.
        stride: px between positions; 0: the smallest that leaves at most 20 000 of a scene.
        channels: of the model, those that the images have; None: all.
    """

    pool: str
    max_samples: int
    labels_per_class: Sequence[int]
    neighbours: int
    bootstrap: int
    seed: int
    device: torch.device | str
    stride: int = 0
    class_names: Sequence[str] = ()
    channels: Tensor | None = None

    def find(self, valid: NDArray[np.bool_], labels: NDArray[np.int64], *, every_label: bool = False) -> Positions:
        """The pixels of a scene that are looked at: valid and labels (H, W), see `find_positions`."""
        return find_positions(valid, labels, stride=self.stride, labels_per_class=self.labels_per_class, every_label=every_label)

    def encoder(self, model: AuxMAE) -> Extractor:
        """The encoder's features of a window's centre."""
        return centre_extractor(model, self.pool, self.device)

    def floors(self, model: AuxMAE, windows: Iterable[Batch]) -> dict[str, Extractor]:
        """Those of `window_floors`, fitted on the windows, and the same network untrained."""
        network = untrained(model, seed=self.seed).to(self.device)
        return {**window_floors(windows, model, self.seed), RANDOM: self.encoder(network)}

    def run(
        self,
        samples: Mapping[str, Features],
        places: NDArray[np.int64],
        train: NDArray[np.bool_],
        test: NDArray[np.bool_],
        progress: Callable[[str], None],
        *,
        folded: NDArray[np.int64] | None = None,
    ) -> tuple[ProbeReport, str]:
        """The probes of one split, and a hex digest of which pixels it trains and tests on.

        Args:
            samples: kind of features → features of n pixels.
            places: (n, k) what names a pixel: row and column, and its scene before them where there are several.
            train, test: (n,).
            progress: told what is being done.
            folded: (n,) what the choice of the penalty keeps together; None: the samples' groups, which intervals resample.
        """
        fit, held = np.flatnonzero(train), np.flatnonzero(test)
        order = np.concatenate([places[fit], np.full((1, places.shape[1]), -1), places[held]])
        report = run_probes(
            {kind: _in_groups(features, folded).take(fit) for kind, features in samples.items()},
            {kind: features.take(held) for kind, features in samples.items()},
            labels_per_class=self.labels_per_class,
            neighbours=self.neighbours,
            bootstrap=self.bootstrap,
            seed=self.seed,
            class_names=self.class_names,
            progress=progress,
        )
        return report, hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16]


def _in_groups(features: Features, groups: NDArray[np.int64] | None) -> Features:
    return features if groups is None else replace(features, groups=groups)


def describe_splits(reports: Mapping[str, ProbeReport], digests: Mapping[str, str]) -> dict[str, object]:
    """The probes of each split as `auxmae eval --dense --json` prints them."""
    return {
        name: {
            "split": digests[name],
            "train": report.train_samples,
            "test": report.test_samples,
            "probes": [result.to_dict() for result in report.results],
            "comparisons": [comparison.to_dict() for comparison in report.comparisons],
            "verdict": report.verdict(),
            "reason": report.reason,
            "notices": report.notices,
        }
        for name, report in reports.items()
    }
