"""`auxmae data`: a look at a data set before training on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from auxmae.data.collection import Collection
    from auxmae.data.splits import Part
    from auxmae.data.statistics import ChannelStatistics

app = typer.Typer(no_args_is_help=True, help="Look at a data set.")


@app.callback()
def main() -> None:
    """Look at a data set before training on it."""


@app.command("stats")
def stats(
    source: Annotated[str, typer.Argument(metavar="PATH", help="A file, a folder, a glob pattern, or 'synthetic'.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (default: ./auxmae.toml).")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Its labels: see data.labels.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as data.axes=HWC.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")] = False,
) -> None:
    """Per-channel statistics of windows of the training part, and what looks wrong with the data."""
    from rich.progress import Progress

    from auxmae.build import open_data, split_data
    from auxmae.cli.console import console, print_json, print_table
    from auxmae.data.dataset import ImageDataset
    from auxmae.data.splits import resolve_image_size
    from auxmae.data.statistics import compute_statistics, statistics_warnings
    from auxmae.settings import load_settings

    out = console(json_output=json_)
    options: dict[str, Any] = {"data.source": source}
    if labels is not None:
        options["data.labels"] = labels
    settings = load_settings(config, overrides=set_ or [], options=options).settings
    data, table, seed = settings.data, settings.scaling, settings.train.seed
    collection = open_data(data, seed=seed)
    wanted = settings.model.image_size
    size = resolve_image_size(collection, None if wanted == "auto" else wanted, settings.model.patch_size)
    splits = split_data(collection, data, image_size=size, seed=seed)
    sets = {part.name: ImageDataset(collection, part, image_size=size) for part in (splits.train, splits.validation, splits.test)}
    with Progress(console=out, transient=True) as bar:
        task = bar.add_task("Reading pixels")
        statistics = compute_statistics(
            ImageDataset(collection, splits.train, image_size=size, edges=True),
            transform=table.transform,
            cofactor=table.cofactor,
            low=table.low,
            high=table.high,
            samples=table.samples,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    share = _share(statistics, collection, splits.train)
    warnings = [*collection.warnings, *statistics_warnings(statistics, collection.dtype)]
    parts = {name: dataset.images for name, dataset in sets.items()}
    counts, unlabelled = collection.label_counts()
    if json_:
        print_json(
            {
                "data": collection.describe(),
                "layout": collection.layout,
                "image_size": size,
                "split": {"method": splits.method, "digest": splits.digest, **parts},
                "classes": list(collection.class_names),
                "labels": dict(zip(collection.class_names, counts.tolist(), strict=True)),
                "unlabelled": unlabelled,
                "notices": collection.notices,
                "warnings": warnings,
                "statistics": statistics.to_dict(),
                "share_of_pixels": share,
            }
        )
        return
    out.print(collection.describe(), style="bold", highlight=False, soft_wrap=True)
    counted = ", ".join(f"{count} {name}" for name, count in parts.items())
    out.print(f"crops of {size} px: {counted}; split: {splits.method}", highlight=False, soft_wrap=True)
    print_table(out, _table(statistics))
    if share < 0.995:
        part = "less than 1%" if share < 0.01 else f"{share:.0%}"
        out.print(
            f"computed, as the scaling is, from windows that hold {part} of the training part's pixels",
            highlight=False,
            soft_wrap=True,
        )
    if collection.class_names:
        classes = ", ".join(f"{name} ({count})" for name, count in zip(collection.class_names, counts.tolist(), strict=True))
        unit = "pixels" if collection.has_label_maps else "images"
        out.print(f"{unit} of each class: {classes}; without a label: {unlabelled}", highlight=False, soft_wrap=True)
    for notice in collection.notices:
        out.print(f"note: {notice}", highlight=False, soft_wrap=True)
    for warning in warnings:
        out.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    if not warnings:
        out.print("nothing looks wrong", style="green")


def _table(statistics: ChannelStatistics) -> Table:
    from rich import box
    from rich.table import Table

    s = statistics
    title = "Valid pixels in windows of the training part" + ("" if s.transform == "none" else f", after {s.transform}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("channel")
    columns = {
        "mean": s.mean,
        "std": s.std,
        "min": s.minimum,
        f"{s.low_percent:g}%": s.low,
        f"{s.high_percent:g}%": s.high,
        "max": s.maximum,
    }
    for name in (*columns, "valid"):
        table.add_column(name, justify="right", no_wrap=True)
    for c, name in enumerate(s.channel_names):
        table.add_row(name, *(f"{values[c]:.4g}" for values in columns.values()), _valid(s, c))
    return table


def _share(statistics: ChannelStatistics, collection: Collection, part: Part) -> float:
    """The share of the pixels of a part's whole images, or of its blocks, that statistics were computed from."""
    whole = sum(math.prod(collection.size_of(int(item))) for item in part.items) + int(part.blocks[:, 3:].prod(axis=1).sum())
    read = max(
        (count / valid for count, valid in zip(statistics.count, statistics.fraction_valid, strict=True) if valid), default=0
    )
    return min(read / whole, 1.0)


def _valid(s: ChannelStatistics, channel: int) -> str:
    """The share of valid pixels; where it would be rounded to all of them, how many are not."""
    share, count = s.fraction_valid[channel], s.count[channel]
    return f"all but {round(count / share) - count}" if 0.9995 <= share < 1 else f"{share:.1%}"
