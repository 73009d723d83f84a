"""What frozen features are worth while training goes on: their effective rank, and k-NN where there are labels.

Shape letters: n samples, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from auxmae.data.loading import Loader
from auxmae.evaluation.classifiers import limit_neighbours
from auxmae.evaluation.features import Features, encoder_extractor, extract_features
from auxmae.model.mae import AuxMAE

NEIGHBOURS = 5
# Enough for a trend; a probe has to take little beside the epochs between two.
SAMPLES = 1000
RANK_IMAGES = 64


def effective_rank(x: NDArray[np.float32]) -> float:
    """exp of the entropy of the singular values, as shares of their sum (Roy & Vetterli 2007; RankMe, arXiv 2210.02885).

    Unlike RankMe, the features' mean is taken off first: a large common vector would hide all else.

    Args:
        x: (n, D).

    Returns:
        1 … min(n, D), 0 where all rows are equal, NaN where a feature is not finite.
    """
    if not np.isfinite(x).all():
        return float("nan")
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)
    # What rounding leaves of equal float32 rows is no direction.
    scale = float(np.abs(wide).max(initial=0.0)) * np.finfo(np.float32).eps * max(x.shape, default=0)
    values = values[values > scale]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


class Probe:
    """Measures a model that is being trained; draws from no global generator, so that training goes on unchanged.

    Args:
        model: on `device`.
        train: labelled batches in a fixed order, whose features the neighbours are looked for in, each image once; None: no k-NN.
        held: batches that are not trained on, in a fixed order.
        pool: see `AuxMAE.forward_features`.
        dense: label maps, one sample a patch, instead of one label an image.
        device: where the model is.
    """

    def __init__(
        self, model: AuxMAE, train: Loader | None, held: Loader, *, pool: str, dense: bool, device: torch.device
    ) -> None:
        self.model, self.pool, self.dense, self.device = model, pool, dense, device
        # Between two probes lie epochs: processes that waited for the next one would only take memory from training.
        most = 0 if dense else SAMPLES
        self.train = None if train is None else train.limited(train.samples if dense else most, lasting=False)
        self.held, self.rank_part = held.limited(most, lasting=False), held.limited(RANK_IMAGES, workers=0)

    def __call__(self) -> dict[str, float]:
        """effective_rank of the features of patches, and knn_accuracy where both parts have labels."""
        values = {"effective_rank": effective_rank(self._places())}
        if self.train is not None:
            train, held = self._labelled(self.train), self._labelled(self.held)
            if len(train) and len(held) and np.isfinite(train.x).all() and np.isfinite(held.x).all():
                values["knn_accuracy"] = knn_accuracy(train, held)
        return values

    @torch.inference_mode()
    def _places(self) -> NDArray[np.float32]:
        extract = encoder_extractor(self.model, pool="mean", device=self.device, dense=True)
        return np.concatenate([extract(batch).float().cpu().flatten(0, 1).numpy() for batch in self.rank_part])

    def _labelled(self, batches: Loader) -> Features:
        return extract_features(self.model, batches, pool=self.pool, device=self.device, dense=self.dense, limit=SAMPLES)


def knn_accuracy(train: Features, held: Features) -> float:
    """Accuracy of the majority of the 5 nearest training samples (see `limit_neighbours`), features standardised."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.x.astype(np.float64))
    classifier = KNeighborsClassifier(limit_neighbours(NEIGHBOURS, train.y)).fit(scaler.transform(train.x), train.y)
    return float((classifier.predict(scaler.transform(held.x)) == held.y).mean())
