"""`auxmae visualize`: pictures of what a trained model reconstructs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from auxmae.places import expanded


def command(
    run: Annotated[str, typer.Argument(help="Run folder, or 'last'.")],
    data: Annotated[str | None, typer.Option("--data", "-d", help="Other images than the run's.")] = None,
    channels: Annotated[str | None, typer.Option("--channels", help="Channels to show one by one: B04,B08.")] = None,
    images: Annotated[int, typer.Option("--images", min=1, max=32, help="How many images.")] = 4,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=expanded, metavar="PATH", help="PNG to write; else in the run's figures."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that --output names.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the masks.")] = 0,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Go on without channels that the data lack.")] = False,
    checkpoint: Annotated[Literal["best", "last"], typer.Option("--checkpoint", help="Which checkpoint.")] = "best",
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting that is not of the trained model: table.key=value; repeatable."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Draw original | masked | reconstruction | reconstruction + visible."""
    import torch

    from auxmae.cli.console import console, print_json
    from auxmae.device import configure
    from auxmae.errors import DataError, SettingsError, UsageError
    from auxmae.run_data import is_own_source, open_run_data, otherwise_held_out, settings_on_data
    from auxmae.settings import override_names
    from auxmae.training.run import open_run
    from auxmae.visuals.composite import choose_composite
    from auxmae.visuals.figures import batch_to_show, check_channels, reconstruction_figure

    if output is not None and output.suffix.lower() != ".png":
        raise UsageError(f"{output}: the figure is a PNG", hint="give --output a name that ends in .png")
    if output is not None and output.exists() and not overwrite:
        raise UsageError(f"{output} exists", hint="choose another --output, or add --overwrite")
    folder, overrides = open_run(run), set_ or []
    given = override_names(overrides)
    if "train.batch_size" in given:
        raise UsageError("--set train.batch_size: the picture is of one batch", hint="say with --images how many it has")
    settings = settings_on_data(folder, source=data, overrides=overrides, batch_size=images, device=device)
    own = is_own_source(folder, settings.data.source)
    if not own and "data.labels" not in given:
        # The run's own labels had a part in which images are held out; those of other data do not matter.
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"labels": "none"})})
    target = configure(settings)
    model = folder.load_model(checkpoint).to(target)
    shown = [name.strip() for name in channels.split(",") if name.strip()] if channels else []
    check_channels(shown, model.channel_names)
    opened = open_run_data(folder, model, settings, overrides=overrides, allow_missing=allow_missing)
    out = console(json_output=json_output)
    for notice in opened.collection.notices:
        out.print(f"note: {notice}", highlight=False, soft_wrap=True)
    changed = otherwise_held_out(folder, settings.data, opened.collection, opened.splits)
    if changed is not None:
        out.print(changed, style="yellow", highlight=False, soft_wrap=True)
    names = opened.collection.channel_names
    check_channels(shown, names)
    wavelengths = model.wavelengths and [model.wavelengths[model.channel_names.index(name)] for name in names]
    # The run's own images: the ones held out.  Other images were never trained on, so any will do.
    part = opened.test or opened.validation or opened.train if own else opened.train
    batch = batch_to_show(part, images)
    if batch is None:
        raise DataError(f"{opened.collection.source}: no image to show")
    try:
        reconstruction = model.reconstruct(
            batch.image.to(target),
            valid=batch.valid.to(target),
            channels=batch.channels,
            generator=torch.Generator().manual_seed(seed),
        )
    except SettingsError as error:
        # Its hint is to mask otherwise, as a trained model cannot.
        raise DataError(
            f"{opened.collection.source}: the run's masks hide whole channels (or groups that share a token), and one alone is "
            f"here: {', '.join(names)}",
            hint=f"give images with more of the model's channels: {', '.join(model.channel_names)}",
        ) from error
    path = reconstruction_figure(
        batch.image,
        reconstruction,
        batch.valid,
        channel_names=names,
        wavelengths=wavelengths,
        path=output or folder.figures / "visualize.png",
        channels=shown,
        rows=images,
        title="" if own else f"images of {opened.collection.source}",
    )
    composite = choose_composite(names, wavelengths, batch.image.numpy(), batch.valid.numpy())
    if json_output:
        print_json(
            {
                "run": str(folder.path),
                "figures": [str(path)],
                "images": len(batch.image),
                "composite": composite.description,
                "missing": list(opened.missing),
            }
        )
    else:
        text = f"picture: {path}\ncolours: {composite.description}"
        text += (
            f"\nleft out (missing, or sharing a token with one that is): {', '.join(opened.missing)}" if opened.missing else ""
        )
        out.print(text, highlight=False, soft_wrap=True)
