"""`auxmae benchmark`: our training step and forward pass beside a plain implementation of the published design."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from auxmae.cli.console import console, print_json
from auxmae.errors import AuxMAEError

if TYPE_CHECKING:
    from rich.table import Table


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
    from dataclasses import replace

    from auxmae.benchmark.suites import QUICK, REFERENCE, environment, model_suite
    from auxmae.build import select_device

    target = select_device(device)
    case = QUICK if quick else REFERENCE
    default = 128 if target.type == "cuda" and not quick else case.batch
    case = replace(case, batch=batch_size or default, channels=channels)
    progress = console(json_output=True)
    rows = model_suite(
        case,
        device=target,
        repeats=repeats,
        compile_too=compile_,
        recompute_too=recompute,
        progress=lambda text: progress.print(text, highlight=False),
    )
    document = {**environment(target), "rows": rows}
    if output is not None:
        try:
            output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise AuxMAEError(f"{output}: cannot be written: {error.strerror}") from error
    if json_output:
        print_json(document)
    else:
        console().print(
            _table(rows, f"{case.name}: {case.channels} channels, {case.image_size} px, batch {case.batch}, on {target}")
        )


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    from rich.table import Table

    from auxmae.benchmark.suites import PLAIN

    table = Table(title=title, caption="ratios to the plain published design: below 1 is faster, or less memory")
    for name in ("pass", "provider", "ms", "spread", "images/s", "MiB", "time ×", "memory ×"):
        table.add_column(name, justify="left" if name in ("pass", "provider") else "right")
    for row in rows:
        plain = next(other for other in rows if other["provider"] == PLAIN and other["pass"] == row["pass"])
        samples = row["samples_ms"]
        table.add_row(
            row["pass"],
            row["provider"],
            f"{row['median_ms']:.1f}",
            f"{min(samples):.0f}–{max(samples):.0f}",
            f"{row['images_per_second']:.1f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            f"{row['median_ms'] / plain['median_ms']:.2f}",
            f"{row['peak_bytes'] / plain['peak_bytes']:.2f}",
        )
    return table
