"""`auxmae eval`: reconstruction error against the floors, and probes on frozen features, on held-out images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from auxmae.build import Data
    from auxmae.evaluation.probes import ProbeReport
    from auxmae.model.mae import AuxMAE
    from auxmae.settings.schema import EvalSettings

# Training images that the floors which need fitting are fitted on, at most.
_FLOOR_IMAGES = 1000


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
    from auxmae.cli.eval_tables import probe_table, reconstruction_table
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
    out.print(reconstruction_table(reconstruction))
    with out.status("Probing frozen features") as status:
        report = _probe(model, held, settings.eval, where, settings.train.seed, lambda what: status.update(f"Probing: {what}"))
    if report.reason:
        out.print(f"No probes. {report.reason}", **plain)
    else:
        out.print(probe_table(report))
        out.print(report.verdict(), **plain)
    for notice in report.notices:
        out.print(notice, style="yellow", **plain)

    document: dict[str, Any] = {
        "split": held.digest,
        "reconstruction": reconstruction.to_dict(),
        "probes": [result.to_dict() for result in report.results],
        "comparisons": [comparison.to_dict() for comparison in report.comparisons],
        "verdict": report.verdict(),
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
    }
    try:
        path = folder.write_json("eval.json", {**document, "details": details})
        out.print(f"Written to {path}", **plain)
    except OSError as error:
        # The figures are worth more than their copy: a run folder may be read-only.
        out.print(f"Not written to {folder.path / 'eval.json'}: {error.strerror}", style="yellow", **plain)
    if json_output:
        print_json(document)


def _probe(
    model: AuxMAE, data: Data, settings: EvalSettings, device: Any, seed: int, progress: Callable[[str], None]
) -> ProbeReport:
    """All probes on the encoder and on the floors, from the same samples."""
    from auxmae.evaluation.baselines import floor_extractors
    from auxmae.evaluation.features import encoder_extractor, extract_all
    from auxmae.evaluation.probes import ENCODER, RANDOM, ProbeReport, run_probes, untrained

    if not data.class_names:
        return ProbeReport([], "The data carry no labels.")
    assert data.test is not None
    dense = data.collection.layout == "scenes"
    patch_size = model.patch_size if dense else None
    initial = untrained(model, seed=seed).to(device)
    extractors = {
        ENCODER: encoder_extractor(model, pool=settings.pool, device=device, dense=dense),
        **floor_extractors(
            data.train.limited(_FLOOR_IMAGES),
            channels=len(data.collection.channel_names),
            patch_size=model.patch_size,
            components=model.num_features,
            dense=dense,
            seed=seed,
        ),
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
        progress=progress,
    )
