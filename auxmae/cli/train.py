"""`auxmae train`: pre-train a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from auxmae.cli.console import console, print_json, print_table, settings_line
from auxmae.cli.processes import is_one_of_several, is_silent, run_together
from auxmae.errors import UsageError
from auxmae.places import quoted
from auxmae.settings import load_settings

if TYPE_CHECKING:
    from auxmae.settings.schema import SettingsTree
    from auxmae.training.result import TrainingResult

# Between two lines about statistics.
STATISTICS_SECONDS = 3.0


def command(
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="File, folder, glob pattern or 'synthetic' (data.source).")
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Label raster or table, PATH:KEY, 'none' (data.labels).")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Run folder (run.folder).")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="tiny, scene, reference, small, base, large (model.preset).")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the images (train.epochs).")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Optimiser steps (train.max_steps).")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images a batch (train.batch_size).")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Peak rate (train.learning_rate).")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything (train.seed).")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps (run.device).")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings file; else ./auxmae.toml, if there.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any setting: table.key=value; repeatable.")] = None,
    resume: Annotated[str | None, typer.Option("--resume", help="Go on with a run folder, or 'last'.")] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Processes that train together here, one a GPU; see also torchrun.")
    ] = None,
    init_from: Annotated[
        str | None, typer.Option("--init-from", help="Start from the weights of a run, 'last', or a model.")
    ] = None,
    fast_dev_run: Annotated[
        bool, typer.Option("--fast-dev-run", help="Three steps (five with a CUDA graph), to see that everything works.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check settings and data, build the model, train nothing.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings (on stderr) and the result.")] = False,
) -> None:
    """Pre-train a masked autoencoder on multi-channel images."""
    given = {
        "data.source": (data, "--data"),
        "data.labels": (labels, "--labels"),
        "run.folder": (output, "--output"),
        "model.preset": (preset, "--preset"),
        "train.epochs": (epochs, "--epochs"),
        "train.max_steps": (max_steps, "--max-steps"),
        "train.batch_size": (batch_size, "--batch-size"),
        "train.learning_rate": (learning_rate, "--learning-rate"),
        "train.seed": (seed, "--seed"),
        "run.device": (device, "--device"),
    }
    options = {key: value for key, (value, _) in given.items() if value is not None}
    overrides: list[str] = []
    if resume is not None:
        # The run says which of its settings may be others now.
        overrides = [f"run.device={device}"] if device is not None else []
        overrides += set_ or []
        options.pop("run.device", None)
    others = {"--config": config, "--fast-dev-run": fast_dev_run}
    named = [given[key][1] for key in options] + [name for name, value in others.items() if value]
    if resume is not None and named:
        from auxmae.training.run import way_to_change

        raise UsageError(
            f"--resume goes on exactly as before, so {named[0]} cannot be given with it",
            hint=way_to_change(next(iter(options), "")),
        )
    out = console(json_output=json_output, quiet=is_silent())
    several = processes is not None and processes > 1 and not is_one_of_several()
    if processes is not None and is_one_of_several() and str(processes) != os.environ["WORLD_SIZE"]:
        raise UsageError(f"--processes {processes}, and {os.environ['WORLD_SIZE']} were started already", hint="leave it out")
    settings = None
    if resume is None:
        loaded = load_settings(config, overrides=set_ or [], options=options)
        settings = loaded.settings
        if not quiet and not several:
            out.print(settings_line(loaded.file), highlight=False, soft_wrap=True)
    if dry_run:
        if settings is None:
            raise UsageError("--dry-run checks a new run, and --resume goes on with an old one")
        _dry_run(settings, out, json_output, processes or 1, init_from)
        return
    if several:
        assert processes is not None
        folder = resume if settings is None else settings.run.folder
        name = "last" if folder is None or folder == "auto" else folder
        raise typer.Exit(run_together(processes, sys.argv[1:], run=name, is_new=resume is None))
    result = _train(settings, out, resume, overrides, init_from, fast_dev_run, quiet)
    if json_output:
        if not is_silent():
            print_json(result.to_dict())
    else:
        from auxmae.data.opening import SYNTHETIC

        embedded = settings is not None and settings.data.source == SYNTHETIC
        _print_result(result, out, embedded)
    if result.outcome.reason == "interrupted":
        out.print(
            f"stopped at step {result.outcome.step} and saved"
            + ("" if fast_dev_run else f"; go on with: auxmae train --resume {quoted(result.run)}"),
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130)


def _train(
    settings: SettingsTree | None,
    out: Console,
    resume: str | None,
    overrides: list[str],
    init_from: str | None,
    fast: bool,
    quiet: bool,
) -> TrainingResult:
    from auxmae.settings.schema import SettingsTree
    from auxmae.training.progress import EnduringReporter, QuietReporter, SilentReporter, make_reporter
    from auxmae.training.session import train

    reporter = make_reporter(out) if not quiet else SilentReporter() if is_silent() else EnduringReporter(QuietReporter())
    return train(
        settings or SettingsTree(),
        resume=resume,
        overrides=overrides,
        init_from=init_from,
        fast_dev_run=fast,
        reporter=reporter,
        progress=None if quiet else statistics_progress(reporter.message),
    )


def statistics_progress(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Says a line every few seconds while statistics are computed; nothing where they take no time."""
    import time

    last = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > STATISTICS_SECONDS:
            last = time.monotonic()
            say(f"statistics: {done} of {total}")

    return told


