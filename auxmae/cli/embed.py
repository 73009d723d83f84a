"""`auxmae embed`: the features of a data set, written to a file."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from auxmae.places import expanded


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or 'last' for the newest one under runs/.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=expanded, metavar="PATH", help="feats.npy (rows listed in feats.csv), .parquet or .zarr."
        ),
    ],
    data: Annotated[str | None, typer.Option("--data", "-d", help="Other images than the run's.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Their labels: see data.labels.")] = None,
    part: Annotated[
        Literal["all", "train", "validation", "test"], typer.Option("--part", help="Which part of the split; default: all.")
    ] = "all",
    pool: Annotated[
        Literal["mean", "concat", "attention", "cls", "moments", "moments+embedding"] | None,
        typer.Option("--pool", help="How channels become one vector; default: the run's eval.pool."),
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="One row for each patch, instead of one for each image.")] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Go on without channels that the data lack.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an interrupted call has left.")] = False,
    checkpoint: Annotated[Literal["best", "last"], typer.Option("--checkpoint", help="Which checkpoint.")] = "best",
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Windows per forward pass.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting that is not of the trained model: table.key=value; repeatable."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")] = False,
) -> None:
    """Write the features of images (or of every patch: --dense) to a file; an interrupted call goes on where it stopped."""
    from auxmae.build import split_data
    from auxmae.cli.console import console, print_json
    from auxmae.device import configure
    from auxmae.errors import DataError
    from auxmae.export.embed import embed
    from auxmae.export.formats import check_apart, check_format
    from auxmae.run_data import describe_reading, open_run_collection, otherwise_held_out, settings_on_data
    from auxmae.training.run import open_run

    out = console(json_output=json_output, work="the writing")
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True}
    check_format(output, overwrite=overwrite)
    folder, overrides = open_run(run), set_ or []
    settings = settings_on_data(folder, source=data, labels=labels, overrides=overrides, batch_size=batch_size, device=device)
    chosen_pool = pool or settings.eval.pool
    where = configure(settings)
    taken = folder.available(checkpoint)
    model = folder.load_model(taken).to(where)
    settings, collection, missing = open_run_collection(folder, model, settings, overrides=overrides, allow_missing=allow_missing)
    check_apart(output, collection, labels=settings.data.labels, exclude=settings.data.exclude)
    for notice in collection.notices:
        out.print(f"note: {notice}", **plain)
    out.print(f"{folder.path}, {taken} checkpoint, on {where}: {collection.describe()}", **plain)
    if missing:
        out.print(f"note: left out (missing, or sharing a token with one that is): {', '.join(missing)}", style="yellow", **plain)

    splits = None
    if part != "all":
        splits = split_data(collection, settings.data, image_size=model.image_size, seed=settings.train.seed)
        changed = otherwise_held_out(folder, settings.data, collection, splits, part=part)
        if changed is not None:
            out.print(changed, style="yellow", **plain)

    state = {"rows": 0, "total": 0}
    with out.status("Embedding") as status:

        def told(rows: int, total: int) -> None:
            state.update(rows=rows, total=total)
            status.update(f"Embedding: {rows} of {total} rows")

        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            result = embed(
                model,
                collection,
                output,
                pool=chosen_pool,
                dense=dense,
                part=None if splits is None else getattr(splits, part),
                about={"part": part, **describe_reading(settings.data)},
                batch_size=settings.train.batch_size,
                device=where,
                overwrite=overwrite,
                restart=restart,
                progress=told,
            )
        except KeyboardInterrupt:
            status.stop()
            # With it, the same command would throw away what it has just left.
            again = f"the same command{' without --restart' if restart else ''} goes on from there"
            done = f"{state['rows']} of {state['total']} rows are kept; {again}" if state["total"] else "nothing was begun"
            out.print(f"interrupted: {done}", **plain)
            raise typer.Exit(130) from None
        finally:
            signal.signal(signal.SIGTERM, previous)
    resumed = f" ({result.resumed} of them from an interrupted call)" if result.resumed else ""
    out.print(f"{result.rows} rows{resumed} of {result.width} features: {result.output}", **plain)
    if json_output:
        print_json(
            {
                "run": str(folder.path),
                "output": str(result.output),
                "rows": result.rows,
                "features": result.width,
                "resumed": result.resumed,
                "not_finite": result.not_finite,
                "pool": chosen_pool,
                "dense": dense,
                "part": part,
                "channels": list(collection.channel_names),
                "missing": list(missing),
            }
        )
    if result.not_finite:
        raise DataError(
            f"{result.output}: {result.not_finite} of {result.rows} rows are not finite; the first: {result.first_not_finite}",
            hint="look for values far out with `auxmae data stats`; where all rows are, the model has diverged",
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
