"""The pictures of a run: reconstructions and curves.

Shapes: B images, C channels, h × w px.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from auxmae.errors import AuxMAEError, UsageError
from auxmae.visuals.composite import choose_composite, stretch, stretch_limits

if TYPE_CHECKING:
    from auxmae.model.mae import Reconstruction

COLUMNS = ("original", "masked", "reconstruction", "reconstruction + visible")
GREY = 0.5
INVALID = np.array([0.85, 0.80, 0.90])


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
    for name in channels or ():
        if name not in channel_names:
            near = difflib.get_close_matches(name, channel_names, 1)
            raise UsageError(
                f"there is no channel {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"the channels are {', '.join(channel_names)}",
            )
    x, ok = image.cpu().numpy(), valid.cpu().numpy()
    guess, hidden = reconstruction.prediction.float().cpu().numpy(), reconstruction.hidden.cpu().numpy()
    count = min(rows, len(x))
    composite = choose_composite(channel_names, wavelengths, x, ok)
    used = composite.used
    lines: list[tuple[str, list[NDArray[np.float64]]]] = []
    for i in range(count):
        seen = ok[i][used].all(0)
        limits = stretch_limits(composite.apply(x[i]), seen)
        # Where a channel is hidden its colour is grey; with independent masks a pixel often keeps some of its colours.
        neutral = _inside(composite.weights, x[i], ok[i])
        masked = np.where(hidden[i], neutral, x[i])
        merged = np.where(hidden[i], guess[i], x[i])
        # Only what was hidden was predicted; the visible rest of the third picture is grey, as in the second.
        alone = np.where(hidden[i], guess[i], neutral)
        panels = [stretch(composite.apply(panel), limits) for panel in (x[i], masked, alone, merged)]
        for panel in panels:
            panel[~seen] = INVALID
        lines.append((f"image {i + 1}", panels))
        for name in channels or ():
            c = list(channel_names).index(name)
            low, high = stretch_limits(x[i, c][..., None].astype(np.float64), ok[i, c])
            error = np.abs(guess[i, c] - x[i, c])[hidden[i, c] & ok[i, c]]
            note = f"{name}\nL1 {error.mean():.3f}" if error.size else name
            grey = []
            everywhere = np.ones_like(hidden[i, c])
            views = ((x[i, c], everywhere), (x[i, c], ~hidden[i, c]), (guess[i, c], hidden[i, c]), (merged[c], everywhere))
            for values, shown in views:
                picture = stretch(np.repeat(values[..., None], 3, 2).astype(np.float64), (low, high))
                picture[~shown] = (0.75, 0.80, 0.90)
                picture[~ok[i, c]] = INVALID
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
    figure.suptitle(title or f"Colours: {composite.description}; grey: hidden, or not predicted", fontsize=9)
    return _save(figure, path)


def _inside(weights: NDArray[np.float64], image: NDArray[np.floating], valid: NDArray[np.bool_]) -> NDArray[np.floating]:
    """(C, 1, 1) the middle of each channel's range: what a hidden pixel is painted with, so that it comes out grey."""
    middle = [np.mean(np.percentile(channel[ok], [2, 98])) if ok.any() else 0.0 for channel, ok in zip(image, valid, strict=True)]
    return np.asarray(middle, image.dtype)[:, None, None]


def curves_figure(metrics: Sequence[dict[str, Any]], path: Path) -> Path:
    """Training and validation loss, and the learning rate, over the steps."""
    train = [record for record in metrics if record.get("kind") == "train"]
    validation = [record for record in metrics if record.get("kind") == "validation"]
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    losses, rates = figure.subplots(1, 2, width_ratios=(2, 1))
    losses.plot([r["step"] for r in train], [r["loss"] for r in train], color="#7aa6c2", linewidth=1, label="training")
    losses.plot(
        [r["step"] for r in validation],
        [r["loss"] for r in validation],
        color="#b5442e",
        marker="o",
        markersize=3,
        label="validation",
    )
    losses.set_xlabel("step")
    losses.set_ylabel("loss on hidden pixels")
    if train and max(r["loss"] for r in train) > 0:
        losses.set_yscale("log")
    losses.legend(frameon=False)
    rates.plot([r["step"] for r in train], [r["learning_rate"] for r in train], color="#555555", linewidth=1)
    rates.set_xlabel("step")
    rates.set_ylabel("learning rate")
    for axis in (losses, rates):
        axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, facecolor="white", format="png")
    except OSError as error:
        raise AuxMAEError(
            f"{path}: the figure cannot be written: {error.strerror or error}", hint="choose another place"
        ) from error
    return path
