"""The pictures of a run: reconstructions and curves.

Shapes: B images, C channels, h × w px.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from auxmae.data.channels import nearest_name, shortened
from auxmae.errors import AuxMAEError, UsageError
from auxmae.visuals.composite import choose_composite, stretch, stretch_limits
from auxmae.writing import replacing

if TYPE_CHECKING:
    from auxmae.data.loading import Batch, Loader
    from auxmae.model.mae import Reconstruction

COLUMNS = ("original", "masked", "reconstruction", "reconstruction + visible")
GREY = 0.5
# Batches that are looked at for one whose pixels are mostly valid.
_LOOKED_AT = 20
# Bluish, where the pixels themselves are grey.
COVER = (0.75, 0.80, 0.90)


def batch_to_show(loader: Loader, count: int) -> Batch | None:
    """The first batch whose first `count` images are mostly valid pixels, of the first ones; None: there is no batch.

    Where no batch is such, the one that comes nearest to it.
    """
    best, most = None, -1.0
    # In a fixed order, and with all channels; of large images the first samples are windows of one.  Mostly it is the first
    # batch, for which no process is worth starting.
    for batch in islice(loader.limited(count if loader.dataset.in_parts else 0, workers=0), _LOOKED_AT):
        share = float(batch.valid[:count].flatten(1).float().mean(1).min())
        if share > most:
            best, most = batch, share
        if share > 0.5:
            break
    return best


def reconstruction_figure(
    image: Tensor,
    reconstruction: Reconstruction,
    valid: Tensor,
    *,
    channel_names: Sequence[str],
    wavelengths: Sequence[float] | None,
    path: Path,
    title: str = "",
    channels: Sequence[str] | None = None,
    rows: int = 4,
) -> Path:
    """original | masked | reconstruction | reconstruction + visible, in false colour and for chosen channels.

    Args:
        image: (B, C, h, w) scaled pixels; valid: the same in bool.
        reconstruction: of the model, for these images.
        channel_names, wavelengths: of the C channels.
        path: of the PNG.
        channels: names of channels to show one by one, below each image's false colours.
        rows: images shown, at most.

    Returns:
        `path`.

    Raises:
        UsageError: an unknown channel.
    """
    check_channels(channels or (), channel_names)
    count = min(rows, len(image))
    x, ok = image[:count].float().cpu().numpy(), valid[:count].cpu().numpy()
    guess = reconstruction.prediction[:count].detach().float().cpu().numpy()
    hidden = reconstruction.hidden[:count].cpu().numpy()
    composite = choose_composite(channel_names, wavelengths, x, ok)
    used = composite.used
    lines: list[tuple[str, list[NDArray[np.float64]]]] = []
    for i in range(count):
        seen = ok[i][used].all(0)
        limits = stretch_limits(composite.apply(x[i]), seen)
        # Where a channel is hidden its colour is grey; with independent masks a pixel often keeps some of its colours.
        neutral = _inside(x[i], ok[i])
        masked = np.where(hidden[i], neutral, x[i])
        merged = np.where(hidden[i], guess[i], x[i])
        # Only what was hidden was predicted; the visible rest of the third picture is grey, as in the second.
        alone = np.where(hidden[i], guess[i], neutral)
        panels = [stretch(composite.apply(panel), limits) for panel in (x[i], masked, alone, merged)]
        panels[1][composite.unseen(~hidden[i])] = GREY
        panels[2][composite.unseen(hidden[i])] = GREY
        for panel in panels:
            _hatch(panel, ~seen)
        lines.append((f"image {i + 1}", panels))
        for name in channels or ():
            c = list(channel_names).index(name)
            low, high = stretch_limits(x[i, c][..., None].astype(np.float64), ok[i, c])
            error = np.abs(guess[i, c] - x[i, c])[hidden[i, c] & ok[i, c]]
            note = f"{name}\nL1 {error.mean():.3f}" if error.size else name
            grey = []
            everywhere = np.ones_like(hidden[i, c])
            shown_pixels = (everywhere, ~hidden[i, c], hidden[i, c], everywhere)
            for values, shown in zip((x[i, c], x[i, c], guess[i, c], merged[c]), shown_pixels, strict=True):
                picture = stretch(np.repeat(values[..., None], 3, 2).astype(np.float64), (low, high))
                picture[~shown] = COVER
                _hatch(picture, ~ok[i, c])
                grey.append(picture)
            lines.append((note, grey))
    figure = Figure(figsize=(8.4, 2.1 * len(lines) + 0.7), layout="constrained")
    axes = figure.subplots(len(lines), len(COLUMNS), squeeze=False)
    for row, (label, panels) in enumerate(lines):
        for column, panel in enumerate(panels):
            axis = axes[row][column]
            axis.imshow(panel, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(COLUMNS[column], fontsize=10)
        axes[row][0].set_ylabel(label, fontsize=9)
    caption = f"Colours: {composite.description}; range: 2–98 % of each original."
    caption += " Grey: hidden (masked), or visible and so not predicted (reconstruction); a pixel that is hidden in some "
    caption += "channels only keeps the colours of the others."
    if channels:
        caption += " In single channels this is bluish; L1: mean absolute error on the row's hidden pixels, scaled units."
    if not ok.all():
        caption += " Hatched: invalid pixels."
    if title:
        figure.suptitle(title, fontsize=10)
    figure.supxlabel(textwrap.fill(caption, 125), fontsize=8)
    return save_figure(figure, path)


def check_channels(wanted: Sequence[str], channel_names: Sequence[str]) -> None:
    """Raises UsageError, with the nearest name, where a wanted channel is unknown."""
    for name in wanted:
        if name not in channel_names:
            near = nearest_name(name, channel_names)
            known = f"the channels are {shortened(channel_names, most=16)}"
            raise UsageError(f"there is no channel {name!r}", hint=f"did you mean {near!r}?" if near else known)


def _hatch(picture: NDArray[np.float64], where: NDArray[np.bool_]) -> None:
    """Paints light stripes over (h, w, 3) pixels, in place: no data has this look."""
    rows, columns = np.nonzero(where)
    picture[rows, columns] = np.where((rows + columns) // 2 % 2, 0.95, 0.80)[:, None]


def _inside(image: NDArray[np.floating], valid: NDArray[np.bool_]) -> NDArray[np.floating]:
    """(C, 1, 1) the middle of each channel's range: what a hidden pixel is painted with, so that it comes out grey."""
    middle = [np.mean(np.percentile(channel[ok], [2, 98])) if ok.any() else 0.0 for channel, ok in zip(image, valid, strict=True)]
    return np.asarray(middle, image.dtype)[:, None, None]


