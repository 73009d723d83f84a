"""Where a reconstruction comes from: the same place in other channels, or neighbours in the same channel.

Channels of one image are often near copies of each other, and so are neighbouring patches: an encoder that copies learns
little.  The same hidden patches are reconstructed under masks that leave one source at a time.  Few models were trained on
such masks: an error above a floor's says that the model cannot use the source alone, not that nothing is in it.

Shape letters: B batch, C channels, G channel groups, N positions of the patch grid, K visible ones; h, w pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auxmae.evaluation.reconstruction import groups_of, image_generator, to_pixels
from auxmae.evaluation.reconstruction_floors import FLOORS, Floor, predict_floors
from auxmae.model.masking import visible_count

if TYPE_CHECKING:
    from auxmae.data.loading import Batch
    from auxmae.model.mae import AuxMAE

ELSEWHERE = "other places, other channels"
SAME_PLACE = "same place, other channels"
NEIGHBOURS = "neighbours, same channel"
BOTH = "both"
AS_TRAINED = "independent mask"
SOURCES = (ELSEWHERE, SAME_PLACE, NEIGHBOURS, BOTH, AS_TRAINED)

# Part of a channel's patches that are measured.
_TARGETS = 0.25


@dataclass(frozen=True)
class ReconstructionSources:
    """Mean absolute errors, scaled units, over the valid pixels of the same hidden patches, by what was visible.

    Attributes:
        masked_l1: source → error of the model.
        per_channel: source → channel → error of the model.
        floors: source → floor → error, from the same visible pixels.
        windows: images, or windows of them, measured.
    """

    masked_l1: dict[str, float]
    per_channel: dict[str, dict[str, float]]
    floors: dict[str, dict[str, float]]
    windows: int

    def recovered(self, source: str) -> float:
        """Part of the error with `ELSEWHERE` alone that a source takes away; 0: nothing, 1: all."""
        start = self.masked_l1[ELSEWHERE]
        return 1 - self.masked_l1[source] / start if start > 0 else 0.0

    def to_dict(self) -> dict[str, object]:
        """Source → figures, as `auxmae eval --json` prints them."""
        return {
            source: {
                "masked_l1": self.masked_l1[source],
                "recovered": self.recovered(source),
                "floors": self.floors[source],
                "per_channel": self.per_channel[source],
            }
            for source in SOURCES
        }


@torch.inference_mode()
def evaluate_sources(
    model: AuxMAE,
    batches: Iterable[Batch],
    *,
    seed: int,
    device: torch.device | str,
    more_floors: Mapping[str, Floor] | None = None,
) -> ReconstructionSources | None:
    """Reconstructs a quarter of one channel's patches from one source of information at a time.

    Image i is measured in channel group i mod G, at places drawn from `seed` and i.  See `source_masks` for what is visible.

    Args:
        model: left in the mode in which it came.
        batches: in a fixed order.
        seed: of the places.
        device: where the model is.
        more_floors: name → floor, beside those that need no fitting.

    Returns:
        None where there are fewer than two channel groups or patches, or no valid pixel was measured.
    """
    names = model.channel_names
    floors = (*FLOORS, *(more_floors or {}))
    total = torch.zeros(len(SOURCES), 1 + len(floors), len(names), dtype=torch.float64)
    pixels = torch.zeros(len(names), dtype=torch.float64)
    images = 0
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            image, valid = batch.image.to(device), batch.valid.to(device)
            size, channels = image.shape[:2]
            columns = torch.arange(channels) if batch.channels is None else batch.channels.cpu()
            present, of_channel = groups_of(model, batch.channels)
            grid = model.grid(image.shape[2], image.shape[3])
            if len(present) < 2 or grid[0] * grid[1] < 2:
                return None
            masks = [
                source_masks(
                    len(present), grid[0] * grid[1], (images + i) % len(present), image_generator(seed, images + i), model
                )
                for i in range(size)
            ]
            target = torch.stack([target for _, target in masks])[:, of_channel]
            measured = to_pixels(target, grid, model.patch_size, image).to(device) & valid
            pixels.index_add_(0, columns, measured.sum(dim=(0, 2, 3)).cpu().to(torch.float64))
            for row, source in enumerate(SOURCES):
                keep = _positions(torch.stack([visible[source] for visible, _ in masks]))
                result = model.reconstruct(image, keep.to(device), valid=valid, channels=batch.channels)
                predictions = [result.prediction, *predict_floors(image, result.hidden, valid, more_floors).values()]
                for column, prediction in enumerate(predictions):
                    error = (prediction - image).abs().masked_fill(~measured, 0.0)
                    total[row, column].index_add_(0, columns, error.sum(dim=3).cpu().to(torch.float64).sum(dim=(0, 2)))
            images += size
    finally:
        model.train(was_training)
    if not pixels.sum():
        return None
    overall = (total.sum(dim=2) / pixels.sum()).tolist()
    return ReconstructionSources(
        masked_l1={source: overall[row][0] for row, source in enumerate(SOURCES)},
        per_channel={
            source: {name: float(total[row, 0, c] / pixels[c]) for c, name in enumerate(names) if pixels[c]}
            for row, source in enumerate(SOURCES)
        },
        floors={source: dict(zip(floors, overall[row][1:], strict=True)) for row, source in enumerate(SOURCES)},
        windows=images,
    )


def source_masks(
    groups: int, positions: int, group: int, generator: torch.Generator, model: AuxMAE
) -> tuple[dict[str, Tensor], Tensor]:
    """What is visible of one image, for every source, and which patches are measured.

    Args:
        groups, positions: G ≥ 2 and N ≥ 2.
        group: the one whose patches are measured.
        generator: source of the places, on the CPU.
        model: whose mask ratio is that of `AS_TRAINED`.

    Returns:
        source → (G, N) bool, True where visible; and (G, N) bool, True for the measured patches, of `group` alone.  They are
        hidden under every mask.  `SAME_PLACE`: the group shows nothing, the others these places and no more.
        `NEIGHBOURS`: the group shows all its other places, the others nothing.  `BOTH`: all of these, and the others'
        other places.  `ELSEWHERE`: the group shows nothing, the others as many places as are measured, none of them
        measured.  `AS_TRAINED`: every group shows places of its own at the model's ratio, as under independent masks.
    """
    count = max(1, min(round(_TARGETS * positions), positions // 2))
    order = torch.randperm(positions, generator=generator)
    places, rest = torch.zeros(2, positions, dtype=torch.bool)
    places[order[:count]] = True
    rest[order[count : 2 * count]] = True
    own = torch.zeros(groups, 1, dtype=torch.bool)
    own[group] = True
    shown = min(visible_count(positions, model.config["mask_ratio"]), positions - count)
    noise = torch.rand(groups, positions, generator=generator).masked_fill(own & places, 2.0)
    drawn = torch.zeros(groups, positions, dtype=torch.bool).scatter_(1, noise.argsort(dim=1)[:, :shown], True)
    visible = {
        ELSEWHERE: ~own & rest,
        SAME_PLACE: ~own & places,
        NEIGHBOURS: own & ~places,
        BOTH: ~own | ~places,
        AS_TRAINED: drawn,
    }
    return visible, own & places


def _positions(visible_BGN: Tensor) -> Tensor:
    """(B, G, N) bool → keep (B, G, K), −1 as padding."""
    order = torch.argsort(visible_BGN.to(torch.uint8), dim=2, descending=True, stable=True)
    order = order[..., : int(visible_BGN.sum(2).max())]
    return torch.where(visible_BGN.gather(2, order), order, -1)
