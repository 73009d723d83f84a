"""Reconstruction error on hidden pixels, beside the floors.

Shape letters: B batch, C channels, G channel groups, K visible positions per group; h, w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auxmae.errors import DataError
from auxmae.evaluation.reconstruction_floors import FLOORS, Floor, predict_floors
from auxmae.evaluation.similarity import structural_similarity

if TYPE_CHECKING:
    from auxmae.data.loading import Batch
    from auxmae.model.mae import AuxMAE


@dataclass(frozen=True)
class ReconstructionResult:
    """Mean absolute errors, in scaled units, over hidden valid pixels.

    Attributes:
        masked_l1: of the model, over all channels.
        per_channel: of the model, by channel name; a channel without a hidden valid pixel is left out.
        floors: of each floor ("mean", "interpolation", and those given beside them), over all channels.
        floors_per_channel: floor → channel name → error.
        windows: images, or windows of them, measured.
        pixels: hidden valid pixels measured, all channels together.
        psnr: peak signal-to-noise ratio on the hidden valid pixels, dB, for a peak of 1 (scaled units).
        spectral_angle: mean angle, degrees, between the true and the predicted spectra of pixels with a hidden channel, over
            their valid channels, hidden ones predicted and the others as they are (Kruse et al. 1993); None for one channel.
        ssim: mean structural similarity over all valid pixels of the images with their hidden patches filled in: a window
            of hidden pixels alone would have no meaning, so what was visible counts too.
        floors_psnr, floors_spectral_angle, floors_ssim: the same of each floor.
    """

    masked_l1: float
    per_channel: dict[str, float]
    floors: dict[str, float]
    floors_per_channel: dict[str, dict[str, float]]
    windows: int
    pixels: int = field(default=0)
    psnr: float | None = None
    spectral_angle: float | None = None
    ssim: float | None = None
    floors_psnr: dict[str, float | None] = field(default_factory=dict)
    floors_spectral_angle: dict[str, float | None] = field(default_factory=dict)
    floors_ssim: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """The result as `auxmae eval --json` prints it under "reconstruction"."""
        found = {"masked_l1": self.masked_l1, "per_channel": self.per_channel, "floors": self.floors}
        beside = {"psnr": self.psnr, "spectral_angle": self.spectral_angle, "ssim": self.ssim}
        names = ("floors_psnr", "floors_spectral_angle", "floors_ssim")
        return {**found, **beside, **{name: getattr(self, name) for name in names}}

    @property
    def best_floor(self) -> str:
        """Name of the floor with the smallest error."""
        return min(self.floors, key=lambda name: self.floors[name])


@torch.inference_mode()
def evaluate_reconstruction(
    model: AuxMAE,
    batches: Iterable[Batch],
    *,
    seed: int,
    device: torch.device | str,
    ratio: float | None = None,
    more_floors: Mapping[str, Floor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ReconstructionResult:
    """Mask held-out images, reconstruct them, and compare with the floors at the same pixels.

    The mask of an image depends on `seed` and on the image's place in the sequence alone, not on the batch size or the
    device, so that figures are comparable between calls.  The model is evaluated in eval mode and left in the mode in
    which it came.

    Args:
        model: a trained model.
        batches: batches in a fixed order.
        seed: of the masks.
        device: where the model is.
        ratio: part of the patches that is hidden; None: as in training.
        more_floors: name → floor, beside those that need no fitting.
        progress: called with the number of images done, after every batch.

    Raises:
        DataError: there is no image, not one valid pixel was hidden, or an error is not finite.
    """
    device = torch.device(device)
    floors = (*FLOORS, *(more_floors or {}))
    names, count = model.channel_names, 1 + len(floors)
    total = torch.zeros(count, len(names), dtype=torch.float64)
    pixels = torch.zeros(len(names), dtype=torch.float64)
    squares, angles, spectra, similarity = torch.zeros(4, count, dtype=torch.float64)
    images, ok_pixels = 0, 0
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            keep_BGK = draw_fixed_masks(model, batch.image, batch.channels, seed=seed, first=images, ratio=ratio)
            image, valid = batch.image.to(device), batch.valid.to(device)
            columns = torch.arange(image.shape[1]) if batch.channels is None else batch.channels.cpu()
            result = model.reconstruct(image, keep_BGK.to(device), valid=valid, channels=batch.channels)
            measured = result.hidden & valid
            predictions = [result.prediction, *predict_floors(image, result.hidden, valid, more_floors).values()]
            for row, prediction in enumerate(predictions):
                # Invalid pixels may hold anything, NaN included: they are replaced, not multiplied by 0.
                error = (prediction - image).masked_fill(~measured, 0.0)
                # MPS has no float64: rows of one image are summed in float32, all else on the CPU.
                partial = error.abs().sum(dim=3).cpu().to(torch.float64).sum(dim=(0, 2))
                total[row].index_add_(0, columns, partial)
                squares[row] += error.square().sum(dim=3).cpu().to(torch.float64).sum()
                angle, spectrum_count = _spectral_angles(image, prediction, measured, valid)
                angles[row] += angle
                spectra[row] += spectrum_count
                filled = torch.where(result.hidden, prediction, image)
                similarity[row] += structural_similarity(image, filled, valid).sum(dim=3).cpu().to(torch.float64).sum()
            ok_pixels += int(valid.sum())
            pixels.index_add_(0, columns, measured.sum(dim=(0, 2, 3)).cpu().to(torch.float64))
            images += image.shape[0]
            if progress is not None:
                progress(images)
    finally:
        model.train(was_training)
    if not images:
        raise DataError("no image to measure the reconstruction on", hint="raise data.test_fraction, or name other data")
    if not pixels.sum():
        raise DataError(
            "not one hidden pixel is valid: there is nothing to compare with",
            hint="check data.nodata; of a single channel, masks of whole channels hide nothing",
        )
    overall = (total.sum(dim=1) / pixels.sum()).tolist()
    unknown = [name for name, error in zip(("the model", *floors), overall, strict=True) if not math.isfinite(error)]
    if unknown:
        raise DataError(
            f"the reconstruction error of {', '.join(unknown)} is not a finite number, so nothing can be said of it",
            hint="look at the images with `auxmae data stats`; of the model alone, its training has diverged",
        )
    rows = [
        {name: float(error / number) for name, error, number in zip(names, line.tolist(), pixels.tolist(), strict=True) if number}
        for line in total
    ]
    psnr = [-10 * math.log10(square / float(pixels.sum())) if square > 0 else None for square in squares.tolist()]
    angle_means = [angle / number if number else None for angle, number in zip(angles.tolist(), spectra.tolist(), strict=True)]
    ssim = (similarity / ok_pixels).tolist()
    return ReconstructionResult(
        masked_l1=overall[0],
        per_channel=rows[0],
        floors=dict(zip(floors, overall[1:], strict=True)),
        floors_per_channel=dict(zip(floors, rows[1:], strict=True)),
        windows=images,
        pixels=int(pixels.sum()),
        psnr=psnr[0],
        spectral_angle=angle_means[0],
        ssim=ssim[0],
        floors_psnr=dict(zip(floors, psnr[1:], strict=True)),
        floors_spectral_angle=dict(zip(floors, angle_means[1:], strict=True)),
        floors_ssim=dict(zip(floors, ssim[1:], strict=True)),
    )


def _spectral_angles(image: Tensor, prediction: Tensor, measured: Tensor, valid: Tensor) -> tuple[float, int]:
    """(sum of the angles, degrees; number of pixels) of those that have a hidden and at least two valid channels."""
    truth = image.masked_fill(~valid, 0.0)
    guess = torch.where(measured, prediction, truth)
    product = (truth * guess).sum(1)
    length = truth.norm(dim=1) * guess.norm(dim=1)
    counted = measured.any(1) & (valid.sum(1) > 1) & (length > 0)
    angle = torch.rad2deg(torch.arccos((product / length.clamp(min=1e-12)).clamp(-1, 1)))
    return float(angle.masked_fill(~counted, 0.0).sum(dim=2).cpu().to(torch.float64).sum()), int(counted.sum())


def groups_of(model: AuxMAE, channels: Tensor | None) -> tuple[list[int], list[int]]:
    """The model's groups that hold `channels`, in the order in which it takes them, and the place of each channel's among them.

    Args:
        model: says the groups.
        channels: indices of the model's channels; None: all.
    """
    number = {name: g for g, group in enumerate(model.groups) for name in group}
    names = model.channel_names
    own = [number[name] for name in (names if channels is None else [names[channel] for channel in channels.tolist()])]
    present = list(dict.fromkeys(own))
    return present, [present.index(group) for group in own]


def image_generator(seed: int, index: int) -> torch.Generator:
    """The stream of draws of one image, whatever the batches: of a seed and the image's place in the sequence."""
    # On the CPU, so that every device draws the same; the factor keeps the streams of neighbouring seeds apart.
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)


