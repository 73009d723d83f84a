"""A reconstruction that is linear in all channels: what a masked autoencoder has to beat that also looks across channels.

Shape letters: B batch, C channels, G channel groups, N positions of the patch grid, P patterns of visible channels, n pixels;
h, w pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from auxmae.errors import DataError
from auxmae.evaluation.reconstruction import draw_fixed_masks, groups_of, to_pixels
from auxmae.evaluation.reconstruction_floors import interpolation_floor, known_pixels
from auxmae.model.masking import hidden_positions

if TYPE_CHECKING:
    from auxmae.data.loading import Batch
    from auxmae.model.mae import AuxMAE

LINEAR = "linear in all channels"

# Pixels of each training image that the moments are taken over, at most: neighbours say much the same.
_PIXELS = 1024
# Least eigenvalue of the correlation matrix: moments over different pixels may give negative ones, and those of few images
# in many channels hardly any variance where there is some.
_LEAST = 1e-3
# Least variance of a variable, as part of the largest: the rounding of a constant channel is no signal.
_FLAT = 1e-8
# Numbers in the weights that are held at once.
_WEIGHTS = 2**22


class LinearFloor:
    """The conditional mean of a Gaussian fitted on training images.

    Its 2C variables are, at one pixel, the value of each channel, and what `interpolation_floor` makes of the channel where
    its value is not known.  A channel is predicted from the known values at the same pixel and the interpolated values of the
    channels that are not known there, its own included.  Of a channel that shows nothing in the whole image, the interpolated
    values are those of others: they count neither in the fit nor in the prediction, so that from the same place in other
    channels alone it is predicted by their known values, and from nothing by its mean over the training images.

    The conditional mean is that of any textbook (Bishop 2006, section 2.3.1); mean and covariance of each two variables are
    those over the pixels that have both (pairwise deletion), and eigenvalues of the correlation matrix are at least 0.001.

    Args:
        mean, covariance: (2C,) and (2C, 2C), values before interpolated values.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.covariance = covariance
        variance = covariance.diagonal()
        self.mean = mean
        self.spread = variance.clamp(min=max(_FLAT * float(variance.max()), 1e-30)).sqrt()
        values, vectors = torch.linalg.eigh(covariance / self.spread[:, None] / self.spread)
        self.correlation = (vectors * values.clamp(min=_LEAST)) @ vectors.T

    @classmethod
    @torch.inference_mode()
    def fit(cls, model: AuxMAE, batches: Iterable[Batch], *, seed: int, device: torch.device | str) -> LinearFloor:
        """Fits on images that are masked as in training.

        Args:
            model: its masking is used, and no weight.
            batches: training images, all of the same channels.
            seed: of masks, and of the choice of pixels; another one than that of the images to predict.
            device: where to compute.

        Raises:
            DataError: there is no image.
        """
        random = torch.Generator().manual_seed(seed)
        moments: _Moments | None = None
        images = 0
        for batch in batches:
            image, valid = batch.image.to(device), batch.valid.to(device)
            grid = model.grid(image.shape[2], image.shape[3])
            keep = draw_fixed_masks(model, batch.image, batch.channels, seed=seed, first=images)
            masked = hidden_positions(keep, grid[0] * grid[1])[:, groups_of(model, batch.channels)[1]]
            hidden = to_pixels(masked, grid, model.patch_size, image).to(device)
            known = known_pixels(image, hidden, valid)
            values = torch.cat([image, interpolation_floor(image, hidden, valid)], 1).flatten(2)
            counted = torch.cat([valid, ~known & _seen(known)], 1).flatten(2)
            moments = moments or _Moments(values.shape[1], _exact(image.device))
            for i in range(image.shape[0]):
                pixels = torch.randperm(values.shape[2], generator=random)[:_PIXELS].to(device)
                moments.add(values[i, :, pixels].T, counted[i, :, pixels].T)
            images += image.shape[0]
        if moments is None:
            raise DataError("no image to fit the linear floor on", hint="lower data.test_fraction")
        return cls(*moments.finish())

    def select(self, channels: Sequence[int]) -> LinearFloor:
        """The same of some of the C channels, by index: what the others say is forgotten."""
        both = torch.tensor([*channels, *(len(self.mean) // 2 + channel for channel in channels)], device=self.mean.device)
        return LinearFloor(self.mean[both], self.covariance[both][:, both])

    @torch.inference_mode()
    def __call__(self, image: Tensor, hidden: Tensor, valid: Tensor | None = None, interpolated: Tensor | None = None) -> Tensor:
        """Predict as those of `reconstruction_floors` do: image, hidden, valid (B, C, h, w) → (B, C, h, w).

        Visible valid pixels keep their values; hidden and invalid ones are never read.  `interpolated` is what
        `interpolation_floor` makes of the rest, if it is there already.

        Raises:
            ValueError: shapes differ, or the channels are not as many as those of the fit.
        """
        channels = image.shape[1]
        if 2 * channels != len(self.mean):
            raise ValueError(f"fitted on {len(self.mean) // 2} channels, not {channels}")
        known_BChw = known_pixels(image, hidden, valid)
        filled = interpolation_floor(image, hidden, valid) if interpolated is None else interpolated
        open_Bhw = ~known_BChw.all(dim=1)
        if not open_Bhw.any():
            return filled
        mean, spread = (each.to(_exact(image.device)) for each in (self.mean, self.spread))

        def rows(each: Tensor) -> Tensor:
            return each.movedim(1, 3)[open_Bhw].to(mean.device)

        known, given = rows(known_BChw), rows((known_BChw | _seen(known_BChw)).expand_as(known_BChw))
        centre, scale = (torch.where(known, each[:channels], each[channels:]) for each in (mean, spread))
        seen = ((rows(filled).double() - centre) / scale).masked_fill(~given, 0.0)
        first, order, counts = _patterns(torch.cat([known, given], 1))
        predicted = torch.empty_like(seen)
        step = max(1, _WEIGHTS // channels**2)
        at = 0
        for start in range(0, len(first), step):
            some = first[start : start + step]
            for weight, count in zip(self._weights(known[some], given[some]), counts[start : start + step], strict=True):
                pixels = order[at : at + count]
                predicted[pixels] = seen[pixels] @ weight
                at += count
        predicted = mean[:channels] + spread[:channels] * predicted
        result = filled.movedim(1, 3).contiguous()
        result[open_Bhw] = predicted.to(device=image.device, dtype=image.dtype)
        return torch.where(known_BChw, image, result.movedim(3, 1))

    def _weights(self, known: Tensor, given: Tensor) -> Tensor:
        """(P, C) bool each → (P, C, C): standardised values that are given → standardised values of all channels."""
        correlation, channels = self.correlation.to(known.device), known.shape[1]
        each = torch.arange(channels, device=known.device)
        chosen = torch.where(known, each, each + channels)
        # What is not given is made a variable of its own that says nothing.
        both = given[:, :, None] & given[:, None, :]
        within = correlation[chosen[:, :, None], chosen[:, None, :]].masked_fill(~both, 0.0)
        within += torch.diag_embed((~given).to(within.dtype))
        towards = correlation[chosen, :channels].masked_fill(~given[:, :, None], 0.0)
        return torch.cholesky_solve(towards, torch.linalg.cholesky(within))


class _Moments:
    """Sums for the mean and covariance of variables that are not all there at every pixel."""

    def __init__(self, size: int, device: torch.device) -> None:
        # Of each two variables, over the pixels that have both: their product, the first one's value, and 1.
        self.products, self.sums, self.counts = torch.zeros(3, size, size, dtype=torch.float64, device=device)

    def add(self, values: Tensor, counted: Tensor) -> None:
        """values, counted (n, 2C); values that are not counted may hold anything."""
        there = counted.to(device=self.products.device, dtype=torch.float64)
        values = values.masked_fill(~counted, 0.0).to(self.products.device).double()
        self.products += values.T @ values
        self.sums += values.T @ there
        self.counts += there.T @ there

    def finish(self) -> tuple[Tensor, Tensor]:
        """(mean (2C,), covariance (2C, 2C)), 0 where nothing was counted."""
        counts = self.counts.clamp(min=1)
        mean = self.sums.diagonal() / counts.diagonal()
        crossed = self.sums * mean
        return mean, (self.products - crossed - crossed.T + self.counts * mean[:, None] * mean) / counts


def _seen(known: Tensor) -> Tensor:
    """(B, C, h, w) → (B, C, 1, 1), whether anything of the channel is known."""
    return known.flatten(2).any(dim=2)[:, :, None, None]


def _exact(device: torch.device) -> torch.device:
    """A device that has float64, which MPS lacks."""
    return torch.device("cpu") if device.type == "mps" else device


def _patterns(flags: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Rows (n, …) bool that are equal → (first (P,), the rows' numbers pattern by pattern (n,), rows of each pattern)."""
    packed = np.packbits(flags.cpu().numpy(), axis=1)
    whole = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1])))[:, 0]
    _, first, inverse, counts = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    return torch.from_numpy(first).to(flags.device), torch.from_numpy(order).to(flags.device), counts.tolist()
