"""report.html: a run on one page, with its figures inside, so that the file alone can be sent to somebody."""

from __future__ import annotations

import base64
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from auxmae.errors import AuxMAEError

# In this order, then whatever else there is.
_FIRST = ("reconstruction", "curves", "visualize")
_FLOORS = {"interpolation": "interpolating the visible patches", "mean": "mean of each channel's visible pixels"}


def write_report(run_folder: Path) -> Path:
    """Writes report.html from what the run folder holds; what is missing or unreadable is left out.

    Raises:
        AuxMAEError: the page cannot be written.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _figure
    source = resources.files("auxmae.visuals").joinpath("report.html.jinja").read_text(encoding="utf-8")
    result, evaluation = _read(run_folder / "result.json"), _read(run_folder / "eval.json")
    measured = _number(result.get("masked_l1"))
    floors = {name: value for name, text in _FLOORS.items() if (value := _number(_table(result, "floors").get(name))) is not None}
    best = min(floors.values(), default=None)
    channel_floors = _table(_table(evaluation, "details"), "floors_per_channel")
    settings = run_folder / "settings.toml"
    page = environment.from_string(source).render(
        name=run_folder.resolve().name,
        result=result,
        measured=measured,
        floors=[(_FLOORS[name], value) for name, value in floors.items()],
        ratio=measured / best if measured is not None and best else None,
        channels=_table(result, "per_channel"),
        channel_floor=_table(channel_floors, "interpolation"),
        settings=settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else "",
        figures=_figures(run_folder / "figures"),
    )
    path = run_folder / "report.html"
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise AuxMAEError(f"{path}: the report cannot be written: {error.strerror or error}") from error
    return path


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _table(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None  # type: ignore[arg-type]


def _figure(value: object, digits: int = 4) -> str:
    """A number for people; a dash where there is none."""
    number = _number(value)
    return "–" if number is None else f"{number:.{digits}f}"


def _figures(folder: Path) -> list[dict[str, str]]:
    """The run's figures, the final ones only: one for every few epochs would make the page very large."""
    paths = [path for path in sorted(folder.glob("*.png")) if "-epoch-" not in path.stem]
    paths.sort(key=lambda path: _FIRST.index(path.stem) if path.stem in _FIRST else len(_FIRST))
    return [{"name": path.stem.replace("-", " "), "data": base64.b64encode(path.read_bytes()).decode()} for path in paths]
