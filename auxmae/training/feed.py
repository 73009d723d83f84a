"""Batches on their way to the device: on a GPU one ahead, copied beside the step that is being computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from auxmae.data.loading import Batch, Loader


class Inputs(NamedTuple):
    """What a step takes of a batch, on its device.

    Attributes:
        image: (B, C', h, w) float32; valid: (B, C', h, w) bool.
        channels: (C',) int64 on the CPU, the channels kept by channel sampling; None: all.
    """

    image: Tensor
    valid: Tensor
    channels: Tensor | None


class _Taken(NamedTuple):
    """A batch, the event behind its copy (None without a GPU), and where the loader was when it had given it."""

    inputs: Inputs
    copied: Any
    position: dict[str, int]


class Feed:
    """An endless iterator over a loader's batches, on the device.

    It knows where the batches that were handed out end, however many it holds ready: a checkpoint taken between two batches is
    exact.

    Args:
        loader: of page-locked batches, where the device is a GPU.
        device: where to.
        ahead: whether `prefetch` does anything; by default on a GPU, which copies beside its computing.
    """

    def __init__(self, loader: Loader, device: torch.device, *, ahead: bool | None = None) -> None:
        self.loader, self.device = loader, device
        self.ahead = device.type == "cuda" if ahead is None else ahead
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._batches = self._endless()
        self._ready: _Taken | Exception | None = None
        self._position = loader.state_dict()

    @property
    def epoch(self) -> int:
        """Of the next batch."""
        return self._position["epoch"]

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is, for the loader's `load_state_dict`."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there; what was held ready is dropped."""
        self.loader.load_state_dict(state)
        self._batches, self._ready, self._position = self._endless(), None, self.loader.state_dict()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Inputs:
        taken, self._ready = self._ready or self._take(), None
        if isinstance(taken, Exception):
            raise taken
        self._position = taken.position
        if taken.copied is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(taken.copied)
            for part in (taken.inputs.image, taken.inputs.valid):
                # Their memory must not be used again by the copying stream before the step is over.
                part.record_stream(computing)
        return taken.inputs

    def prefetch(self) -> None:
        """Loads the next batch and starts its copy; to be called when the step before has been enqueued.

        What goes wrong is raised when the batch is asked for, so that what lies between is still done.
        """
        if self.ahead and self._ready is None:
            try:
                self._ready = self._take()
            except Exception as error:
                self._ready = error

    def _endless(self) -> Iterator[Batch]:
        while True:
            yield from self.loader

    def _take(self) -> _Taken:
        batch = next(self._batches)
        position = self.loader.state_dict()
        parts = batch.image, batch.valid
        if self._copies is None:
            image, valid = (part.to(self.device, non_blocking=True) for part in parts)
            return _Taken(Inputs(image, valid, batch.channels), None, position)
        with torch.cuda.stream(self._copies):
            image, valid = (part.to(self.device, non_blocking=True) for part in parts)
            return _Taken(Inputs(image, valid, batch.channels), self._copies.record_event(), position)