def draw_fixed_masks(
    model: AuxMAE, image: Tensor, channels: Tensor | None = None, *, seed: int, first: int, ratio: float | None = None
) -> Tensor:
    """Visible positions (B, G, K) of a batch, −1 = padding, each image's drawn from (seed, place in the sequence).

    Masks of some of the channels are those of all, less the rest, so that what stays is measured under one mask.  Where whole
    channels are hidden, and all that are here among them, the mask is drawn anew of these.

    Args:
        model: its masking is used.
        image: (B, C, h, w).
        channels: indices of the model's channels that the image has; None: all.
        seed: of all masks.
        first: place of the batch's first image in the sequence.
        ratio: part of the patches that is hidden; None: as in training.
    """
    present, _ = groups_of(model, channels)
    shape = (1, *image.shape[1:])

    def draw(generator: torch.Generator) -> Tensor:
        keep = model.draw_mask(shape, generator, ratio=ratio)[:, present]
        if (keep >= 0).any():
            return keep
        if len(present) == 1 and model.config["mask_strategy"] == "channel":
            # Nothing can be hidden.
            return torch.arange(math.prod(model.grid(*shape[2:])))[None, None]
        return model.draw_mask(shape, generator, ratio=ratio, groups=len(present))

    masks = [draw(image_generator(seed, number)) for number in range(first, first + image.shape[0])]
    longest = max(mask.shape[2] for mask in masks)
    return torch.cat([torch.nn.functional.pad(mask, (0, longest - mask.shape[2]), value=-1) for mask in masks])


def to_pixels(places_BCN: Tensor, grid: tuple[int, int], patch_size: int, image: Tensor) -> Tensor:
    """(B, C, N) flags of the patches → (B, C, h, w) of the pixels of `image`, which the grid may overhang."""
    places = places_BCN.view(*places_BCN.shape[:2], *grid).repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return places[..., : image.shape[2], : image.shape[3]]
