"""Several processes that train one model together, each on its part of every batch: data-parallel training by torch's DDP.

A process learns what it is from the environment that `torchrun` and `auxmae train --processes` set.  Alone, every function here
gives back what it was given, so that the loop is the same for one and for many.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from auxmae.errors import PeerLostError, ResourceError, SettingsError, first_line
from auxmae.training.checkpoint import seed_from

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The others wait while the first one writes, draws or probes.  Who has died is noticed by whoever started the processes.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it.

    Attributes:
        rank: which one this is, 0 … size − 1; the first one writes and speaks.
        size: how many there are.
        local_rank: which one this is on its machine: the GPU that it takes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Images of a batch that each process takes.

        Raises:
            SettingsError: they cannot be dealt out evenly.
        """
        if batch_size % self.size:
            raise SettingsError(
                f"train.batch_size = {batch_size} cannot be dealt out evenly to {self.size} processes",
                hint=f"it counts all their images together: set {-(-batch_size // self.size) * self.size}",
            )
        return batch_size // self.size

    def seed(self, seed: int) -> int:
        """A seed of this process' own, so that no two draw the same masks; the first one's is the one given."""
        return seed if self.first else seed_from(f"{seed} {self.rank}".encode())

    # ---- what they tell each other; all of them have to ask ----------------------------------------------------------

    def total(self, *values: float) -> tuple[float, ...]:
        """The sum of each value over all processes."""
        if self.size == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return tuple(summed.tolist())

    def by_first(self, compute: Callable[[], T]) -> T:
        """What the first process computes, while the others wait for it."""
        if self.size == 1:
            return compute()
        held = [compute()] if self.first else [None]
        dist.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """What each process holds, in the order of ranks, for the first one; nothing for the others."""
        if self.size == 1:
            return [value]
        held: list[T | None] | None = [None] * self.size if self.first else None
        dist.gather_object(value, held, dst=0)
        return held or []  # type: ignore[return-value]

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over all processes, read from the device."""
        return self.total(float(value))[0] / self.size

    def weight(self, count: Tensor) -> Tensor:
        """By what each multiplies its mean over `count` values, so that the mean over all processes is that over all values.

        A float64 scalar on the device, which nothing is read from: 1 where all count alike, 0 where nothing counts anywhere.
        """
        total = count.double()
        dist.all_reduce(total)
        return count * self.size / total.clamp(min=1)

    # ---- the model ---------------------------------------------------------------------------------------------------

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, whose gradients become the mean of all processes' in the backward pass; it starts as the first one's."""
        if self.size == 1:
            return model
        # No device_ids: they would send the indices of sampled channels, which the host reads, to the GPU.
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def find_team(environ: Mapping[str, str] = os.environ) -> Team:
    """What the environment says: a team of one where it says nothing.

    Raises:
        SettingsError: it says something that cannot be, or only a part, as many processes of one each would be the result.
    """
    unknown = SettingsError(f"{', '.join(VARIABLES[:3])}: whole numbers are expected in the environment")
    try:
        size = int(environ.get("WORLD_SIZE") or 1)
    except ValueError as error:
        raise unknown from error
    if size == 1:
        return Team()
    if missing := [name for name in VARIABLES if not environ.get(name)]:
        raise SettingsError(
            f"the environment says WORLD_SIZE = {size}, but not {', '.join(missing)}",
            hint="start with torchrun or auxmae train --processes; or unset WORLD_SIZE to train in this process alone",
        )
    try:
        rank, local_rank = int(environ["RANK"]), int(environ["LOCAL_RANK"])
    except ValueError as error:
        raise unknown from error
    if not 0 <= rank < size:
        raise SettingsError(f"RANK = {rank} in the environment, and WORLD_SIZE = {size}")
    return Team(rank, size, local_rank)


@contextmanager
def joined(team: Team, device: torch.device) -> Iterator[None]:
    """Connects the processes: NCCL between GPUs, gloo between CPUs and for what the hosts tell each other.

    Raises:
        PeerLostError: another process ended before its time.
        ResourceError: they find no way to each other.
        SettingsError: the device has no such connection.
    """
    if team.size == 1:
        yield
        return
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"several processes train together on CPUs or CUDA GPUs, not on {device.type}")
    if not dist.is_available():
        raise SettingsError("this build of PyTorch cannot train in several processes")
    own = not dist.is_initialized()
    if own:
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            # gloo begins with the place in its source.
            reason = re.sub(r"^\[[^]]*\] *", "", first_line(error))
            raise ResourceError(
                f"the {team.size} processes cannot be connected: {reason}",
                hint="MASTER_PORT, where it is set, is to be a free port, GLOO_SOCKET_IFNAME a network interface; else try again",
            ) from error
    try:
        yield
        if own:
            # Only now: with a process that is gone there is no orderly end, and the exit of this one is one.
            dist.destroy_process_group()
    except RuntimeError as error:
        # Of a lost connection gloo tells with a plain RuntimeError that names its source file.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise PeerLostError(
                "another process of this training ended before its time", hint="its own message says why"
            ) from error
        raise