def curves_figure(metrics: Sequence[dict[str, Any]], path: Path) -> Path:
    """Training and validation loss, and the learning rate, over the steps."""
    train, validation = _plottable(metrics, "train"), _plottable(metrics, "validation")
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    losses, rates = figure.subplots(1, 2, width_ratios=(2, 1))
    losses.plot([r["step"] for r in train], [r["loss"] for r in train], color="#7aa6c2", linewidth=1, label="training")
    steps, values = [r["step"] for r in validation], [r["loss"] for r in validation]
    losses.plot(steps, values, color="#b5442e", marker="o", markersize=3, label="validation")
    losses.set_xlabel("step")
    losses.set_ylabel("loss on hidden pixels")
    positive = [r["loss"] for r in train + validation if r["loss"] > 0]
    if positive:
        losses.set_yscale("log")
        if max(positive) < 10 * min(positive):
            # Within one decade the logarithmic axis would label nothing, or every tick in powers of ten.
            losses.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
        losses.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        losses.yaxis.set_minor_formatter(NullFormatter())
    losses.legend(frameon=False)
    scheduled = [r for r in train if "learning_rate" in r]
    rates.plot([r["step"] for r in scheduled], [r["learning_rate"] for r in scheduled], color="#555555", linewidth=1)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    rates.set_xlabel("step")
    rates.set_ylabel("learning rate")
    for axis in (losses, rates):
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def _plottable(metrics: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The records of one kind that have a step and a finite loss."""
    return [
        record
        for record in metrics
        if record.get("kind") == kind
        and "step" in record
        and isinstance(record.get("loss"), (int, float))
        and math.isfinite(record["loss"])
    ]


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all, and makes its folder; raises AuxMAEError where that fails."""
    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        # Names of files, channels and classes are no mathematics, whatever stands between two $ in them.
        text.set_parse_math(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            figure.savefig(draft, dpi=110, facecolor="white", format="png")
    except OSError as error:
        raise AuxMAEError(
            f"{path}: the figure cannot be written: {error.strerror or error}", hint="choose another place"
        ) from error
    return path