def _dry_run(settings: SettingsTree, out: Console, json_output: bool, processes: int, init_from: str | None) -> None:
    """Everything up to the first step: settings, run folder, data, one batch, the model, its memory."""
    import torch

    from auxmae.device import configure, overruled
    from auxmae.model.folders import find_model
    from auxmae.training.checks import check_probe, check_settings, check_shares, check_space
    from auxmae.training.distributed import Team
    from auxmae.training.optimization import make_optimizers, state_bytes
    from auxmae.training.run import check_unused
    from auxmae.training.session import new_data, new_model

    weights = None if init_from is None else find_model(init_from)
    check_unused(settings.run.folder)
    Team(size=processes).share(settings.train.batch_size)
    device = configure(settings, processes - 1 if processes > 1 else None)
    check_settings(settings, device, processes)
    data = new_data(settings, weights, statistics_progress(partial(out.print, highlight=False)))
    check_probe(settings, data)
    check_shares(data, processes)
    model = new_model(settings, data, weights)
    check_space(Path(settings.run.folder), model, settings.train.optimizer, validated=data.validation is not None)
    batch = next(iter(data.train))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    train = settings.train
    optimizers = make_optimizers(
        model,
        train.optimizer,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        betas=train.betas,
        device=torch.device("cpu"),
    )
    state = state_bytes(model, optimizers) / 2**20
    for notice in [*data.collection.notices, *overruled(settings)]:
        out.print(f"note: {notice}", highlight=False, soft_wrap=True)
    for warning in data.warnings():
        out.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    document = {
        "data": data.describe(),
        "parts": {
            name: 0 if part is None else part.dataset.images
            for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test))
        },
        "batch": list(batch.image.shape),
        "parameters": parameters,
        "state_mib": round(state, 1),
        "device": str(device),
    }
    if json_output:
        print_json(document)
        return
    out.print(f"data: {document['data']}", highlight=False, soft_wrap=True)
    parts = ", ".join(f"{count} {name}" for name, count in document["parts"].items())  # type: ignore[attr-defined]
    out.print(f"parts: {parts}; split: {data.splits.method}", highlight=False, soft_wrap=True)
    out.print(f"batch: {' × '.join(map(str, batch.image.shape))}", highlight=False)
    out.print(
        f"model: {parameters:,} parameters; weights, gradients and optimiser take {state:.0f} MiB, on {device}",
        highlight=False,
    )
    out.print("nothing was trained or written (--dry-run)")


def _print_result(result: TrainingResult, out: Console, embedded: bool) -> None:
    if result.floors:
        table = Table(title="Held-out images: mean absolute error on hidden pixels (scaled units)")
        table.add_column("predictor")
        table.add_column("masked L1", justify="right", no_wrap=True)
        table.add_column("of the best floor", justify="right", no_wrap=True)
        best = min(result.floors.values())
        rows = [
            ("AuxMAE", result.masked_l1),
            ("floor: interpolating the visible patches", result.floors["interpolation"]),
            ("floor: mean of each channel's visible pixels", result.floors["mean"]),
        ]
        for name, value in rows:
            table.add_row(name, f"{value:.4f}", f"{value / best:.2f}" if best > 0 else "–")
        print_table(out, table)
        if best == 0:
            out.print("A floor makes no error: hidden pixels are as the visible ones, so these images have nothing to learn.")
        elif result.masked_l1 >= best:
            out.print(
                "The model does not beat the better floor yet: train longer, or look at `auxmae data stats`.",
                soft_wrap=True,
            )
    if result.outcome.reason == "interrupted":
        return
    if result.figure is not None:
        out.print(f"picture: {result.figure}", highlight=False, soft_wrap=True)
    out.print(f"run: {result.run}", highlight=False, soft_wrap=True)
    out.print("next:")
    own, run = ("auxmae train --data YOUR/IMAGES",) if embedded else (), quoted(result.run)
    for line in (f"auxmae eval {run}", f"auxmae visualize {run}", *own):
        out.print(f"  {line}", highlight=False, soft_wrap=True)
