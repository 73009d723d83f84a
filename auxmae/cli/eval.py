"""`auxmae eval`: reconstruction error against the floors, and probes on frozen features, on held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from auxmae.build import Data
    from auxmae.evaluation.probes import ProbeReport
    from auxmae.evaluation.reconstruction import ReconstructionResult
    from auxmae.model.mae import AuxMAE
    from auxmae.settings.schema import EvalSettings

# Terminals show this many channels; eval.json holds all.
_SHOWN_CHANNELS = 24


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or 'last' for the newest one under runs/.")],
    data: Annotated[
        str | None, typer.Option("--data", help="Another data set, in place of the run's own held-out images.")
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Its labels: see data.labels.")] = None,
    checkpoint: Annotated[Literal["best", "last"], typer.Option("--checkpoint", help="Which checkpoint to measure.")] = "best",
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images per batch.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as eval.neighbours=20.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")] = False,
) -> None:
    """Measure a trained model on held-out images, beside the floors that it has to beat."""
    from auxmae.build import configure, open_run_data
    from auxmae.cli.console import console, print_json
    from auxmae.errors import DataError
    from auxmae.evaluation.reconstruction import evaluate_reconstruction
    from auxmae.settings import load_settings
    from auxmae.training.run import SETTINGS_NAME, open_run

    out = console(json_output=json_output)
    # Paths and names may hold brackets, which are no markup.
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    folder = open_run(run)
    overrides = set_ or []
    settings = load_settings(
        folder.path / SETTINGS_NAME, overrides=overrides, options={"run.device": device}, environ={}
    ).settings
    where = configure(settings)
    model = folder.load_model(checkpoint).to(where)
    held = open_run_data(folder, model, source=data, labels=labels, overrides=overrides, batch_size=batch_size)
    if held.test is None:
        raise DataError(f"{held.describe()}: the test part is empty", hint="raise data.test_fraction")
    out.print(f"{folder.path}, {checkpoint} checkpoint, on {where}: {held.describe()}", **plain)

    with out.status("Reconstructing held-out images") as status:
        reconstruction = evaluate_reconstruction(
            model,
            held.test.limited(settings.eval.max_images),
            seed=settings.eval.mask_seed,
            device=where,
            progress=lambda images: status.update(f"Reconstructing held-out images: {images}"),
        )
    out.print(_reconstruction_table(reconstruction))
    with out.status("Probing frozen features"):
        report = _probe(model, held, settings.eval, where, settings.train.seed)
    if report.reason:
        out.print(f"No probes. {report.reason}", **plain)
    else:
        out.print(_probe_table(report))
        out.print(report.verdict(), **plain)
    for notice in report.notices:
        out.print(notice, style="yellow", **plain)

    document: dict[str, Any] = {
        "split": held.digest,
        "reconstruction": reconstruction.to_dict(),
        "probes": [result.to_dict() for result in report.results],
    }
    details = {
        "checkpoint": checkpoint,
        "data": held.describe(),
        "images": reconstruction.images,
        "floors_per_channel": reconstruction.floors_per_channel,
        "probe_reason": report.reason,
        "probe_notices": report.notices,
        "probe_samples": {"train": report.train_samples, "test": report.test_samples},
        "majority": report.majority,
        "verdict": report.verdict(),
    }
    try:
        path = folder.write_json("eval.json", {**document, "details": details})
        out.print(f"Written to {path}", **plain)
    except OSError as error:
        # The figures are worth more than their copy: a run folder may be read-only.
        out.print(f"Not written to {folder.path / 'eval.json'}: {error.strerror}", style="yellow", **plain)
    if json_output:
        print_json(document)


def _probe(model: AuxMAE, data: Data, settings: EvalSettings, device: Any, seed: int) -> ProbeReport:
    """All probes on the encoder and on the floors, from the same samples."""
    from auxmae.evaluation.features import encoder_extractor, extract_all, statistics_extractor
    from auxmae.evaluation.probes import ENCODER, RANDOM, STATISTICS, ProbeReport, run_probes, untrained

    if not data.class_names:
        return ProbeReport([], "The data carry no labels.")
    assert data.test is not None
    dense = data.collection.layout == "scenes"
    patch_size = model.patch_size if dense else None
    initial = untrained(model, seed=seed).to(device)
    extractors = {
        ENCODER: encoder_extractor(model, pool=settings.pool, device=device, dense=dense),
        STATISTICS: statistics_extractor(patch_size),
        RANDOM: encoder_extractor(initial, pool=settings.pool, device=device, dense=dense),
    }
    train, test = (
        extract_all(extractors, part, patch_size=patch_size, limit=settings.max_samples, seed=seed)
        for part in (data.train, data.test)
    )
    return run_probes(
        train,
        test,
        labels_per_class=settings.labels_per_class,
        neighbours=settings.neighbours,
        bootstrap=settings.bootstrap,
        seed=seed,
        class_names=data.class_names,
    )


def _reconstruction_table(result: ReconstructionResult) -> Table:
    from rich.markup import escape
    from rich.table import Table

    floors = result.floors
    table = Table(title=f"Masked L1, scaled units, {result.images} held-out images", title_justify="left")
    table.add_column("channel")
    table.add_column("model", justify="right")
    for name in floors:
        table.add_column(f"floor: {name}", justify="right")
    table.add_column("model / better floor", justify="right")

    def row(label: str, error: float, beside: list[float], style: str = "") -> None:
        best = min(beside)
        ratio = f"{error / best:.2f}" if best > 0 else "–"
        table.add_row(escape(label), f"{error:.4f}", *(f"{value:.4f}" for value in beside), ratio, style=style)

    shown = list(result.per_channel)[:_SHOWN_CHANNELS]
    for name in shown:
        row(name, result.per_channel[name], [result.floors_per_channel[floor][name] for floor in floors])
    if len(shown) < len(result.per_channel):
        table.add_row(f"… {len(result.per_channel) - len(shown)} more", *[""] * (len(floors) + 2), style="dim")
    table.add_section()
    row("all", result.masked_l1, list(floors.values()), "bold")
    return table


def _probe_table(report: ProbeReport) -> Table:
    from rich import box
    from rich.table import Table

    title = f"Probes on frozen features: {report.train_samples} training, {report.test_samples} test samples"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("probe")
    table.add_column("labels")
    table.add_column("features", no_wrap=True)
    # Only heads and the probes' names wrap on a narrow terminal.
    for column in ("accuracy", "95% interval", "class mean"):
        table.add_column(column, justify="right", no_wrap=column != "class mean")
    before = None
    for result in report.results:
        case = (result.probe, result.labels_per_class)
        if before not in (None, case):
            table.add_section()
        labels = "all" if result.labels_per_class == 0 else str(result.labels_per_class)
        low, high = result.interval
        cells = (f"{result.accuracy:.3f}", f"{low:.3f} – {high:.3f}", f"{result.average_accuracy:.3f}")
        head = ("", "") if before == case else (result.probe, labels)
        table.add_row(*head, result.features, *cells)
        before = case
    table.caption = f"naming the commonest class every time: {report.majority:.3f}"
    return table
