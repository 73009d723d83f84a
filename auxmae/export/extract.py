"""Units → features, labels and shares of valid pixels.

Shape letters: C channels, D features, n rows; h, w pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from auxmae.data.collection import Collection
from auxmae.data.image import Window
from auxmae.data.statistics import Scaling
from auxmae.evaluation.features import patch_labels
from auxmae.export.units import Layout, Unit, cut
from auxmae.model.mae import AuxMAE
from auxmae.model.pooling import pool_windows

# What identifies a row is computed again from the plan; only what has to be read from the files is kept beside the features.
FACTS = np.dtype([("label", "<i8"), ("valid", "<f4")])


class UnitEncoder:
    """A frozen encoder applied to the units of a collection.

    Args:
        model: on `device`, in eval mode.
        collection: its channels are the model's, or some of them, in any order.
        layout: how images are cut.
        pool: see `AuxMAE.forward_features` and `AuxMAE.dense_features`.
        batch_size: windows per forward pass.
        device: where to compute.
    """

    def __init__(
        self, model: AuxMAE, collection: Collection, layout: Layout, *, pool: str, batch_size: int, device: torch.device
    ) -> None:
        self.model, self.collection, self.layout = model, collection, layout
        self.pool, self.batch_size, self.device = pool, batch_size, device
        self.scaling = Scaling.from_dict(model.scaling).select(collection.channel_names) if model.scaling else None

    @torch.inference_mode()
    def __call__(self, units: Sequence[Unit]) -> tuple[NDArray[np.float32], NDArray[np.void]]:
        """Features (n, D) and facts (n,) of the units' rows, in order.

        Raises:
            DataError: a file cannot be read.
        """
        boxes = [self._read(unit) for unit in units]
        facts = np.concatenate([self._facts(unit, valid) for unit, (_, valid) in zip(units, boxes, strict=True)])
        windows = [
            (number, window)
            for number, unit in enumerate(units)
            for window in cut(Window(0, 0, unit.box.height, unit.box.width), self.layout.window, self.layout.window)
        ]
        results = self._encode(boxes, windows)
        rows: list[Tensor] = []
        for number, group in itertools.groupby(zip(windows, results, strict=True), key=lambda entry: entry[0][0]):
            mine = list(group)
            vectors = [vector for _, vector in mine]
            if self.layout.dense:
                rows.append(torch.cat(vectors, dim=2).flatten(1).T)
                continue
            counts = torch.stack([_crop(boxes[number][1], window).sum() for (_, window), _ in mine])
            rows.append(pool_windows(torch.stack(vectors), counts)[None])
        return torch.cat(rows).numpy(), facts

    def _read(self, unit: Unit) -> tuple[Tensor, Tensor]:
        image = self.collection.read(unit.item, unit.box)
        x, valid = torch.from_numpy(np.ascontiguousarray(image.pixels)), torch.from_numpy(np.ascontiguousarray(image.valid))
        if self.scaling is not None:
            x = self.scaling.apply(x)
        return x.masked_fill(~valid, 0.0), valid

    def _encode(self, boxes: Sequence[tuple[Tensor, Tensor]], windows: Sequence[tuple[int, Window]]) -> list[Tensor]:
        """(D,) or (D, rows, columns) of every window; windows of one size share a batch."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, (_, window) in enumerate(windows):
            by_size.setdefault((window.height, window.width), []).append(place)
        results: dict[int, Tensor] = {}
        channels = self.collection.channel_names
        for places in by_size.values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                image, valid = (
                    torch.stack([_crop(boxes[windows[place][0]][which], windows[place][1]) for place in batch]).to(self.device)
                    for which in (0, 1)
                )
                forward = self.model.dense_features if self.layout.dense else self.model.forward_features
                features = forward(image, valid=valid, channels=channels, pool=self.pool)
                results.update(zip(batch, features.to("cpu", torch.float32), strict=True))
        return [results[place] for place in range(len(windows))]

    def _facts(self, unit: Unit, valid: Tensor) -> NDArray[np.void]:
        facts = np.zeros(unit.rows, dtype=FACTS)
        label_map = self.collection.read_labels(unit.item, unit.box)
        if label_map is not None:
            # Where no channel has a pixel, there is nothing that a label could be of.
            label_map = np.where(valid.any(0).numpy(), label_map, -1)
        if self.layout.dense:
            facts["valid"] = _patch_shares(valid, self.layout.patch).numpy()
        else:
            facts["valid"] = float(valid.float().mean())
        if self.collection.labels is not None:
            facts["label"] = self.collection.labels[unit.item]
        elif label_map is None:
            facts["label"] = -1
        elif self.layout.dense:
            facts["label"] = patch_labels(torch.from_numpy(label_map)[None], self.layout.patch)[0].numpy()
        else:
            facts["label"] = _commonest(label_map)
        return facts


def _crop(pixels: Tensor, window: Window) -> Tensor:
    return pixels[:, window.top : window.top + window.height, window.left : window.left + window.width]


def _patch_shares(valid: Tensor, patch: int) -> Tensor:
    """(n,) share of each patch's pixels that are valid, of those inside the image, over all channels."""
    height, width = valid.shape[1:]
    pad = (0, -width % patch, 0, -height % patch)
    share = F.pad(valid.float().mean(0), pad)[None, None]
    inside = F.pad(torch.ones(1, 1, height, width, device=valid.device), pad)
    return (F.avg_pool2d(share, patch) / F.avg_pool2d(inside, patch)).flatten()


def _commonest(label_map: NDArray[np.int64]) -> int:
    """The commonest label, −1 where less than half of the pixels have one."""
    known = label_map[label_map >= 0]
    return int(np.bincount(known).argmax()) if len(known) and 2 * len(known) >= label_map.size else -1
