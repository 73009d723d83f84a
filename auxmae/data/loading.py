"""Batches that can be resumed in the middle of an epoch.

Shapes: B batch, C channels, h × w px.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from auxmae.data.dataset import ImageDataset, Sample


class Batch(NamedTuple):
    """image (B, C, h, w) scaled; valid, the same in bool; label (B,); label_map (B, h, w) or None; channels kept, or None."""

    image: Tensor
    valid: Tensor
    label: Tensor
    label_map: Tensor | None
    channels: Tensor | None


def _collate(samples: list[Sample]) -> Batch:
    maps = [sample.label_map for sample in samples]
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.stack([sample.valid for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        None if maps[0] is None else torch.stack([entry for entry in maps if entry is not None]),
        None,
    )


class Loader:
    """Iterates over a dataset in batches; a pass ends with the epoch, and the next pass is the next epoch.

    Order, crops, flips and sampled channels depend on (seed, epoch, position) alone: `load_state_dict` goes on exactly
    where `state_dict` was taken, whatever the number of loader processes.

    Args:
        dataset: what to load.
        batch_size: B; the last batch of an epoch may be smaller, or is left out with `drop_last`.
        shuffle: a new order every epoch.
        seed: of the order and the channels.
        workers: loader processes, 0 for none.
        channel_sampling: largest part of the channels dropped from a batch.
        pin_memory: for faster copies to a GPU.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        workers: int = 0,
        drop_last: bool = False,
        channel_sampling: float = 0.0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.workers, self.drop_last, self.channel_sampling, self.pin_memory = workers, drop_last, channel_sampling, pin_memory
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]

    def _order(self) -> list[list[int]]:
        """The indices of every batch of this epoch."""
        count = len(self.dataset)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch, count]).permutation(count).tolist()
        else:
            order = list(range(count))
        return [order[start : start + self.batch_size] for start in range(0, count, self.batch_size)][: len(self)]

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        self.dataset.set_epoch(epoch if self.shuffle else 0)
        batches: DataLoader[Batch] = DataLoader(
            self.dataset,
            batch_sampler=self._order()[self.position :],
            num_workers=self.workers,
            collate_fn=_collate,
            # Forked children can hang on locks that libraries of the readers hold in the parent.
            multiprocessing_context="spawn" if self.workers else None,
            pin_memory=self.pin_memory,
        )
        for batch in batches:
            position = self.position
            # Counted before the batch is handed out: a state taken while it is used goes on with the next one.
            self.position += 1
            if self.position >= len(self):
                self.epoch, self.position = self.epoch + 1, 0
            yield self._sample_channels(batch, epoch, position)

    def _sample_channels(self, batch: Batch, epoch: int, position: int) -> Batch:
        if not self.channel_sampling:
            return batch
        channels = batch.image.shape[1]
        generator = np.random.default_rng([self.seed, epoch, position, channels])
        fewest = max(round(channels * (1 - self.channel_sampling)), 1)
        kept = np.sort(generator.permutation(channels)[: generator.integers(fewest, channels + 1)])
        index = torch.from_numpy(kept)
        return batch._replace(image=batch.image[:, index], valid=batch.valid[:, index], channels=index)
