"""What the values of every channel are like, and the scaling to network inputs that follows from it.

Shape letters: B batch, C channels, H rows, W columns, S samples kept for percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auxmae.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from auxmae.data.dataset import ImageDataset

Values = tuple[float, ...]

# Windows read together, at most, and bytes of their pixels and validity: many bands in large crops are read one by one.
_BATCH, _BATCH_BYTES = 32, 2**28
# Of large data sets, windows with this many times the wanted percentile samples are read, not all of them.
_READ_FACTOR = 8
# The largest value is isolated beyond so many times the 99.9th percentile.
_ISOLATED = 1000
# Share of the pixels at the minimum of every channel from which on they look like a filling.
_FILLED = 0.01


@dataclass(frozen=True)
class ChannelStatistics:
    """Per channel, over valid pixels only; all but `count` and the fractions in transformed units (see `transform`).

    Attributes:
        channel_names: C names.
        count: valid pixels seen.
        mean, std: of them (population standard deviation).
        minimum, maximum: of them.
        low, high: percentiles `low_percent` and `high_percent`, estimated from a random sample.
        median, extreme: the 50th and 99.9th percentile before the transform, in pixel units.
        raw_mean, raw_minimum, raw_maximum: before the transform, in pixel units.
        fraction_valid: valid pixels of all.
        fraction_low_end, fraction_high_end: pixels at exactly the minimum, and the maximum.
        transform, cofactor: what was applied to the pixels first.
        low_percent, high_percent: which percentiles `low` and `high` are.
    """

    channel_names: tuple[str, ...]
    count: tuple[int, ...]
    mean: Values
    std: Values
    minimum: Values
    maximum: Values
    low: Values
    high: Values
    median: Values
    extreme: Values
    raw_mean: Values
    raw_minimum: Values
    raw_maximum: Values
    fraction_valid: Values
    fraction_low_end: Values
    fraction_high_end: Values
    transform: str = "none"
    cofactor: float = 1.0
    low_percent: float = 1.0
    high_percent: float = 99.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; a channel without a valid pixel has None where a number is unknown."""
        return {
            key: [None if isinstance(v, float) and not math.isfinite(v) else v for v in value]
            if isinstance(value, tuple)
            else value
            for key, value in asdict(self).items()
        }


class _Moments:
    """Count, mean, sum of squared deviations, extremes and their shares of a stream, per channel.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979), in float64: nothing cancels,
    however large the mean.
    """

    def __init__(self, channels: int) -> None:
        self.count = np.zeros(channels, dtype=np.int64)
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)
        self.minimum, self.maximum = np.full(channels, np.inf), np.full(channels, -np.inf)
        self.at_minimum, self.at_maximum = np.zeros(channels, dtype=np.int64), np.zeros(channels, dtype=np.int64)

    def add(self, channel: int, values: NDArray[np.float64]) -> None:
        if not len(values):
            return
        mean = values.mean()
        total = self.count[channel] + len(values)
        delta = mean - self.mean[channel]
        self.squares[channel] += ((values - mean) ** 2).sum() + delta**2 * self.count[channel] * len(values) / total
        self.mean[channel] += delta * len(values) / total
        self.count[channel] = total
        low, high = values.min(), values.max()
        if low < self.minimum[channel]:
            self.minimum[channel], self.at_minimum[channel] = low, 0
        if high > self.maximum[channel]:
            self.maximum[channel], self.at_maximum[channel] = high, 0
        self.at_minimum[channel] += np.count_nonzero(values == self.minimum[channel])
        self.at_maximum[channel] += np.count_nonzero(values == self.maximum[channel])


