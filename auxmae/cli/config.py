"""`auxmae config`: what is set, whether it is right, what can be set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Show, check and describe the settings.")

Config = Annotated[Path | None, typer.Option("--config", "-c", metavar="PATH", help="Settings file (default: ./auxmae.toml).")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Set one value; repeatable.")]


@app.command("show")
def show(
    config: Config = None,
    overrides: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print the effective settings and where each comes from."""
    from auxmae.cli.console import console, print_json, print_table
    from auxmae.settings import load_settings
    from auxmae.settings.wording import show as written

    loaded = load_settings(config, overrides=overrides or ())
    values = loaded.settings.model_dump()
    if as_json:
        file = None if loaded.file is None else str(loaded.file)
        print_json(_finite({"file": file, "settings": values, "origins": loaded.origins}))
        return

    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "from", title=f"Settings ({loaded.file or 'no settings file'})", title_justify="left")
    section = "data"
    for setting, origin in loaded.origins.items():
        name, key = setting.split(".")
        if name != section:
            section = name
            table.add_section()
        value = written(values[name][key], longest=10_000)
        table.add_row(setting, value, Text(origin, style="dim" if origin == "default" else "bold"))
    print_table(console(), table)


@app.command("validate")
def validate(
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="Settings file (default: ./auxmae.toml).")] = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Check a settings file, then the environment over it; every fault is told, one a line."""
    from auxmae.errors import UsageError
    from auxmae.settings import FILE_NAME, InvalidSettingsError, load_settings

    if path is not None and config is not None and path != config:
        raise UsageError(f"two files to validate: {path} and {config}", hint="give one of them")
    file = path or config
    faults: list[str] = []
    # The file by itself first: a variable that is set just now must not hide what is wrong in it.
    empty: dict[str, str] = {}
    for environ in (empty, None):
        try:
            loaded = load_settings(file, overrides=overrides or (), environ=environ)
        except InvalidSettingsError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        for fault in faults:
            typer.echo(f"error: {fault}", err=True)
        raise typer.Exit(InvalidSettingsError.exit_code)
    if loaded.file is None:
        typer.echo(f"no {FILE_NAME} here: preset and defaults are valid (`auxmae init` writes a file)")
    else:
        typer.echo(f"{file or FILE_NAME}: valid")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of the settings, for editors and other tools."""
    from auxmae.cli.console import print_json
    from auxmae.settings import SettingsTree

    described = SettingsTree.model_json_schema()
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **described, "title": "auxmae.toml"})


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
