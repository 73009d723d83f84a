"""report.html: a run on one page, with its figures inside, so that the file alone can be sent to somebody."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jinja2


def write_report(run_folder: Path) -> Path:
    """Writes report.html from what the run folder holds; what is missing is left out."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("auxmae.visuals", "."), autoescape=True)
    result = run_folder / "result.json"
    settings = run_folder / "settings.toml"
    figures = [
        {"name": path.stem.replace("-", " "), "data": base64.b64encode(path.read_bytes()).decode()}
        for path in sorted((run_folder / "figures").glob("*.png"))
        if "epoch" not in path.stem
    ]
    page = environment.get_template("report.html.jinja").render(
        name=run_folder.name,
        result=json.loads(result.read_text(encoding="utf-8")) if result.exists() else None,
        settings=settings.read_text(encoding="utf-8") if settings.exists() else "",
        figures=figures,
    )
    path = run_folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
