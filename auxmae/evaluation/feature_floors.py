"""Features that need no pre-training: what a trained encoder has to beat.

Shape letters: B batch, C channels, D features, K filters, N patches of an image (row-major), n samples; p patch side, px.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from auxmae.evaluation.features import Extractor, split_patches, statistics_extractor

if TYPE_CHECKING:
    from auxmae.data.loading import Batch

STATISTICS = "channel statistics"
RAW_PIXELS = "raw pixels"
RAW_SPECTRUM = "raw spectrum"
RAW_PATCH = "raw patch"
PCA = "PCA of patches"
CONVOLUTIONS = "random convolutions"
RELATIONS = "channel relations"
# Features of one unit: standardised each for itself, small ones, which are noise, would count like large ones.
COMMON_SCALE = frozenset({PCA})

_RAW = 16384
# Side of the smallest patch that is more than a spectrum, px.
_LEAST = 3
_FILTERS = 256
_KERNEL = 3
# Responses of whitened patches to filters of unit length have variance 1: this keeps the stronger ones.
_BIAS = 1.0
# Patches that PCA and whitening are fitted on, and directions that whitening keeps.
_PATCHES = 5000
# Values of filters' responses that are held at once: a quarter of a GiB.
_RESPONSES = 2**26
_DIRECTIONS = 256
# Features whose principal components are computed exactly.
_EXACT = 4096
# Channels of which every pair is correlated.
_PAIRED = 32


def raw_extractor(patch_size: int | None = None) -> Extractor:
    """All pixels of each image, or of each patch of `patch_size` px, one after the other; 0 where not valid.

    Around a patch of less than 3 px, the 3 × 3 px with its centre in the middle: its spectrum is a floor of its own.
    Images of more than 16 384 values are averaged over squares of the smallest side that brings them below it.
    """

    def extract(batch: Batch) -> Tensor:
        image = batch.image.masked_fill(~batch.valid, 0.0)
        if patch_size is not None and patch_size < _LEAST:
            whole = F.pad(image, (1, 1 - image.shape[3] % -patch_size, 1, 1 - image.shape[2] % -patch_size))
            start = patch_size // 2
            return F.unfold(whole[:, :, start:, start:], _LEAST, stride=patch_size).transpose(1, 2)
        if patch_size is not None:
            return split_patches(image, patch_size, 0.0).flatten(2)
        side = 1
        while image.shape[1] * -(-image.shape[2] // side) * -(-image.shape[3] // side) > _RAW and side < max(image.shape[2:]):
            side += 1
        return F.avg_pool2d(image, side, ceil_mode=True, count_include_pad=False).flatten(1)

    return extract


def relations_extractor() -> Extractor:
    """Of each image: channel statistics, correlations of channels, and root mean squares of neighbours' differences.

    Of up to 32 channels every pair is correlated, of more only those that follow each other.  Over valid pixels, and pairs of
    such; 0 where there are none, or where a channel is constant.
    """
    statistics = statistics_extractor()

    def extract(batch: Batch) -> Tensor:
        valid = batch.valid.to(torch.float64)
        image = batch.image.masked_fill(~batch.valid, 0.0).to(torch.float64)
        x, v = image.flatten(2), valid.flatten(2)
        x = (x - (x.sum(2) / v.sum(2).clamp(min=1))[..., None]) * v
        x = x / x.square().sum(2, keepdim=True).sqrt().clamp(min=1e-12)
        channels = x.shape[1]
        if channels <= _PAIRED:
            rows, columns = torch.triu_indices(channels, channels, 1)
            related = (x @ x.transpose(1, 2))[:, rows, columns]
        else:
            related = (x[:, 1:] * x[:, :-1]).sum(2)
        steps = [statistics(batch), related.float()]
        for axis in (2, 3):
            size = image.shape[axis] - 1
            change = image.narrow(axis, 1, size) - image.narrow(axis, 0, size)
            both = valid.narrow(axis, 1, size) * valid.narrow(axis, 0, size)
            steps.append(((change.square() * both).sum((2, 3)) / both.sum((2, 3)).clamp(min=1)).sqrt().float())
        return torch.cat(steps, 1)

    return extract


def relation_channels(channels: int) -> Tensor:
    """(D, C) bool: which of C channels each of the features of `relations_extractor` is of."""
    own = torch.eye(channels, dtype=torch.bool)
    if channels <= _PAIRED:
        rows, columns = torch.triu_indices(channels, channels, 1)
        pairs = own[rows] | own[columns]
    else:
        pairs = own[1:] | own[:-1]
    return torch.cat([own, own, pairs, own, own])


def spectrum_extractor(patch_size: int) -> Extractor:
    """The spectrum of the pixel at each patch's centre (of an even patch, the one below and right of it)."""
    centre = patch_size // 2 * patch_size + patch_size // 2

    def extract(batch: Batch) -> Tensor:
        image = batch.image.masked_fill(~batch.valid, 0.0)
        return split_patches(image, patch_size, 0.0)[..., centre]

    return extract


