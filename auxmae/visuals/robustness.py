"""Curves of what is left when images change: the encoder's beside the best floor's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from auxmae.visuals.figures import save_figure

if TYPE_CHECKING:
    from auxmae.evaluation.robustness import RobustnessResult

_ENCODER, _FLOOR = "#b5442e", "#7aa6c2"


def robustness_figure(results: Sequence[RobustnessResult], path: Path) -> Path:
    """One column for each kind of change: accuracy above, where there are labels, and reconstruction error below.

    Args:
        results: from `evaluate_robustness`, the unchanged images first.
        path: of the PNG.

    Returns:
        `path`.
    """
    from auxmae.evaluation.probes import ENCODER
    from auxmae.evaluation.robustness import COUNT, GAIN, LEFT_OUT, NOISE, SIZE, UNCHANGED

    usual = [result for result in results if result.kind == UNCHANGED]
    kinds = [kind for kind in (LEFT_OUT, COUNT, SIZE, NOISE, GAIN) if any(result.kind == kind for result in results)]
    labelled = any(result.accuracy for result in results)
    rows = ("accuracy", "masked L1") if labelled else ("masked L1",)
    figure = Figure(figsize=(2.9 * len(kinds), 2.6 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), len(kinds), squeeze=False, sharey="row")
    for column, kind in enumerate(kinds):
        found = sorted((result for result in results if result.kind == kind), key=lambda result: result.value)
        for row, what in enumerate(rows):
            axis = grid[row][column]
            x = [result.value for result in found]
            if what == "accuracy":
                ours = [result.accuracy.get(ENCODER, float("nan")) for result in found]
                floor = [result.accuracy.get(result.best_floor() or "", float("nan")) for result in found]
                before = [result.accuracy.get(ENCODER) for result in usual for _ in found]
            else:
                ours = [float("nan") if result.masked_l1 is None else result.masked_l1 for result in found]
                floor = [float("nan") if result.floor_l1 is None else result.floor_l1 for result in found]
                # Of the channels that are left, and on these alone the errors compare.
                before = [result.unchanged_l1 for result in found]
            axis.plot(x, floor, color=_FLOOR, marker="s", markersize=3, linewidth=1, label="best floor under the same change")
            axis.plot(x, ours, color=_ENCODER, marker="o", markersize=3, linewidth=1, label="encoder")
            if any(value is not None for value in before):
                y = [float("nan") if value is None else value for value in before]
                axis.plot(x, y, color=_ENCODER, marker="_", linewidth=0.8, linestyle=":", label="encoder, unchanged images")
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(what)
            if row == len(rows) - 1:
                names = {LEFT_OUT: "channel left out", COUNT: "channels present", SIZE: "image side, px"}
                axis.set_xlabel(names.get(kind, "noise, parts of σ" if kind == NOISE else "gain"))
            if kind == LEFT_OUT:
                labels = [result.label.removeprefix("without ") for result in found]
                axis.set_xticks(x, labels, rotation=90, fontsize=7 if len(labels) < 20 else 5)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return save_figure(figure, path)
