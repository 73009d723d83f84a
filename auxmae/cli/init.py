"""`auxmae init`: a settings file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from auxmae.places import expanded


def command(
    preset: Annotated[
        str, typer.Option("--preset", metavar="NAME", help="tiny, scene, reference, small, base or large.")
    ] = "tiny",
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=expanded, metavar="PATH", help="The file to write, or the folder to write auxmae.toml to."
        ),
    ] = Path("auxmae.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a settings file in which every setting is explained."""
    from auxmae.errors import UsageError
    from auxmae.settings import FILE_NAME, starter_text
    from auxmae.writing import write_text

    text = starter_text(preset)
    path = output / FILE_NAME if output.is_dir() else output
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already", hint="--force replaces it, --output PATH writes another file")
    write_text(path, text)
    typer.echo(f"{path}: written, with preset {preset}; `auxmae config show` prints what is in effect")