def pca_extractor(patches: NDArray[np.float32], *, patch_size: int, components: int, dense: bool) -> Extractor:
    """Principal components of patches; of a whole image their mean and standard deviation over its patches with a valid pixel.

    Args:
        patches: (n, C · p²) patches to fit on, from `sample_patches`.
        patch_size: p.
        components: D, at most; no more than n or C · p².
        dense: (B, N, D) instead of (B, 2 · D).
    """
    from sklearn.decomposition import PCA as Components

    # Exact where the covariance of all components is quick to have; of many more features that takes hours, or the memory.
    solver = "covariance_eigh" if patches.shape[1] <= _EXACT else "randomized"
    fitted = Components(min(components, *patches.shape), svd_solver=solver, random_state=0).fit(patches)
    mean = torch.from_numpy(fitted.mean_.astype(np.float32))
    basis = torch.from_numpy(np.ascontiguousarray(fitted.components_.T, dtype=np.float32))

    def extract(batch: Batch) -> Tensor:
        image = batch.image.masked_fill(~batch.valid, 0.0)
        x_BND = (split_patches(image, patch_size, 0.0).flatten(2) - mean) @ basis
        if dense:
            return x_BND
        known = split_patches(batch.valid.to(x_BND.dtype), patch_size, 0.0).amax((2, 3))[..., None]
        count = known.sum(1).clamp(min=1)
        mean_BD = (x_BND * known).sum(1) / count
        variance = ((x_BND - mean_BD[:, None]).square() * known).sum(1) / count
        return torch.cat([mean_BD, variance.sqrt()], 1)

    return extract


