"""The pictures of a benchmark, drawn from its JSON document alone: speed-ups, roofline, scaling curves; and one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from auxmae.benchmark.ratios import base_of, ratio
from auxmae.benchmark.scaling import AXES, break_even, curves
from auxmae.benchmark.suites import JOINT, OURS, PLAIN
from auxmae.errors import AuxMAEError
from auxmae.writing import replacing

Row = dict[str, Any]

_LABELS = {"channels": "channels", "positions": "positions of the patch grid", "width": "width"}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>AuxMAE benchmark</title>
<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}
table{border-collapse:collapse;font-size:14px}td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd}
td:nth-child(-n+4),th:nth-child(-n+4){text-align:left}.bad{color:#b00}</style>
<h1>AuxMAE benchmark</h1>
<p>{{ device }}; {{ versions }}{% if commit %}; commit {{ commit }}{% if dirty %} with changes{% endif %}{% endif %}
{%- if not complete %}; <strong class="bad">stopped before its end</strong>{% endif %}</p>
{% for figure in figures %}<h2>{{ figure.title }}</h2><img alt="{{ figure.title }}" src="data:image/png;base64,{{ figure.data }}">
{% endfor %}<h2>All measurements</h2>
<table><tr><th>suite<th>case<th>provider<th>pass<th>median ms<th>fastest<th>slowest<th>MiB</tr>
{% for row in rows %}<tr><td>{{ row.suite }}<td>{{ row.case }}<td>{{ row.provider }}<td>{{ row.pass }}
{%- if row.median_ms is none %}<td colspan="4" class="bad">{{ row.status }}: {{ row.reason }}
{%- else %}<td>{{ "%.4g" % row.median_ms }}<td>{{ "%.4g" % row.samples_ms|min }}<td>{{ "%.4g" % row.samples_ms|max }}
<td>{{ "–" if row.peak_bytes is none else "%.0f" % (row.peak_bytes / 1048576) }}{% endif %}</tr>
{% endfor %}</table></html>
"""


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Draws what the document has figures for.

    Args:
        document: of `auxmae benchmark --output`.
        folder: for speedup.png, roofline.png, scaling.png and benchmark.html.

    Returns:
        The files written.

    Raises:
        AuxMAEError: one cannot be written.
    """
    makers: dict[str, tuple[str, Callable[[dict[str, Any]], Figure | None]]] = {
        "speedup": ("Speed-up, with its spread", speedup_figure),
        "roofline": ("Roofline", roofline_figure),
        "scaling": ("Cost as the task grows", scaling_figure),
    }
    written, shown = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (title, make) in makers.items():
            figure = make(document)
            if figure is not None:
                path = folder / f"{name}.png"
                FigureCanvasAgg(figure)
                with replacing(path) as draft:
                    figure.savefig(draft, dpi=120, format="png")
                written.append(path)
                shown.append({"title": title, "data": base64.b64encode(path.read_bytes()).decode()})
        page = folder / "benchmark.html"
        with replacing(page) as draft:
            draft.write_text(_page(document, shown), encoding="utf-8")
    except OSError as error:
        raise AuxMAEError(f"{folder}: the figures cannot be written: {error.strerror or error}") from error
    return [*written, page]


def _page(document: dict[str, Any], figures: list[dict[str, str]]) -> str:
    device, versions = document.get("device") or {}, document.get("versions") or {}
    return jinja2.Environment(autoescape=True).from_string(_PAGE).render(
        device=device.get("name") or device.get("type"),
        versions=", ".join(f"{name} {version}" for name, version in versions.items() if version),
        commit=document.get("commit"),
        dirty=document.get("dirty"),
        complete=document.get("complete", True),
        figures=figures,
        rows=document["rows"],
    )  # fmt: skip


def _measured(document: dict[str, Any], suite: str) -> list[Row]:
    return [row for row in document["rows"] if row["suite"] == suite and row["median_ms"] is not None]


def speedups(document: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """(what, speed-up, lowest, highest) of ours over the plain design, and of each kernel over the eager reference.

    They are those of `ratios`, the other way round.
    """
    found = []
    for suite, pass_ in (("model", "step"), ("kernels", "both")):
        rows = [row for row in _measured(document, suite) if row["pass"] == pass_]
        for row in rows:
            base = base_of(rows, row)
            if base is None or row is base or row["provider"].startswith("sdpa"):
                continue
            # Where dispatch takes PyTorch, the bar says what the dispatch itself costs.
            same_code = suite == "kernels" and row["provider"] == OURS and row["backend"] == "torch"
            time = ratio(row, base)
            name = f"{row['case']}: {row['provider']}{' (PyTorch)' if same_code else ''}"
            found.append((name, 1 / time.value, 1 / time.high, 1 / time.low))
    return found


def speedup_figure(document: dict[str, Any]) -> Figure | None:
    """Bars of `speedups`; None where there are none."""
    bars = speedups(document)
    if not bars:
        return None
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars))
    values = [value for _, value, _, _ in bars]
    below = [max(0.0, value - low) for _, value, low, _ in bars]
    above = [max(0.0, high - value) for _, value, _, high in bars]
    colours = ["tab:blue" if f": {OURS}" in label else "tab:gray" for label, _, _, _ in bars]
    axes.barh(places, values, xerr=[below, above], color=colours, error_kw={"lw": 1, "capsize": 2})
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(places, [label for label, _, _, _ in bars], fontsize=8)
    axes.invert_yaxis()
    meaning = f"models: training step over the {PLAIN}; kernels: both passes over the eager reference"
    axes.set_xlabel(f"times as fast\n({meaning})", fontsize=8)
    return figure


def roofline_figure(document: dict[str, Any]) -> Figure | None:
    """FLOP/s over FLOPs a byte of each kernel, beneath the ceilings; None where nothing has both."""
    limits = document.get("ceilings")
    rows = [row for row in _measured(document, "kernels") if row.get("flops") and row.get("bytes") and row["pass"] == "forward"]
    if not rows or not limits:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    intensities = [row["flops"] / row["bytes"] for row in rows]
    peak, bandwidth = limits["matmul_flops_per_second"], limits["copy_bytes_per_second"]
    ridge = peak / bandwidth
    ends = min(0.5 * min(intensities), 0.5 * ridge), max(2 * max(intensities), 2 * ridge)
    axes.plot([ends[0], ridge, ends[1]], [ends[0] * bandwidth, peak, peak], color="black", lw=1, label="ceilings of this run")
    for provider in dict.fromkeys(row["provider"] for row in rows):
        own = [row for row in rows if row["provider"] == provider]
        points = [row["flops"] / row["bytes"] for row in own], [row["flops_per_second"] for row in own]
        axes.scatter(*points, s=18, label=provider, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte that must be moved", ylabel="FLOP/s (forward pass)")
    axes.legend(fontsize=8)
    return figure


def scaling_figure(document: dict[str, Any]) -> Figure | None:
    """A training step's time over channels, positions and width, the break-even marked; None where nothing was measured."""
    rows = [row for row in document["rows"] if row["suite"] == "scaling"]
    axes_drawn = [axis for axis in AXES if curves(rows, axis)]
    if not axes_drawn:
        return None
    figure = Figure(figsize=(4.2 * len(axes_drawn), 3.8), layout="constrained")
    panels = figure.subplots(1, len(axes_drawn), squeeze=False)[0]
    for panel, axis in zip(panels, axes_drawn, strict=True):
        for provider, points in curves(rows, axis).items():
            label = "factorised" if provider == OURS else "joint" if provider == JOINT else provider
            panel.plot(*zip(*points, strict=True), marker="o", ms=4, label=label)
        crossing = break_even(rows, axis)
        if crossing is not None:
            panel.axvline(crossing, color="black", ls=":", lw=1)
            panel.annotate(f"break-even {crossing:.0f}", (crossing, 0.02), xycoords=("data", "axes fraction"), fontsize=8)
        panel.set(xscale="log", yscale="log", xlabel=_LABELS[axis], ylabel="training step, ms")
        sizes = sorted({size for points in curves(rows, axis).values() for size, _ in points})
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.xaxis.set_minor_formatter(NullFormatter())
        for ticks in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            ticks(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.legend(fontsize=8)
    return figure
