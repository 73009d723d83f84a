"""`auxmae eval`: reconstruction error against the floors, and probes on frozen features, on held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from auxmae.build import Data
    from auxmae.evaluation.features import Extractor, Features
    from auxmae.model.mae import AuxMAE
    from auxmae.settings.schema import EvalSettings, SettingsTree
    from auxmae.training.run import RunFolder

# Training images that the floors which need fitting are fitted on, at most.
_FLOOR_IMAGES = 1000
# Held-out images that are reconstructed at each of eval.mask_ratios, at most.
_RATIO_IMAGES = 200
# Held-out images that are reconstructed from one source at a time, at most.
_LEAKAGE_IMAGES = 100


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
    dense: Annotated[
        bool,
        typer.Option("--dense", help="Scenes with a label raster: probe pixels, one half against the other, and draw maps."),
    ] = False,
    robustness: Annotated[
        bool,
        typer.Option("--robustness", help="Also with channels left out, other sizes, noise and another gain; takes minutes."),
    ] = False,
    finetune: Annotated[
        bool,
        typer.Option("--finetune", help="Also train the whole network on labels, pre-trained and from scratch; takes minutes."),
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Do without channels of the model that the data lack.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")] = False,
) -> None:
    """Measure a trained model on held-out images, beside the floors that it has to beat."""
    from auxmae.build import configure, open_run_data
    from auxmae.cli import eval_finetune, eval_robustness
    from auxmae.cli.console import console, print_json
    from auxmae.cli.eval_tables import leakage_table, probe_table, ratio_table, reconstruction_table
    from auxmae.errors import AuxMAEError, DataError
    from auxmae.evaluation.leakage import evaluate_leakage
    from auxmae.evaluation.probes import ProbeReport, run_probes
    from auxmae.evaluation.reconstruction import evaluate_reconstruction
    from auxmae.settings import load_settings
    from auxmae.training.run import SETTINGS_NAME, open_run
    from auxmae.visuals.report import write_report

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
    held = open_run_data(
        folder, model, source=data, labels=labels, overrides=overrides, batch_size=batch_size, allow_missing=allow_missing
    )
    if held.test is None:
        raise DataError(f"{held.describe()}: the test part is empty", hint="raise data.test_fraction")
    out.print(f"{folder.path}, {checkpoint} checkpoint, on {where}: {held.describe()}", **plain)
    if held.missing:
        absent = f"Left out on purpose, as the data lack them: {', '.join(held.missing)}. "
        out.print(
            f"{absent}The figures are those of the other {len(held.collection.channel_names)} channels.", style="yellow", **plain
        )

    with out.status("Reconstructing held-out images") as status:
        reconstruction = evaluate_reconstruction(
            model,
            held.test.limited(settings.eval.max_images),
            seed=settings.eval.mask_seed,
            device=where,
            progress=lambda images: status.update(f"Reconstructing held-out images: {images}"),
        )
        ratios = {}
        for ratio in settings.eval.mask_ratios:
            status.update(f"Reconstructing with {ratio:.0%} hidden")
            some = held.test.limited(min(settings.eval.max_images or _RATIO_IMAGES, _RATIO_IMAGES))
            ratios[f"{ratio:g}"] = evaluate_reconstruction(model, some, seed=settings.eval.mask_seed, device=where, ratio=ratio)
        status.update("Reconstructing from one source at a time")
        some = held.test.limited(min(settings.eval.max_images or _LEAKAGE_IMAGES, _LEAKAGE_IMAGES))
        leakage = evaluate_leakage(model, some, seed=settings.eval.mask_seed, device=where)
    out.print(reconstruction_table(reconstruction))
    if ratios:
        out.print(ratio_table(ratios))
    if leakage is not None:
        out.print(leakage_table(leakage))
    extractors: dict[str, Extractor] = {}
    train: dict[str, Features] = {}
    report = ProbeReport([], "The data carry no labels.")
    if held.class_names:
        with out.status("Probing frozen features") as status:
            extractors = _extractors(model, held, settings.eval, where, settings.train.seed)
            patch_size = model.patch_size if held.collection.layout == "scenes" else None
            train, test = _labelled_features(extractors, held, settings.eval, patch_size, settings.train.seed)
            report = run_probes(
                train,
                test,
                labels_per_class=settings.eval.labels_per_class,
                neighbours=settings.eval.neighbours,
                bootstrap=settings.eval.bootstrap,
                seed=settings.train.seed,
                class_names=held.class_names,
                progress=lambda what: status.update(f"Probing: {what}"),
            )
    if report.reason:
        out.print(f"No probes. {report.reason}", **plain)
    else:
        out.print(probe_table(report))
        out.print(report.verdict(), **plain)
    for notice in report.notices:
        out.print(notice, style="yellow", **plain)

    document: dict[str, Any] = {
        "split": held.digest,
        "reconstruction": {
            **reconstruction.to_dict(),
            "ratios": {ratio: result.to_dict() for ratio, result in ratios.items()},
            "leakage": None if leakage is None else leakage.to_dict(),
        },
        "probes": [result.to_dict() for result in report.results],
        "comparisons": [comparison.to_dict() for comparison in report.comparisons],
        "verdict": report.verdict(),
    }
    if held.missing:
        document["missing_channels"] = list(held.missing)
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
    if finetune:
        document["finetuning"] = eval_finetune.measure(model, held, settings, where, out)
    if robustness:
        document["robustness"] = eval_robustness.measure(model, held, settings, extractors, train, where, folder, out)
    if dense:
        document["dense"] = _dense(model, held, settings, where, folder, out)
    elif held.collection.has_label_maps:
        out.print("Pixel by pixel, one half of each scene against the other, with maps: --dense", **plain)
    try:
        path = folder.write_json("eval.json", {**document, "details": details})
        out.print(f"Written to {path}", **plain)
        if (folder.path / "report.html").is_file():
            # It shows the figures of eval.json and the pictures that have been added.
            write_report(folder.path)
    except AuxMAEError as error:
        out.print(f"The report was not written anew: {error.message}", style="yellow", **plain)
    except OSError as error:
        # The figures are worth more than their copy: a run folder may be read-only.
        out.print(f"Not written to {folder.path / 'eval.json'}: {error.strerror}", style="yellow", **plain)
    if json_output:
        print_json(document)


def _dense(model: AuxMAE, data: Data, settings: SettingsTree, device: Any, folder: RunFolder, out: Console) -> dict[str, object]:
    """Every scene that has a label raster, pixel by pixel; the maps go into the run folder."""
    import torch

    from auxmae.cli.eval_tables import probe_table
    from auxmae.errors import DataError
    from auxmae.evaluation.scenes import AT_RANDOM, LEAKAGE, evaluate_scene
    from auxmae.visuals.maps import map_figure, write_map

    collection, table = data.collection, settings.eval
    if not collection.has_label_maps:
        raise DataError(f"{data.describe()}: --dense needs a label for each pixel", hint="name a label raster with --labels")
    scaling = data.scaling.select(collection.channel_names)
    found: dict[str, object] = {}
    for item in range(len(collection)):
        labels = collection.read_labels(item)
        if labels is None:
            continue
        file, index = collection.file_of(item), int(collection.items[item, 1])
        name = file.path.stem + (f"-{index}" if file.count > 1 else "")
        pixels = collection.read(item)
        valid = torch.from_numpy(pixels.valid)
        image = scaling.apply(torch.from_numpy(pixels.pixels)[None])[0].masked_fill(~valid, 0.0)
        with out.status(f"Probing the pixels of {name}") as status:
            result = evaluate_scene(
                model,
                image,
                valid,
                labels,
                pool=table.pool,
                stride=table.stride,
                max_samples=table.max_samples,
                labels_per_class=table.labels_per_class,
                neighbours=table.neighbours,
                bootstrap=table.bootstrap,
                seed=settings.train.seed,
                device=device,
                class_names=data.class_names,
                channels=data.train.channels,
                progress=lambda what, name=name: status.update(f"{name}: {what}"),  # type: ignore[misc]
            )
        for split, report in result.reports.items():
            out.print(f"{name}, {split}", style="bold", markup=False, highlight=False)
            out.print(probe_table(report) if report.results else report.reason)
            for notice in report.notices:
                out.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
            if report.results and split != AT_RANDOM:
                out.print(report.verdict(), markup=False, highlight=False, soft_wrap=True)
            elif report.results:
                out.print(LEAKAGE, style="yellow", markup=False, highlight=False, soft_wrap=True)
        raster = write_map(result.prediction, data.class_names, file.georeference, folder.path / "maps" / f"{name}.tif")
        figure = map_figure(result.prediction, labels, data.class_names, folder.figures / f"map-{name}.png", title=name)
        out.print(f"Maps: {raster}, {figure}", markup=False, highlight=False, soft_wrap=True)
        found[name] = {**result.to_dict(), "map": str(raster), "figure": str(figure)}
    return found


def _extractors(model: AuxMAE, data: Data, settings: EvalSettings, device: Any, seed: int) -> dict[str, Extractor]:
    """The encoder's features and the floors'."""
    from auxmae.evaluation.baselines import floor_extractors
    from auxmae.evaluation.features import encoder_extractor
    from auxmae.evaluation.probes import ENCODER, RANDOM, untrained

    dense = data.collection.layout == "scenes"
    initial = untrained(model, seed=seed).to(device)
    return {
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


def _labelled_features(
    extractors: dict[str, Extractor], data: Data, settings: EvalSettings, patch_size: int | None, seed: int
) -> list[dict[str, Features]]:
    """Every extractor's features of the training part's labelled samples, and of the test part's."""
    from auxmae.evaluation.features import extract_all

    assert data.test is not None
    return [
        extract_all(extractors, part, patch_size=patch_size, limit=settings.max_samples, seed=seed)
        for part in (data.train, data.test)
    ]
