"""report.html: a run on one page, with its figures inside, so that the file alone can be sent to somebody."""

from __future__ import annotations

import base64
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from auxmae.visuals.report_accuracy import accuracy_tables, table_in
from auxmae.writing import write_text

# In this order, then whatever else there is.
_FIRST = ("reconstruction", "curves", "visualize")
# What `auxmae eval` draws into the folder, of whichever data; set aside with its eval.json, under a name with a date.
_OF_EVAL = re.compile(r"robustness(-[\d-]+)?\.png$|map-")
_FLOORS = {
    "linear in all channels": "linear in all channels, fitted on training images (auxmae eval)",
    "interpolation": "interpolating the visible patches",
    "mean": "mean of each channel's visible pixels",
}
# Those that are shown for each channel.
_CHANNEL_FLOORS = ("linear in all channels", "interpolation")


def write_report(run_folder: Path, *, trained_on: bool = False) -> Path:
    """Writes report.html from what the run folder holds; what is missing or unreadable is left out.

    Args:
        run_folder: of the run.
        trained_on: whether eval.json is of weights that the run no longer has; that is said on the page.

    Raises:
        AuxMAEError: the page cannot be written.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _figure
    source = resources.files("auxmae.visuals").joinpath("report.html.jinja").read_text(encoding="utf-8")
    result, evaluation = _read(run_folder / "result.json"), _read(run_folder / "eval.json")
    details = table_in(evaluation, "details")
    channel_floors = table_in(details, "floors_per_channel")
    # Figures of other images, or of other parts of them, stand in tables of their own.
    own = details.get("own_images") is True
    if own:
        # Training measures beside the floors that need no fitting; `auxmae eval` has one more on the same images.
        result["floors"] = {**table_in(table_in(evaluation, "reconstruction"), "floors"), **table_in(result, "floors")}
    sections = [{"title": "Held-out images", "channel_title": "By channel", **_errors(result, channel_floors if own else {})}]
    other = "" if own else _words(details.get("source"))
    if other:
        title = f"auxmae eval on {other}, {_words(details.get('checkpoint'))} checkpoint"
        errors = _errors(table_in(evaluation, "reconstruction"), channel_floors)
        sections.append({"title": title, "channel_title": f"By channel, {other}", **errors})
    settings = run_folder / "settings.toml"
    page = environment.from_string(source).render(
        name=run_folder.resolve().name,
        result=result,
        sections=sections,
        trained_on=trained_on,
        accuracy=f"Accuracy, auxmae eval{f' on {other}' if other else ''}, {_words(details.get('checkpoint'))} checkpoint",
        accuracies=accuracy_tables(evaluation) if own or other else [],
        settings=settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else "",
        figures=_figures(run_folder / "figures", _drawn(evaluation), other),
    )
    return write_text(run_folder / "report.html", page)


def _errors(content: dict[str, Any], channel_floors: dict[str, Any]) -> dict[str, Any]:
    """What a table of errors needs, from "masked_l1", "floors" and "per_channel"."""
    measured = _number(content.get("masked_l1"))
    floors = [
        (text, value) for name, text in _FLOORS.items() if (value := _number(table_in(content, "floors").get(name))) is not None
    ]
    best = min((value for _, value in floors), default=None)
    return {
        "measured": measured,
        "floors": floors,
        "ratio": measured / best if measured is not None and best else None,
        "channels": table_in(content, "per_channel"),
        "channel_floors": {name: table for name in _CHANNEL_FLOORS if (table := table_in(channel_floors, name))},
    }


def _drawn(evaluation: dict[str, Any]) -> set[str]:
    """File names of the pictures that belong to eval.json."""
    parts = [
        table_in(evaluation, "robustness"),
        *(part for part in table_in(evaluation, "dense").values() if isinstance(part, dict)),
    ]
    return {Path(figure).name for part in parts if isinstance(figure := part.get("figure"), str)}


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _number(value: object) -> float | None:
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None  # type: ignore[arg-type]


def _words(value: object) -> str:
    return value if isinstance(value, str) else ""


def _figure(value: object, digits: int = 4) -> str:
    """A number for people; a dash where there is none."""
    number = _number(value)
    return "–" if number is None else f"{number:.{digits}f}"


def _figures(folder: Path, drawn: set[str], other: str) -> list[dict[str, str]]:
    """The run's figures, the final ones only: one for every few epochs would make the page very large.

    Of those that `auxmae eval` draws, only the `drawn` ones are of its last data; where these are not the run's own, `other`
    names them.
    """
    paths = [path for path in sorted(folder.glob("*.png")) if "-epoch-" not in path.stem]
    paths = [path for path in paths if path.name in drawn or not _OF_EVAL.match(path.name)]
    paths.sort(key=lambda path: _FIRST.index(path.stem) if path.stem in _FIRST else len(_FIRST))
    return [
        {
            "name": path.stem.replace("-", " ") + (f", {other}" if other and path.name in drawn else ""),
            "data": base64.b64encode(path.read_bytes()).decode(),
        }
        for path in paths
    ]
