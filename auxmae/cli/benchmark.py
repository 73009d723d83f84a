"""`auxmae benchmark`: our training step and forward pass beside a plain implementation of the published design."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from auxmae.cli.console import console, print_json
from auxmae.errors import AuxMAEError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

# Columns that the table needs; a terminal that is wider gets no wider a table.
_TABLE_WIDTH = 80
_PASSES = {"forward": "a forward pass", "step": "a training step"}


def command(
    quick: Annotated[bool, typer.Option("--quick", help="A small case that takes seconds.")] = False,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images a step.")] = None,
    channels: Annotated[int, typer.Option("--channels", min=1, help="Channels of the images.")] = 13,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds; the providers take turns in each.")] = 5,
    compile_: Annotated[bool, typer.Option("--compile", help="Measure our compiled model too.")] = False,
    recompute: Annotated[bool, typer.Option("--recompute", help="Measure recomputed activations too.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSON document to this file too.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")] = False,
) -> None:
    """Measure images/s and peak memory against a plain implementation of the published design."""
    if output is not None:
        _check_writable(output)

    from dataclasses import replace

    from auxmae_kernels import KernelUnavailableError, dispatch

    from auxmae.benchmark.suites import QUICK, REFERENCE, environment, model_suite
    from auxmae.build import select_device

    target = select_device(device)
    try:
        dispatch.backend()
    except ValueError as error:
        raise UsageError(str(error)) from error
    case = QUICK if quick else REFERENCE
    default = 128 if target.type == "cuda" and not quick else case.batch
    case = replace(case, batch=batch_size or default, channels=channels)
    progress = console(json_output=True)
    try:
        rows = model_suite(
            case,
            device=target,
            repeats=repeats,
            compile_too=compile_,
            recompute_too=recompute,
            progress=lambda text: progress.print(text, highlight=False),
        )
    except KernelUnavailableError as error:
        raise AuxMAEError(str(error)) from error
    document = {**environment(target), "rows": rows}
    if output is not None:
        try:
            output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise AuxMAEError(f"{output}: cannot be written: {error.strerror}") from error
    if json_output:
        print_json(document)
        return
    title = f"{case.name}: {case.channels} channels, {case.image_size} px, batch {case.batch}, on {target}"
    out = console()
    # On a narrower terminal the lines run on instead of losing figures.
    out.print(_table(rows, title), width=_TABLE_WIDTH, crop=False, highlight=False)
    for sentence in _sentences(rows):
        out.print(sentence, highlight=False, markup=False)


def _check_writable(path: Path) -> None:
    """Raises AuxMAEError where the file could not be written; leaves what is there as it is."""
    try:
        existed = path.exists()
        with path.open("a", encoding="utf-8"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise AuxMAEError(
            f"{path}: cannot be written: {error.strerror}", hint="give --output a file in a folder where you may write"
        ) from error


def _ratios(rows: list[dict[str, Any]], row: dict[str, Any]) -> tuple[float, float]:
    """(time, memory) of a row over those of the plain design in the same pass."""
    from auxmae.benchmark.suites import PLAIN

    plain = next(other for other in rows if other["provider"] == PLAIN and other["pass"] == row["pass"])
    return row["median_ms"] / plain["median_ms"], row["peak_bytes"] / plain["peak_bytes"]


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    for name in ("pass", "provider", "ms", "spread", "images/s", "MiB", "time ×", "memory ×"):
        table.add_column(name, justify="left" if name in ("pass", "provider") else "right", no_wrap=True)
    for index, row in enumerate(rows):
        samples = row["samples_ms"]
        table.add_row(
            row["pass"],
            row["provider"],
            _figure(row["median_ms"]),
            f"{_figure(min(samples))}–{_figure(max(samples))}",
            _figure(row["images_per_second"]),
            f"{row['peak_bytes'] / 2**20:.0f}",
            *(Text(f"{ratio:.2f}", _colour(ratio)) for ratio in _ratios(rows, row)),
            end_section=index + 1 < len(rows) and rows[index + 1]["pass"] != row["pass"],
        )
    return table


def _figure(value: float) -> str:
    """At least three significant digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _compared(ratio: float, below: str, above: str) -> str:
    # As it is shown: a difference that the figure hides is none.
    shown = round(ratio, 2)
    return below if shown < 1 else above if shown > 1 else "the same"


def _colour(ratio: float) -> str:
    return _compared(ratio, "green", "red").replace("the same", "")


def _sentences(rows: list[dict[str, Any]]) -> list[str]:
    """The result in words: one sentence for each of our providers, losses said like wins."""
    from auxmae.benchmark.suites import OURS

    sentences = []
    for provider in dict.fromkeys(row["provider"] for row in rows if row["provider"].startswith(OURS)):
        parts = []
        for row in sorted((row for row in rows if row["provider"] == provider), key=lambda row: row["pass"] != "step"):
            time, memory = _ratios(rows, row)
            parts.append(
                f"{_PASSES[row['pass']]} takes {time:.2f} × the time ({_compared(time, 'faster', 'slower')}) "
                f"and {memory:.2f} × the memory ({_compared(memory, 'less', 'more')})"
            )
        parts[0] += " of the plain published design"
        sentences.append(f"{provider}: {'; '.join(parts)}.")
    return sentences
