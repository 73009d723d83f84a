"""A trained model as a scikit-learn transformer.

Shape letters: n images, C channels, D features; h, w pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from auxmae.data.image import Window
from auxmae.data.readers.encoding import Encoding, to_image
from auxmae.data.statistics import Scaling
from auxmae.device import select_device
from auxmae.errors import CheckpointError
from auxmae.export.units import cut, make_layout
from auxmae.model.folders import SETTINGS_NAME, locate
from auxmae.model.inputs import Preparation
from auxmae.model.mae import AuxMAE
from auxmae.model.pooling import pool_windows
from auxmae.settings import check_run_settings, settings_from_toml
from auxmae.settings.schema import SettingsTree


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images (n, C, h, w) → features (n, D) of a frozen encoder, for a scikit-learn Pipeline.

    Nothing is learned in `fit`: it loads the model and checks the images.  Features are those of `auxmae embed`: images larger
    than the crops of training are cut into windows of their size, whose features are averaged; NaN, infinity, masked entries of
    numpy masked arrays, and in raw pixels the run's data.nodata (in float64 its nearest float32 too), are not valid.

    `fit` takes down what decides the features (model, channels, pool, scale): set anew, they count from the next `fit` on.

    Args:
        model: a run or model folder, "last" (the newest run under runs/), a hub repository, or an `AuxMAE`.
        channels: which of the model's channels the images have, in their order: names or indices; None: all.
        pool: "mean", "concat", "moments", "moments+embedding", "attention" or "cls"; see `AuxMAE.forward_features`.
            None: the run's eval.pool, of a model alone "moments".
        scale: apply the model's own scaling to raw pixels; False where the images are scaled already.
        batch_size: images per forward pass.
        device: where to compute: "auto", "cpu", "mps", "cuda" or "cuda:N"; None: where the `AuxMAE` is, else the CPU.
            An `AuxMAE` itself is never moved: elsewhere a copy of it computes.

    Attributes:
        model_: the loaded model; channels_: names of the images' channels; pool_: how features are pooled.
        scaling_: of the raw pixels; None where they are taken as they are; nodata_: their value that means "no data", or None.
        n_features_in_: C.
        n_features_out_: D.
    """

    def __init__(
        self,
        model: AuxMAE | str | Path | None = None,
        *,
        channels: Sequence[str] | Sequence[int] | None = None,
        pool: str | None = None,
        scale: bool = True,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        self.model = model
        self.channels = channels
        self.pool = pool
        self.scale = scale
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: ArrayLike, y: Any = None) -> FeatureExtractor:
        """Loads the model.

        Args:
            X: (n, C, h, w) pixels.
            y: ignored.

        Raises:
            CheckpointError: no model, or a broken one.
            DataError: the images' channels are not the model's.
            SettingsError: there is no such device.
            ValueError: X is no stack of images.
        """
        if self.model is None:
            raise CheckpointError("FeatureExtractor has no model", hint="give it a run folder or an AuxMAE")
        images = _images(X)
        source = self.model if isinstance(self.model, AuxMAE) else locate(self.model)
        self.model_ = source if isinstance(source, AuxMAE) else AuxMAE.from_pretrained(source)
        preparation = Preparation(self.model_.channel_names, self.model_.groups, self.model_.patch_size)
        self.channels_ = preparation.select(self.channels, images.shape[1]).names
        run = _run_settings(source)
        self.pool_ = self.pool or ("moments" if run is None else run.eval.pool)
        scaling = self.model_.scaling if self.scale else None
        self.scaling_ = Scaling.from_dict(scaling).select(self.channels_) if scaling else None
        self.nodata_ = None if run is None or not self.scale or run.data.nodata == "auto" else float(run.data.nodata)
        self.n_features_in_ = images.shape[1]
        self.n_features_out_ = self._features(images[:1]).shape[1]
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Features (n, D) of images (n, C, h, w); h and w may differ from call to call.

        Raises:
            ValueError: X is no stack of such images, or features are not finite: of weights or pixels too large to compute with.
        """
        check_is_fitted(self, "model_")
        images = _images(X)
        if images.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {images.shape[1]} channels, but FeatureExtractor was fitted with {self.n_features_in_}")
        size = max(int(self.batch_size), 1)
        features = np.concatenate([self._features(images[start : start + size]) for start in range(0, len(images), size)])
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise ValueError(
                f"the features of {len(bad)} of {len(images)} images are not finite, the first X[{bad[0]}]: its pixels are "
                "too far from those of training, or the model has diverged"
            )
        return features

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """ "auxmae0", "auxmae1", …"""
        check_is_fitted(self, "model_")
        return np.array([f"auxmae{number}" for number in range(self.n_features_out_)], dtype=object)

    def _features(self, images: NDArray[Any]) -> NDArray[np.float32]:
        here = next(self.model_.parameters()).device
        device = here if self.device is None else select_device(str(self.device))
        if self.model_ is self.model and device != here:
            # The caller's own.
            self.model_ = copy.deepcopy(self.model_)
        # Not in inference mode, where it might not learn any more.
        model = self.model_.to(device)
        # As the readers do it, which take one image's channels; those of all images are alike here.
        stored = images.reshape(-1, *images.shape[2:])
        given = ~np.ma.getmaskarray(stored)
        read = to_image(np.ma.getdata(stored), _encoding(self.nodata_, stored.dtype), valid=given)
        x, valid = (torch.from_numpy(part.reshape(images.shape)) for part in (read.pixels, read.valid))
        if self.scaling_ is not None:
            x = self.scaling_.apply(x).masked_fill(~valid, 0.0)
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                features = self._encode(x.to(device), valid.to(device))
        finally:
            model.train(was_training)
        result: NDArray[np.float32] = features.numpy()
        return result

    def _encode(self, x: Tensor, valid: Tensor) -> Tensor:
        """(n, D) on the CPU."""
        model, side = self.model_, make_layout(self.model_.image_size, self.model_.patch_size, dense=False).window
        vectors, counts = [], []
        for window in cut(Window(0, 0, *x.shape[2:]), side, side):
            rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
            shown = valid[:, :, rows, columns]
            vectors.append(model.forward_features(x[:, :, rows, columns], valid=shown, channels=self.channels_, pool=self.pool_))
            counts.append(shown.flatten(1).sum(1))
        return pool_windows(torch.stack(vectors), torch.stack(counts))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _run_settings(source: AuxMAE | Path) -> SettingsTree | None:
    path = None if isinstance(source, AuxMAE) else source / SETTINGS_NAME
    if path is None or not path.is_file():
        return None
    check_run_settings(path)
    return settings_from_toml(path)


def _encoding(nodata: float | None, dtype: np.dtype[Any]) -> Encoding:
    """Pixels of which one value means "no data"; a wider copy of float32 pixels holds it as float32 does."""
    if nodata is None or dtype.kind != "f" or dtype.itemsize <= 4:
        return Encoding().with_nodata(nodata)
    with np.errstate(over="ignore"):
        return Encoding(((nodata, float(np.float64(nodata).astype(np.float32))),))


def _images(X: ArrayLike) -> NDArray[Any]:
    if isinstance(X, list | tuple) or (isinstance(X, np.ndarray) and X.dtype.kind == "O" and X.ndim == 1):
        sizes = {np.shape(one)[-2:] for one in X}
        if len(sizes) > 1 and all(len(size) == 2 for size in sizes):
            raise ValueError(
                f"X must be images of one size, not of {len(sizes)}, such as "
                f"{' and '.join(f'{height}×{width}' for height, width in sorted(sizes)[:2])}: transform each size by itself"
            )
        # np.asarray would drop the masks of the single images, and show what lies below them.
        images = np.ma.stack(list(X)) if any(np.ma.isMaskedArray(one) for one in X) else np.asarray(list(X))
    else:
        images = np.asanyarray(X) if np.ma.isMaskedArray(X) else np.asarray(X)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"X must be images (n, C, h, w), none of these 0, not an array of shape {images.shape}")
    if images.dtype.kind not in "buif":
        raise ValueError(f"X must be real numbers, not {images.dtype}")
    return images