def compute_statistics(
    dataset: ImageDataset,
    *,
    transform: str = "none",
    cofactor: float = 1.0,
    low: float = 1.0,
    high: float = 99.0,
    samples: int = 2_000_000,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> ChannelStatistics:
    """One pass over a data set, window by window; a pixel of several windows counts once.

    Args:
        dataset: raw (scaling=None), not augmented.  Of one with more than 8 × `samples` pixels, a random part is read.
        transform: "none", "log1p" or "arcsinh", applied first.
        cofactor: arcsinh(x / cofactor), pixel units.
        low, high: percentiles, %.
        samples: pixels per channel kept for percentiles, at most.
        progress: told (done, total) windows.
        seed: of the samples.

    Raises:
        DataError: there is no valid pixel at all, or a file cannot be read.
    """
    names, random = dataset.channel_names, np.random.default_rng(seed)
    area = dataset.image_size**2
    indices = np.arange(len(dataset))
    most = max(math.ceil(_READ_FACTOR * samples / area), 1)
    if len(indices) > most:
        indices = np.sort(random.choice(indices, most, replace=False))
    share = min(1.0, samples / max(len(indices) * area, 1))
    raw, scaled = _Moments(len(names)), _Moments(len(names))
    kept: list[list[NDArray[np.float32]]] = [[] for _ in names]
    total = 0
    batch = min(_BATCH, max(_BATCH_BYTES // (area * len(names) * 5), 1))
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch].tolist()
        image, valid, *_ = dataset.fetch(chosen)
        # Neither as valid nor as missing counts padding, which is no part of an image, nor what an earlier window holds too.
        for row, index in enumerate(chosen):
            (_, window), (rows, columns) = dataset.place(index), dataset.held(index)
            valid[row, :, :rows] = False
            valid[row, :, :, :columns] = False
            total += (window.height - rows) * (window.width - columns)
        for channel in range(len(names)):
            values = image[:, channel][valid[:, channel]].numpy().astype(np.float64)
            raw.add(channel, values)
            if transform != "none":
                scaled.add(channel, _transform(torch.from_numpy(values), transform, cofactor).numpy())
            picked = values if share == 1 else values[random.random(len(values)) < share]
            kept[channel].append(picked.astype(np.float32))
        if progress is not None:
            progress(start + len(chosen), len(indices))
    if not raw.count.any():
        raise DataError(f"{dataset.collection.source}: no valid pixel to compute statistics from", hint="check data.nodata")
    moments = raw if transform == "none" else scaled
    percentiles = np.full((4, len(names)), np.nan)
    for channel, pieces in enumerate(kept):
        values = np.concatenate(pieces).astype(np.float64)
        if len(values):
            percentiles[:, channel] = np.percentile(values, [low, high, 50, 99.9])
    ends = _transform(torch.from_numpy(percentiles[:2]), transform, cofactor).numpy()
    count = np.maximum(raw.count, 1)
    none = raw.count == 0

    def known(values: NDArray[np.float64]) -> Values:
        return tuple(float(value) for value in np.where(none, np.nan, values))

    def share_of(values: NDArray[np.int64], of: NDArray[np.int64] | int) -> Values:
        return tuple(float(value) for value in values / of)

    return ChannelStatistics(
        names,
        tuple(int(value) for value in raw.count),
        known(moments.mean),
        known(np.sqrt(moments.squares / count)),
        known(moments.minimum),
        known(moments.maximum),
        known(ends[0]),
        known(ends[1]),
        known(percentiles[2]),
        known(percentiles[3]),
        known(raw.mean),
        known(raw.minimum),
        known(raw.maximum),
        share_of(raw.count, max(total, 1)),
        share_of(raw.at_minimum, count),
        share_of(raw.at_maximum, count),
        transform,
        cofactor,
        low,
        high,
    )


def statistics_warnings(statistics: ChannelStatistics, dtype: np.dtype | None = None) -> list[str]:
    """What looks wrong, one sentence each: dead, constant, saturated, heavy-tailed, badly scaled, missing pixels.

    Args:
        statistics: of windows of the training part, which need not hold all of its pixels.
        dtype: of the stored pixels, whose largest value tells saturation from a mere maximum.
    """
    s, warnings = statistics, []
    limit = float(np.iinfo(dtype).max) if dtype is not None and np.issubdtype(dtype, np.integer) else None

    def warn(names: Sequence[str], what: str) -> None:
        if names:
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            warnings.append(f"{listed}: {what}")

    groups: dict[str, list[str]] = {
        key: [] for key in ("empty", "dead", "constant", "saturated", "isolated", "tails", "negative", "invalid")
    }
    for c, name in enumerate(s.channel_names):
        constant = s.raw_minimum[c] == s.raw_maximum[c]
        if s.count[c] == 0:
            groups["empty"].append(name)
        elif constant:
            groups["dead" if s.raw_maximum[c] == 0 else "constant"].append(name)
        else:
            at_limit = limit is not None and s.raw_maximum[c] == limit and s.fraction_high_end[c] >= 0.001
            if s.fraction_high_end[c] >= 0.01 or at_limit:
                groups["saturated"].append(name)
            if max(s.raw_maximum[c], -s.raw_minimum[c]) > _ISOLATED * s.extreme[c] > 0:
                groups["isolated"].append(name)
            elif s.transform == "none" and s.extreme[c] > -20 * s.raw_minimum[c] and _heavy(s, c):
                groups["tails"].append(name)
            if s.transform == "log1p" and s.raw_minimum[c] < 0:
                groups["negative"].append(name)
        if s.count[c] > 0 and s.fraction_valid[c] < 0.5:
            groups["invalid"].append(name)
    warn(groups["empty"], "no valid pixel among those looked at")
    warn(groups["dead"], "dead, every pixel looked at is 0: leave it out with data.channels")
    warn(groups["constant"], "constant, every pixel looked at has the same value: leave it out with data.channels")
    warn(groups["saturated"], "saturated, many pixels are exactly at the maximum")
    warn(groups["isolated"], "isolated values a thousand times beyond the rest: set data.nodata, or scaling.clip = true")
    warn(groups["tails"], "heavy tails, a few pixels far above the rest: try scaling.transform = 'arcsinh'")
    warn(groups["negative"], "pixels below 0, which scaling.transform = 'log1p' takes for 0: 'arcsinh' keeps them apart")
    warn(groups["invalid"], "more than half of the pixels are not valid (nodata or NaN)")
    warnings.extend(_fill_warnings(s))
    warnings.extend(_scale_warnings(s))
    return warnings


def _fill_warnings(s: ChannelStatistics) -> list[str]:
    """The same share of all channels is exactly at the same minimum: most likely pixels without data that nothing marks."""
    known = [c for c in range(len(s.channel_names)) if s.count[c]]
    shares = [s.fraction_low_end[c] for c in known]
    values = {s.raw_minimum[c] for c in known}
    if len(known) < 2 or len(values) > 1 or min(shares) < _FILLED or max(shares) > 1.1 * min(shares) or max(shares) == 1:
        return []
    value = values.pop()
    return [f"{min(shares):.0%} of the pixels are exactly {value:g} in every channel: if that means no data, set data.nodata"]


def _heavy(s: ChannelStatistics, channel: int) -> bool:
    """The 99.9th percentile is over 20 medians; where most pixels are 0, over 10 means."""
    if s.median[channel] > 0:
        return s.extreme[channel] > 20 * s.median[channel]
    return s.raw_mean[channel] > 0 and s.extreme[channel] > 10 * s.raw_mean[channel]


def _scale_warnings(s: ChannelStatistics) -> list[str]:
    warnings = []
    sentinel = [c for c, name in enumerate(s.channel_names) if name in SENTINEL2_NAMES and s.count[c] and s.raw_maximum[c] > 0]
    if len(sentinel) >= 3:
        typical = float(np.median([s.raw_mean[c] for c in sentinel]))
        if not 50 <= typical <= 20_000:
            warnings.append(
                f"scale far from expected: Sentinel-2 reflectance × 10000 has means of hundreds to thousands, "
                f"these have {typical:.3g}; a model trained on the one does not fit the other"
            )
    spread = {c: s.extreme[c] for c in range(len(s.channel_names)) if s.count[c] and s.extreme[c] > 0}
    if len(spread) >= 2:
        middle = float(np.median(list(spread.values())))
        odd = [s.channel_names[c] for c, value in spread.items() if not middle / 100 < value < middle * 100]
        if odd:
            listed = ", ".join(odd[:8]) + (f" and {len(odd) - 8} more" if len(odd) > 8 else "")
            warnings.append(f"{listed}: values differ from the other channels' by a factor of 100 or more")
    return warnings


SENTINEL2_NAMES = frozenset({"B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"})


@dataclass(frozen=True)
class Scaling:
    """Pixel values → network inputs, per channel: y = (transform(x) − shift) / scale, clipped to [0, 1] where asked.

    Attributes:
        method, transform, cofactor, clip: as in the settings' [scaling] table.
        channel_names: C names.
        shift, scale: C numbers, in transformed units; scale is never 0.
    """

    method: str
    transform: str
    cofactor: float
    clip: bool
    channel_names: tuple[str, ...]
    shift: Values
    scale: Values

    @classmethod
    def fit(
        cls,
        statistics: ChannelStatistics,
        *,
        method: str = "percentile",
        transform: str | None = None,
        cofactor: float | None = None,
        clip: bool = False,
    ) -> Scaling:
        """From statistics, whose transform it must share.  A constant channel has scale 1.

        Raises:
            ValueError: another transform or an unknown method.
        """
        s = statistics
        transform = s.transform if transform is None else transform
        cofactor = s.cofactor if cofactor is None else cofactor
        if (transform, cofactor) != (s.transform, s.cofactor):
            raise ValueError(f"the statistics are of {s.transform} ({s.cofactor}), not of {transform} ({cofactor})")
        if method == "percentile":
            shift, scale = np.array(s.low), np.array(s.high) - np.array(s.low)
            # Mostly one value (such as 0): the percentiles coincide though the channel is not constant.
            whole = np.array(s.maximum) - np.array(s.minimum)
            scale = np.where(scale > 0, scale, whole)
        elif method == "standard":
            shift, scale = np.array(s.mean), np.array(s.std)
        elif method == "minmax":
            shift, scale = np.array(s.minimum), np.array(s.maximum) - np.array(s.minimum)
        elif method == "none":
            shift, scale = np.zeros(len(s.channel_names)), np.ones(len(s.channel_names))
        else:
            raise ValueError(f"unknown scaling method {method!r}")
        shift = np.where(np.isfinite(shift), shift, 0.0)
        # Rounding leaves a trace of spread in a constant channel: relative to its size, not to 0.
        usable = np.isfinite(scale) & (scale > 1e-12 * np.maximum(np.abs(shift), 1e-12))
        scale = np.where(usable, scale, 1.0)
        return cls(method, transform, cofactor, clip, s.channel_names, tuple(shift.tolist()), tuple(scale.tolist()))

    @classmethod
    def identity(cls, channel_names: Sequence[str]) -> Scaling:
        """Changes nothing."""
        count = len(channel_names)
        return cls("none", "none", 1.0, False, tuple(channel_names), (0.0,) * count, (1.0,) * count)

    def apply(self, x: Tensor) -> Tensor:
        """Scales x (…, C, H, W), pixel units."""
        shift, scale = self._tensors(x)
        y = (_transform(x, self.transform, self.cofactor) - shift) / scale
        return y.clamp(0, 1) if self.clip else y

    def invert(self, y: Tensor) -> Tensor:
        """Network values (…, C, H, W) back to pixel units; what was clipped stays clipped."""
        shift, scale = self._tensors(y)
        x = y * scale + shift
        if self.transform == "log1p":
            return torch.expm1(x)
        return torch.sinh(x) * self.cofactor if self.transform == "arcsinh" else x

    def select(self, names: Sequence[str]) -> Scaling:
        """The scaling of some channels, in this order.

        Raises:
            DataError: a name is unknown.
        """
        for name in names:
            if name not in self.channel_names:
                raise DataError(f"no scaling is known for channel {name!r}", hint=f"known: {', '.join(self.channel_names)}")
        places = [self.channel_names.index(name) for name in names]
        shift, scale = (tuple(values[place] for place in places) for values in (self.shift, self.scale))
        return Scaling(self.method, self.transform, self.cofactor, self.clip, tuple(names), shift, scale)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Scaling:
        """What `to_dict` wrote.

        Raises:
            CheckpointError: something is missing.
        """
        try:
            names, shift, scale = (tuple(stored[key]) for key in ("channel_names", "shift", "scale"))
            return cls(stored["method"], stored["transform"], stored["cofactor"], stored["clip"], names, shift, scale)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the stored scaling is broken: {error}") from error

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = (
            torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None] for values in (self.shift, self.scale)
        )
        return shift, scale


def _transform(x: Tensor, transform: str, cofactor: float) -> Tensor:
    if transform == "log1p":
        return torch.log1p(x.clamp(min=0))  # counts: what lies below 0 is noise
    return torch.arcsinh(x / cofactor) if transform == "arcsinh" else x
