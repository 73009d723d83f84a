"""`auxmae visualize`: pictures of what a trained model reconstructs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from auxmae.cli.console import console, print_json


def command(
    run: Annotated[str, typer.Argument(help="Run folder, or 'last'.")],
    data: Annotated[str | None, typer.Option("--data", "-d", help="Other images than the run's.")] = None,
    channels: Annotated[str | None, typer.Option("--channels", help="Channels to show one by one: B04,B08.")] = None,
    images: Annotated[int, typer.Option("--images", min=1, max=32, help="How many images.")] = 4,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="PNG to write; else in the run's figures.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the masks.")] = 0,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best or last.")] = "best",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any setting: table.key=value; repeatable.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Draw original | masked | reconstruction | reconstruction + visible."""
    import torch

    from auxmae.build import open_run_data, select_device
    from auxmae.errors import DataError
    from auxmae.training.run import open_run
    from auxmae.visuals.figures import reconstruction_figure

    folder = open_run(run)
    model = folder.load_model(checkpoint)
    target = select_device(device)
    model.to(target)
    opened = open_run_data(folder, model, source=data, labels="none", overrides=set_ or [], batch_size=images)
    # The run's own images: the ones held out.  Other images were never trained on, so any will do.
    part = opened.train if data is not None else opened.test or opened.validation or opened.train
    batch = next(iter(part), None)
    if batch is None:
        raise DataError(f"{opened.collection.source}: no image to show")
    reconstruction = model.reconstruct(
        batch.image.to(target), valid=batch.valid.to(target), generator=torch.Generator().manual_seed(seed)
    )
    path = reconstruction_figure(
        batch.image,
        reconstruction,
        batch.valid,
        channel_names=model.channel_names,
        wavelengths=model.wavelengths,
        path=output or folder.figures / "visualize.png",
        channels=[name.strip() for name in channels.split(",")] if channels else None,
        rows=images,
    )
    if json_output:
        print_json({"run": str(folder.path), "figures": [str(path)], "images": min(images, len(batch.image))})
    else:
        console().print(f"picture: {path}", highlight=False, soft_wrap=True)
