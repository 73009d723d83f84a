"""The tables that `auxmae eval` prints, with `console.print_table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from auxmae.evaluation.finetuning import FinetuneReport
    from auxmae.evaluation.probes import ProbeReport
    from auxmae.evaluation.reconstruction import ReconstructionResult
    from auxmae.evaluation.reconstruction_sources import ReconstructionSources
    from auxmae.evaluation.robustness import RobustnessResult

# Terminals show this many channels; eval.json holds all.
_SHOWN_CHANNELS = 24


def reconstruction_table(result: ReconstructionResult, measured: str) -> Table:
    """Errors by channel, beside the floors; `measured`: how many of what."""
    floors = result.floors
    table = Table(title=f"Masked L1, scaled units, {measured}", title_justify="left")
    table.add_column("channel")
    for column in ("model", *("floor:\n" + name.replace(" in ", "\nin ") for name in floors), "model /\nbest floor"):
        table.add_column(column, justify="right", no_wrap=True)

    def row(label: str, error: float, beside: list[float], style: str = "") -> None:
        best = min(beside)
        ratio = f"{error / best:.2f}" if best > 0 else "–"
        table.add_row(label, f"{error:.4f}", *(f"{value:.4f}" for value in beside), ratio, style=style)

    shown = list(result.per_channel)[:_SHOWN_CHANNELS]
    for name in shown:
        row(name, result.per_channel[name], [result.floors_per_channel[floor][name] for floor in floors])
    if len(shown) < len(result.per_channel):
        table.add_row(f"… {len(result.per_channel) - len(shown)} more", *[""] * (len(floors) + 2), style="dim")
    table.add_section()
    row("all", result.masked_l1, list(floors.values()), "bold")
    return table


def ratio_table(results: Mapping[str, ReconstructionResult], measured: str) -> Table:
    """What is measured at several mask ratios, each beside the best floor's."""
    first = next(iter(results.values()))
    table = Table(title=f"By mask ratio, {measured}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    beside = "best\nfloor"
    for column in ("hidden", "masked\nL1", beside, "PSNR,\ndB", beside, "angle,\n°", beside, "SSIM", beside):
        table.add_column(column, justify="right", no_wrap=True)
    for ratio, result in results.items():
        cells = []
        for value, floors, best, digits in (
            (result.masked_l1, result.floors, min, 4),
            (result.psnr, result.floors_psnr, max, 2),
            (result.spectral_angle, result.floors_spectral_angle, min, 2),
            (result.ssim, result.floors_ssim, max, 3),
        ):
            # None: without error (PSNR), or undefined.
            known = [each for each in floors.values() if each is not None]
            cells += [_cell(value, digits), _cell(best(known) if len(known) == len(floors) else None, digits)]
        table.add_row(ratio, *cells)
    table.caption = (
        f"best floor: of {', '.join(first.floors)}, by each measure. All in scaled units, for a range of 1: not to be set beside "
        "published figures. Angle: between scaled spectra. SSIM: of the filled-in images, so what was visible counts."
    )
    table.caption_justify = "left"
    return table


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def sources_table(sources: ReconstructionSources, measured: str) -> Table:
    """What the same hidden patches are reconstructed from."""
    title = f"Where it comes from: the same patches by what is visible, {measured}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    # Broken so that 80 columns hold them.
    floors = ("\n".join(wrap(name.replace("polation", "- polation"), 8)) for name in sources.floors[next(iter(sources.floors))])
    table.add_column("visible")
    for column in ("masked\nL1", *floors, "recovered"):
        table.add_column(column, justify="right", no_wrap=True)
    for source, error in sources.masked_l1.items():
        cells = (f"{value:.4f}" for value in (error, *sources.floors[source].values()))
        table.add_row(source, *cells, f"{sources.recovered(source):.0%}")
    table.caption = (
        "recovered: part of the first row's error that is gone. A floor below the model: it cannot use this source alone."
    )
    table.caption_justify = "left"
    return table


def probe_table(report: ProbeReport) -> Table:
    """Every probe on every kind of features."""
    from auxmae.evaluation.probes import ENCODER

    title = f"Probes on frozen features: {report.train_samples} training, {report.test_samples} test samples"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for column in ("probe", "labels"):
        table.add_column(column, no_wrap=True)
    table.add_column("features")
    for column in ("accuracy", "95% interval", "class\nmean", "F1", "kappa"):
        table.add_column(column, justify="right", no_wrap=True)
    before = None
    for result in report.results:
        case = (result.probe, result.labels_per_class)
        if before not in (None, case):
            table.add_section()
        labels = "all" if result.labels_per_class == 0 else str(result.labels_per_class)
        low, high = result.interval
        cells = [f"{result.accuracy:.3f}", f"{low:.3f}–{high:.3f}"]
        cells += [f"{value:.3f}" for value in (result.average_accuracy, result.macro_f1, result.kappa)]
        head = ("", "") if before == case else (result.probe.removesuffix(" regression"), labels)
        table.add_row(*head, result.features, *cells, style="bold" if result.features == ENCODER else "")
        before = case
    table.caption = f"naming the commonest class every time: {report.majority:.3f}"
    return table


def robustness_table(results: Sequence[RobustnessResult]) -> Table:
    """What is left under changes of the images: the encoder's figure and the best floor's."""
    from auxmae.evaluation.probes import ENCODER
    from auxmae.evaluation.robustness import LEFT_OUT, MOST_LEFT_OUT

    title = "Changed images: logistic regression and model know unchanged ones only"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("change", no_wrap=True)
    for column in ("accu-\nracy", "best\nfloor"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for column in ("masked\nL1", "before", "best\nfloor"):
        table.add_column(column, justify="right", no_wrap=True)
    before = None
    for result in results:
        if before not in (None, result.kind):
            table.add_section()
        floor = result.best_floor()
        accuracy = "–" if ENCODER not in result.accuracy else f"{result.accuracy[ENCODER]:.3f}"
        best = "–" if floor is None else f"{result.accuracy[floor]:.3f}"
        errors = ["–" if v is None else f"{v:.4f}" for v in (result.masked_l1, result.unchanged_l1, result.floor_l1)]
        table.add_row(result.label, accuracy, best, floor or "", *errors)
        before = result.kind
    table.caption = "before: the error on the same channels when nothing is changed"
    if max((result.value for result in results if result.kind == LEFT_OUT), default=0) >= MOST_LEFT_OUT:
        table.caption += f"\nof the channels or groups {MOST_LEFT_OUT} at equal distances are left out, not each"
    if results:
        first = results[0]
        accuracy = f"accuracy of {first.samples} labelled test samples, " if first.samples else ""
        table.caption += f"\n{first.label}: {accuracy}error of {first.windows} images or windows"
    table.caption_justify = "left"
    return table


def finetune_table(report: FinetuneReport) -> Table:
    """The whole network trained on labels, from pre-trained and from random weights."""
    samples = f"{report.train_samples} training, {report.test_samples} test samples"
    title = f"The whole network trained on labels: {report.seeds} seed{'s' * (report.seeds > 1)}, {samples}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("labels", no_wrap=True)
    table.add_column("weights")
    for column in ("steps", "accuracy", "95% interval", "± seeds", "class\nmean", "F1", "kappa"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in report.results:
        low, high = result.interval
        spread = f"{result.spread:.3f}" if result.draws > 1 else ""
        cells = [f"{report.steps[result.labels_per_class]}", f"{result.accuracy:.3f}", f"{low:.3f}–{high:.3f}", spread]
        cells += [f"{value:.3f}" for value in (result.average_accuracy, result.macro_f1, result.kappa)]
        table.add_row(str(result.labels_per_class or "all"), result.features, *cells)
    return table