def convolution_extractor(patches: NDArray[np.float32], channels: int, *, patch_size: int | None, seed: int) -> Extractor:
    """Random convolutional features: filters are random whitened training patches, both signs rectified, mean pooled.

    Of an image, the mean is over the places where any channel has a valid pixel.

    Coates and Ng (2012, "Learning feature representations with K-means", section 4); MOSAIKS (Rolf et al. 2021).

    Args:
        patches: (n, C · 9) 3 × 3 patches, from `sample_patches`.
        channels: C.
        patch_size: pool over patches of this side → (B, N, 2 · K); None: over the image → (B, 2 · K).
        seed: of the choice of filters.
    """
    x = patches.astype(np.float64)
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False).reshape(x.shape[1], x.shape[1]))
    values, vectors = values[::-1][:_DIRECTIONS], vectors[:, ::-1][:, :_DIRECTIONS]
    # Directions of hardly any variance would be noise, blown up.
    whiten = vectors / np.sqrt(values.clip(min=0) + 1e-3 * max(float(values[0]), 1e-12))
    chosen = np.random.default_rng(seed).choice(len(x), _FILTERS, replace=len(x) < _FILTERS)
    filters = (x[chosen] - mean) @ whiten
    filters /= np.linalg.norm(filters, axis=1, keepdims=True).clip(min=1e-12)
    weight_KD = filters @ whiten.T
    weight = torch.from_numpy(weight_KD.reshape(_FILTERS, channels, _KERNEL, _KERNEL).astype(np.float32))
    shift = torch.from_numpy((-weight_KD @ mean).astype(np.float32))

    def extract(batch: Batch) -> Tensor:
        # Both signs of all filters' responses are hundreds of times an image.
        together = max(1, _RESPONSES // (2 * _FILTERS * math.prod(batch.image.shape[2:])))
        pieces = zip(batch.image.split(together), batch.valid.split(together), strict=True)
        return torch.cat([respond(image, valid) for image, valid in pieces])

    def respond(image: Tensor, valid: Tensor) -> Tensor:
        image = image.masked_fill(~valid, 0.0)
        padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
        response = F.conv2d(padded, weight, shift)
        response = torch.cat([F.relu(response - _BIAS), F.relu(-response - _BIAS)], 1)
        if patch_size is None:
            known = valid.any(1, keepdim=True).to(response.dtype)
            return (response * known).sum((2, 3)) / known.sum((2, 3)).clamp(min=1)
        return F.avg_pool2d(response, patch_size, ceil_mode=True, count_include_pad=False).flatten(2).transpose(1, 2)

    return extract


@torch.inference_mode()
def sample_patches(batches: Iterable[Batch], sides: Iterable[int], *, seed: int) -> dict[int, NDArray[np.float32]]:
    """Patches at random places of training images, without their labels: side → (n, C · side²), n ≤ 5000.

    Of every image the same number is drawn, less those without a valid pixel (unless none has one); patches that reach beyond an
    image smaller than them are filled with 0.  What is drawn depends on the images' order alone, not on the batches.
    """
    random = np.random.default_rng(seed)
    found: dict[int, list[Tensor]] = {side: [] for side in sides}
    beside: dict[int, list[Tensor]] = {side: [] for side in found}
    for batch in batches:
        image = batch.image.masked_fill(~batch.valid, 0.0)
        for picture, known in zip(image, batch.valid.any(1), strict=True):
            for side, parts in found.items():
                beyond = (0, max(side - picture.shape[2], 0), 0, max(side - picture.shape[1], 0))
                padded, valid = F.pad(picture, beyond), F.pad(known, beyond)
                for _ in range(8):
                    top = int(random.integers(padded.shape[1] - side + 1))
                    left = int(random.integers(padded.shape[2] - side + 1))
                    window = (slice(top, top + side), slice(left, left + side))
                    into = parts if valid[window].any() else beside[side]
                    into.append(padded[:, *window].reshape(-1))
    result = {}
    for side, parts in found.items():
        # Where hardly a pixel is valid, chance may meet none.
        parts = parts or beside[side]
        keep = np.sort(random.permutation(len(parts))[:_PATCHES])
        result[side] = torch.stack([parts[i] for i in keep.tolist()]).numpy()
    return result


def floor_extractors(
    batches: Iterable[Batch], *, channels: int, patch_size: int, components: int, dense: bool, seed: int
) -> dict[str, Extractor]:
    """All floors that are no network, fitted where they need it on unlabelled training images: name → extractor.

    Args:
        batches: training images, not augmented.
        channels: C.
        patch_size: p, of the encoder.
        components: of PCA, at most: the encoder's width, which pooled features have several times (`AuxMAE.forward_features`), as
            do those of PCA of whole images twice.
        dense: features of each patch instead of each image.  They are of the patch alone (of a patch of less than 3 px and of
            filters, a pixel around it too), while the encoder's token of a patch attends to the whole crop; in `window_floors`,
            statistics and filters see as much as the encoder does.
        seed: of the patches and the filters.
    """
    patches = sample_patches(batches, {patch_size, _KERNEL}, seed=seed)
    side = patch_size if dense else None
    raw = {RAW_SPECTRUM: spectrum_extractor(patch_size), RAW_PATCH: raw_extractor(patch_size)} if dense else {}
    return {
        STATISTICS: statistics_extractor(side),
        **({} if dense else {RELATIONS: relations_extractor()}),
        **(raw or {RAW_PIXELS: raw_extractor()}),
        PCA: pca_extractor(patches[patch_size], patch_size=patch_size, components=components, dense=dense),
        CONVOLUTIONS: convolution_extractor(patches[_KERNEL], channels, patch_size=side, seed=seed),
    }
