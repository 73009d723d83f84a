"""Per-channel statistics of a data set, what they warn of, and the scaling that is fitted to them.

The scaling is stored with the model, so that a model never meets pixels on another scale than it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from auxmae.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from auxmae.data.dataset import ImageDataset

EPS = 1e-12


@dataclass(frozen=True)
class ChannelStatistics:
    """What the valid pixels of every channel look like, after the transform.

    Attributes:
        channel_names: C names; all other lists have one entry a channel.
        count: valid pixels; valid: their part of all pixels.
        mean, std, minimum, maximum: over all valid pixels.
        low, median, high, tail: percentiles (low and high as asked, 50, 99.9), estimated from `samples` pixels.
        at_maximum: part of the valid pixels that hold the channel's largest value.
        low_percentile, high_percentile: what low and high stand for, %.
    """

    channel_names: tuple[str, ...]
    count: tuple[int, ...]
    valid: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]
    tail: tuple[float, ...]
    at_maximum: tuple[float, ...]
    low_percentile: float
    high_percentile: float
    transform: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _transform(x: NDArray[np.float64], kind: str, cofactor: float) -> NDArray[np.float64]:
    if kind == "log1p":
        return np.log1p(np.maximum(x, 0))
    return np.arcsinh(x / cofactor) if kind == "arcsinh" else x


def compute_statistics(
    dataset: ImageDataset,
    *,
    transform: str = "none",
    cofactor: float = 1.0,
    low: float = 1.0,
    high: float = 99.0,
    samples: int = 2_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> ChannelStatistics:
    """One pass over the dataset's windows; sums in double precision (Chan's update), percentiles from an even subsample.

    Args:
        dataset: unscaled and not augmented.
        transform, cofactor: applied first: "none", "log1p" (of what is not negative) or "arcsinh" (of x / cofactor).
        low, high: percentiles, %.
        samples: pixels per channel that the percentiles are estimated from, at most.
        progress: told (done, total) windows.

    Raises:
        DataError: no valid pixel at all.
    """
    names = dataset.channel_names
    channels, windows = len(names), len(dataset)
    count, total = np.zeros(channels), 0
    mean, square = np.zeros(channels), np.zeros(channels)
    minimum, maximum = np.full(channels, np.inf), np.full(channels, -np.inf)
    at_maximum = np.zeros(channels)
    kept: list[list[NDArray[np.float32]]] = [[] for _ in range(channels)]
    generator = np.random.default_rng(0)
    # Every window contributes the same share; a huge scene is read in as many windows as give enough pixels.
    per_window = max(samples // max(windows, 1), 64)
    order = generator.permutation(windows)[: max(4 * samples // max(dataset.image_size**2, 1), 256)]
    for done, index in enumerate(order):
        sample = dataset[int(index)]
        pixels = sample.image.numpy().reshape(channels, -1)
        valid = sample.valid.numpy().reshape(channels, -1)
        total += pixels.shape[1]
        for channel in range(channels):
            values = _transform(pixels[channel][valid[channel]].astype(np.float64), transform, cofactor)
            if not values.size:
                continue
            n = values.size
            delta = values.mean() - mean[channel]
            square[channel] += values.var() * n + delta**2 * count[channel] * n / (count[channel] + n)
            mean[channel] += delta * n / (count[channel] + n)
            count[channel] += n
            largest = values.max()
            if largest > maximum[channel]:
                maximum[channel], at_maximum[channel] = largest, 0
            if largest == maximum[channel]:
                at_maximum[channel] += (values == largest).sum()
            minimum[channel] = min(minimum[channel], values.min())
            step = -(-n // per_window)
            kept[channel].append(values[generator.integers(step) :: step].astype(np.float32))
        if progress:
            progress(done + 1, len(order))
    if not count.any():
        raise DataError(f"{dataset.collection.source}: no valid pixel in the training part", hint="check data.nodata")
    seen = count > 0
    quantiles = np.array(
        [np.percentile(np.concatenate(k), [low, 50, high, 99.9]) if k else np.zeros(4) for k in kept], np.float64
    )
    safe = np.maximum(count, 1)

    def listed(values: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(float(value) for value in values)

    return ChannelStatistics(
        names,
        tuple(int(value) for value in count),
        listed(count / max(total, 1)),
        listed(mean),
        listed(np.sqrt(square / safe)),
        listed(np.where(seen, minimum, 0)),
        listed(np.where(seen, maximum, 0)),
        listed(quantiles[:, 0]),
        listed(quantiles[:, 1]),
        listed(quantiles[:, 2]),
        listed(quantiles[:, 3]),
        listed(at_maximum / safe),
        low,
        high,
        transform,
    )


def statistics_warnings(statistics: ChannelStatistics) -> list[str]:
    """What a user should look at before training, one sentence each."""
    s, warnings = statistics, []
    middle = float(np.median([abs(value) for value in s.mean])) or 1.0
    tails = []
    for i, name in enumerate(s.channel_names):
        if s.count[i] == 0:
            warnings.append(f"{name}: dead: no valid pixel; leave it out with data.channels")
        elif s.std[i] <= EPS * max(abs(s.mean[i]), 1):
            warnings.append(f"{name}: constant ({s.mean[i]:g}); it teaches nothing: leave it out with data.channels")
        else:
            if s.at_maximum[i] > 0.01 and s.maximum[i] > s.median[i]:
                warnings.append(f"{name}: saturated: {s.at_maximum[i]:.1%} of its pixels hold the largest value {s.maximum[i]:g}")
            if s.valid[i] < 0.5:
                warnings.append(f"{name}: only {s.valid[i]:.0%} of its pixels are valid")
            if abs(s.mean[i]) > 100 * middle or 0 < abs(s.mean[i]) < middle / 100:
                warnings.append(f"{name}: its mean {s.mean[i]:g} is far from the other channels' ({middle:g}): other units?")
            if s.transform == "none" and s.tail[i] - s.median[i] > 20 * max(s.high[i] - s.median[i], EPS) / 4 + 8 * s.std[i]:
                tails.append(name)
    if tails:
        warnings.append(f"{', '.join(tails)}: heavy-tailed: try scaling.transform = 'arcsinh' or 'log1p'")
    sentinel = {f"B{n:02d}" for n in range(1, 13)} - {"B10"}
    if sentinel <= set(s.channel_names):
        typical = float(np.median([s.median[s.channel_names.index(name)] for name in sentinel]))
        if s.transform == "none" and 1.5 < typical < 50:
            warnings.append(f"Sentinel-2 bands with a typical value of {typical:g}: expected are 100 to 6 000 (reflectance × 10 000) or 0 to 1")
    return warnings


@dataclass(frozen=True)
class Scaling:
    """y = (transform(x) − shift) / scale, per channel.

    Attributes:
        method, transform, cofactor, clip: as in the settings' [scaling] table.
        channel_names: C names; shift, scale: C numbers in the units of the transformed pixels.
    """

    method: str
    transform: str
    cofactor: float
    clip: bool
    channel_names: tuple[str, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, statistics: ChannelStatistics, *, method: str, transform: str, cofactor: float, clip: bool) -> Scaling:
        """Fits "percentile", "standard", "minmax" or "none"; a constant channel keeps scale 1."""
        s = statistics
        if method == "percentile":
            low, spread = np.array(s.low), np.array(s.high) - np.array(s.low)
            # A channel that is nearly everywhere the same has no percentile range; its full range serves.
            full = np.array(s.maximum) - np.array(s.minimum)
            spread = np.where(spread > EPS, spread, full)
        elif method == "standard":
            low, spread = np.array(s.mean), np.array(s.std)
        elif method == "minmax":
            low, spread = np.array(s.minimum), np.array(s.maximum) - np.array(s.minimum)
        else:
            low, spread = np.zeros(len(s.mean)), np.ones(len(s.mean))
        spread = np.where(spread > EPS, spread, 1.0)
        return cls(method, transform, cofactor, clip, s.channel_names, tuple(map(float, low)), tuple(map(float, spread)))

    @classmethod
    def identity(cls, channel_names: Sequence[str]) -> Scaling:
        """The scaling that changes nothing."""
        count = len(channel_names)
        return cls("none", "none", 1.0, False, tuple(channel_names), (0.0,) * count, (1.0,) * count)

    def _columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, 1, 1)
        return x.new_tensor(self.shift).view(shape), x.new_tensor(self.scale).view(shape)

    def apply(self, x: Tensor) -> Tensor:
        """Pixels (…, C, h, w) → scaled."""
        shift, scale = self._columns(x)
        if self.transform == "log1p":
            x = x.clamp(min=0).log1p()
        elif self.transform == "arcsinh":
            x = (x / self.cofactor).arcsinh()
        y = (x - shift) / scale
        return y.clamp(0, 1) if self.clip else y

    def invert(self, y: Tensor) -> Tensor:
        """Scaled (…, C, h, w) → pixels; what was clipped is lost."""
        shift, scale = self._columns(y)
        x = y * scale + shift
        if self.transform == "log1p":
            return x.expm1()
        return x.sinh() * self.cofactor if self.transform == "arcsinh" else x

    def select(self, names: Sequence[str]) -> Scaling:
        """The same scaling for these channels, in this order.

        Raises:
            DataError: a channel that it was not fitted to.
        """
        missing = [name for name in names if name not in self.channel_names]
        if missing:
            raise DataError(f"no scaling is known for {', '.join(missing)}", hint=f"it was fitted to {', '.join(self.channel_names)}")
        index = [self.channel_names.index(name) for name in names]
        return Scaling(
            self.method, self.transform, self.cofactor, self.clip, tuple(names),
            tuple(self.shift[i] for i in index), tuple(self.scale[i] for i in index),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Scaling:
        """From `to_dict`.

        Raises:
            CheckpointError: something is missing.
        """
        try:
            lists = {key: tuple(content[key]) for key in ("channel_names", "shift", "scale")}
            return cls(content["method"], content["transform"], content["cofactor"], content["clip"], **lists)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the stored scaling is broken: {error}") from error


