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

# Columns that the table may need.
_TABLE_WIDTH = 80
_PASSES = {"forward": "forward pass", "step": "training step"}


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
    wide = console()
    # In a narrower terminal the lines run on instead of losing figures.
    wide.width = max(wide.width, _TABLE_WIDTH)
    wide.print(_table(rows, title), highlight=False)
    out = console()
    out.print()
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


def _plain(rows: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """The plain design's row of the same pass."""
    from auxmae.benchmark.suites import PLAIN

    return next(other for other in rows if other["provider"] == PLAIN and other["pass"] == row["pass"])


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    for name in ("provider", "ms", "spread", "images/s", "MiB", "time ×", "memory ×"):
        table.add_column(name, justify="left" if name == "provider" else "right", no_wrap=True)
    colours = {"faster": "green", "less": "green", "slower": "red", "more": "red"}
    for name in dict.fromkeys(row["pass"] for row in rows):
        table.add_section()
        table.add_row(Text(_PASSES[name], "bold"))
        for row in rows:
            if row["pass"] != name:
                continue
            samples, plain = row["samples_ms"], _plain(rows, row)
            table.add_row(
                f"  {row['provider']}",
                _figure(row["median_ms"]),
                f"{_figure(min(samples))}–{_figure(max(samples))}",
                _figure(row["images_per_second"]),
                f"{row['peak_bytes'] / 2**20:.0f}",
                Text(f"{row['median_ms'] / plain['median_ms']:.2f}", colours.get(_speed(row, plain), "")),
                Text(f"{row['peak_bytes'] / plain['peak_bytes']:.2f}", colours.get(_memory(row, plain), "")),
            )
    return table


def _figure(value: float) -> str:
    """At least three significant digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _speed(row: dict[str, Any], plain: dict[str, Any]) -> str:
    """ "faster" or "slower" only where neither median lies among the other's samples, and there are several."""
    if round(row["median_ms"] / plain["median_ms"], 2) == 1:
        return "the same"
    if len(row["samples_ms"]) == 1:
        return "a single sample"
    for one, other in ((row, plain), (plain, row)):
        if min(one["samples_ms"]) <= other["median_ms"] <= max(one["samples_ms"]):
            return "within the spread"
    return "faster" if row["median_ms"] < plain["median_ms"] else "slower"


def _memory(row: dict[str, Any], plain: dict[str, Any]) -> str:
    # As it is shown: a difference that two decimals hide is none.
    ratio = round(row["peak_bytes"] / plain["peak_bytes"], 2)
    return "less" if ratio < 1 else "more" if ratio > 1 else "the same"


def _sentences(rows: list[dict[str, Any]]) -> list[str]:
    """The result in words: one sentence for each of our providers, losses said like wins."""
    from auxmae.benchmark.suites import OURS

    sentences = []
    for provider in dict.fromkeys(row["provider"] for row in rows if row["provider"].startswith(OURS)):
        own = [row for row in rows if row["provider"] == provider]
        parts = []
        for row in sorted(own, key=lambda row: row["pass"] != "step"):
            plain = _plain(rows, row)
            parts.append(
                f"a {_PASSES[row['pass']]} takes {row['median_ms'] / plain['median_ms']:.2f} × the time ({_speed(row, plain)}) "
                f"and {row['peak_bytes'] / plain['peak_bytes']:.2f} × the memory ({_memory(row, plain)})"
            )
        parts[0] += " of the plain published design"
        sentences.append(f"{provider}: {'; '.join(parts)}.")
    return sentences
