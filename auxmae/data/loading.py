"""Batches in a reproducible order that can be resumed in the middle of an epoch.

Shape letters: B batch, C channels, h rows, w columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from auxmae.data.dataset import ImageDataset
from auxmae.data.workers import deaths_told_in_order, obey_main, shielded
from auxmae.errors import AuxMAEError, ResourceError


class Batch(NamedTuple):
    """Images side by side.

    Attributes:
        image: (B, C', h, w) float32, scaled; 0 where not valid.
        valid: (B, C', h, w) bool.
        label: (B,) int64, −1: none.
        label_map: (B, h, w) int64 (−1: none), or None.
        channels: (C',) int64 indices of the channels kept by channel sampling; None: all.
        image_number: (B,) int64 which image each is a window of, where several are of one; None: each stands for itself.
        group: (B,) int64 what each belongs to and is alike with (`Part.groups`); None: not known, as in augmented training.
    """

    image: Tensor
    valid: Tensor
    label: Tensor
    label_map: Tensor | None = None
    channels: Tensor | None = None
    image_number: Tensor | None = None
    group: Tensor | None = None


class Loader:
    """Batches of a data set.

    Order, crops, flips and channel sampling follow from (seed, epoch, position) alone, whatever the number of workers.
    A shuffled loader goes on where the last iteration left off; one that is not shuffled starts anew each time.

    Args:
        dataset: what to load.
        batch_size: B; the last batch of an epoch may be smaller.
        shuffle: a new order every epoch.
        seed: of order and channel sampling.
        workers: loader processes; 0: load in this one.
        drop_last: leave out a smaller last batch.
        channel_sampling: largest part of the channels that is dropped at random from a batch.
        pin_memory: page-locked memory, for copies to a GPU.
        limit: with `shuffle` off, how many samples at most, chosen once by the seed; 0: all.
        channels: with `shuffle` off, `Batch.channels` of every batch: which of a model's channels the data set has.
        part: (rank, size) of processes that share every batch: this one's part.  With `shuffle` the parts are equal, and what
            cannot be dealt out evenly is left out; otherwise every sample is in one of them.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        workers: int = 0,
        drop_last: bool = False,
        channel_sampling: float = 0.0,
        pin_memory: bool = False,
        limit: int = 0,
        channels: Tensor | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.part = part
        self.channels = channels
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.workers, self.drop_last, self.pin_memory = workers, drop_last, pin_memory
        self.channel_sampling = channel_sampling
        self.samples = min(len(dataset), limit) if limit and not shuffle else len(dataset)
        self.epoch = 0
        self.position = 0
        self.lasting = True
        self._plan: list[_Request] = []
        self._processes: DataLoader[Any] | None = None

    def limited(self, limit: int, *, workers: int | None = None, lasting: bool = True) -> Loader:
        """The same batches in a fixed order, of `limit` samples at most (0: all), chosen once by the seed.

        Args:
            limit: see above.
            workers: loader processes, in place of this one's; 0 where a pass is a batch or two.
            lasting: whether these wait for the next pass, each with its memory, or end with every pass.
        """
        samples = min(len(self.dataset), limit) if limit else len(self.dataset)
        workers = self.workers if workers is None else workers
        return self._like(shuffle=False, drop_last=False, channel_sampling=0.0, samples=samples, workers=workers, lasting=lasting)

    def measured(self) -> Loader:
        """Batches in a fixed order of what the data set's part holds, as it is measured: see `ImageDataset.measured`."""
        dataset = self.dataset.measured()
        return self._like(dataset=dataset, shuffle=False, drop_last=False, channel_sampling=0.0, samples=len(dataset))

    def of_images(self, chosen: NDArray[np.int64]) -> Loader:
        """Batches in a fixed order of some of the images alone, by their places among those of the data set's part."""
        dataset = self.dataset.of_images(chosen)
        return self._like(dataset=dataset, shuffle=False, drop_last=False, channel_sampling=0.0, samples=len(dataset))

    def count_images(self) -> int:
        """How many images or scenes the samples of a pass in a fixed order are of."""
        return len(np.unique(self.dataset.items(self._order(0).tolist())))

    def dealt(self, rank: int, size: int) -> Loader:
        """The part of every batch that is this process'."""
        return self._like(part=(rank, size))

    def _like(self, **changed: Any) -> Loader:
        """The same but for some attributes, at its beginning and without processes yet."""
        other = copy(self)
        vars(other).update(changed, epoch=0, position=0, _plan=[], _processes=None)
        return other

    def __len__(self) -> int:
        """Batches an epoch."""
        count = self.samples / self.batch_size
        return math.floor(count) if self.drop_last else math.ceil(count)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position to the end of the epoch.

        `epoch` and `position` already name the next batch when one is handed out, so that a checkpoint taken then is
        exact.

        Raises:
            DataError: a file cannot be read, in whichever process.
            ResourceError: the machine lacks what reading a file takes; or a loader process has died.
        """
        if not self.shuffle and self.epoch > 0:
            self.epoch = 0  # the same samples on every pass
        epoch, start = self.epoch, self.position
        order = self._order(epoch)
        requests = [
            _Request(epoch, number, self._own(order[number * self.batch_size : (number + 1) * self.batch_size]))
            for number in range(start, len(self))
        ]
        if self.shuffle:
            for request, batch in zip(requests, self._load(requests), strict=True):
                self._advance(epoch, request.number)
                yield batch
        else:
            self.position = 0
            for batch in self._load([request for request in requests if request.indices]):
                yield batch if self.channels is None else batch._replace(channels=self.channels)

    def _advance(self, epoch: int, number: int) -> None:
        last = number + 1 == len(self)
        self.epoch, self.position = (epoch + 1, 0) if last else (epoch, number + 1)

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        if self.position >= len(self):
            # The data set has shrunk since: the epoch is over.
            self.epoch, self.position = self.epoch + 1, 0

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self.dataset)
        if not self.shuffle and self.samples == count:
            return np.arange(count)
        order = np.random.default_rng((self.seed, epoch)).permutation(count)
        # In the order of the files, which is the quicker one to read.
        return order if self.shuffle else np.sort(order[: self.samples])

    def _own(self, indices: np.ndarray) -> tuple[int, ...]:
        rank, size = self.part
        whole = indices[: len(indices) - len(indices) % size] if self.shuffle else indices
        return tuple(np.array_split(whole, size)[rank].tolist())

    def _load(self, requests: list[_Request]) -> Iterator[Batch]:
        if self.workers == 0:
            source = _Source(self.dataset, self.seed, self.channel_sampling)
            for request in requests:
                batch = source.load(request)
                yield _pinned(batch) if self.pin_memory else batch
            return
        self._plan[:] = requests
        processes = self._processes
        if processes is None:
            processes = DataLoader(
                _Source(self.dataset, self.seed, self.channel_sampling),
                batch_size=None,
                sampler=self._plan,
                num_workers=self.workers,
                multiprocessing_context="spawn",
                persistent_workers=self.lasting,
                pin_memory=self.pin_memory,
                worker_init_fn=obey_main,
                # Every pass draws a seed for the processes, which take none of their draws from it: out of the global
                # generator it would change the dropout after a probe, a figure or a resumption.
                generator=torch.Generator(),
            )
            self._processes = processes if self.lasting else None
        try:
            with shielded(), deaths_told_in_order():
                results = iter(processes)  # starts the processes, the first time or every time
            for result in results:
                if isinstance(result, _Fault):
                    raise result.kind(result.message, hint=result.hint)
                yield Batch(*result)
        except (RuntimeError, EOFError, ConnectionError) as error:
            if not _is_of_death(error):
                raise
            raise ResourceError(
                "a loader process was killed, or ended before its time",
                hint="is memory, or shared memory (/dev/shm), short? set data.workers lower, or to 0",
            ) from error


class _Request(NamedTuple):
    """Which samples of which epoch make batch `number`."""

    epoch: int
    number: int
    indices: tuple[int, ...]


class _Fault(NamedTuple):
    """An error on its way from a loader process: an exception itself would arrive wrapped in a traceback."""

    kind: type[AuxMAEError]
    message: str
    hint: str | None


class _Source(Dataset[Any]):
    """Turns requests into batches, in this process or in another."""

    def __init__(self, dataset: ImageDataset, seed: int, channel_sampling: float) -> None:
        self.dataset, self.seed, self.channel_sampling = dataset, seed, channel_sampling

    def load(self, request: _Request) -> Batch:
        self.dataset.set_epoch(request.epoch)
        image, valid, label, label_map = self.dataset.fetch(request.indices)
        channels = None
        if self.channel_sampling > 0:
            total = image.shape[1]
            # A stream of its own, so that it does not repeat the draws behind the order.
            random = np.random.default_rng((self.seed, request.epoch, request.number, 1))
            dropped = int(random.integers(math.floor(self.channel_sampling * total) + 1))
            kept = np.sort(random.permutation(total)[: max(total - dropped, 1)])
            channels = torch.from_numpy(kept.astype(np.int64))
            image, valid = image[:, channels], valid[:, channels]
        number = torch.from_numpy(self.dataset.items(request.indices)) if self.dataset.in_parts else None
        group = None if self.dataset.augment else torch.from_numpy(self.dataset.groups(request.indices))
        return Batch(image, valid, label, label_map, channels, number, group)

    def __getitem__(self, request: _Request) -> Batch | _Fault:
        try:
            return self.load(request)
        except AuxMAEError as error:
            return _Fault(type(error), error.message, error.hint)


def _is_of_death(error: Exception) -> bool:
    """Whether it tells that a loader process is gone, and is not passed on from one, as "Caught …" is.

    The pipe of a process that was killed may end before it is known that it was.
    """
    words = r"DataLoader worker \(pid|Pin memory thread exited" if isinstance(error, RuntimeError) else r"(?!Caught )"
    return re.match(words, str(error)) is not None


def _pinned(batch: Batch) -> Batch:
    return Batch(*(None if tensor is None else tensor.pin_memory() for tensor in batch))  # type: ignore[arg-type]
