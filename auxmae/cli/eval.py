"""`auxmae eval`: reconstruction error against the floors, and probes on frozen features, on held-out images."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from auxmae.build import Data


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or 'last' for the newest one under runs/.")],
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Another data set, in place of the run's own held-out images.")
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Its labels: see data.labels.")] = None,
    checkpoint: Annotated[Literal["best", "last"], typer.Option("--checkpoint", help="Which checkpoint to measure.")] = "best",
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images per batch.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting that is not of the trained model, such as eval.neighbours=20."
        ),
    ] = None,
    dense: Annotated[
        bool,
        typer.Option("--dense", help="Probe pixels of label rasters: halves of a scene, scenes against scenes; draw maps."),
    ] = False,
    test_labels: Annotated[
        str | None,
        typer.Option("--test-labels", help="With --dense: labels of the pixels to test on; those of --labels are trained on."),
    ] = None,
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
    from auxmae.cli import eval_dense, eval_finetune, eval_probes, eval_reconstruction, eval_robustness
    from auxmae.cli.console import console, print_json
    from auxmae.cli.eval_files import are_own_images, take_earlier, with_earlier_sections
    from auxmae.data.digests import digest_files, digest_labels, digest_weights
    from auxmae.device import configure
    from auxmae.errors import AuxMAEError, DataError, SettingsError
    from auxmae.places import absolute_place
    from auxmae.run_data import (
        check_named,
        describe_reading,
        is_own_source,
        open_run_data,
        otherwise_held_out,
        settings_on_data,
    )
    from auxmae.training.run import open_run
    from auxmae.visuals.report import write_report

    out = console(json_output=json_output, work="the measurement")
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True}
    folder = open_run(run)
    overrides = set_ or []
    settings = settings_on_data(folder, source=data, labels=labels, overrides=overrides, batch_size=batch_size, device=device)
    check_named("--test-labels", test_labels)
    if test_labels is not None and not dense:
        raise SettingsError("--test-labels names pixels, which --dense measures", hint="add --dense")
    where = configure(settings)
    taken = folder.available(checkpoint)
    model = folder.load_model(taken).to(where)
    if settings.eval.pool == "cls" and model.cls_token is None:
        raise SettingsError("eval.pool = 'cls' needs a model with CLS tokens", hint="choose another pooling, such as 'mean'")
    held = open_run_data(folder, model, settings, overrides=overrides, allow_missing=allow_missing)
    if dense and not held.collection.has_label_maps:
        raise DataError(f"{held.describe()}: --dense needs a label for each pixel", hint="name a label raster with --labels")
    if dense and test_labels is None:
        eval_dense.check_measurable(held.collection)
    if held.test is None:
        raise DataError(f"{held.describe()}: the test part is empty", hint=_how_to_test(held, settings.data.test_fraction))
    for notice in held.collection.notices:
        out.print(f"note: {notice}", **plain)
    out.print(f"{folder.path}, {taken} checkpoint, on {where}: {held.describe()}", **plain)
    if held.missing:
        absent = f"Left out on purpose (missing, or sharing a token with one that is): {', '.join(held.missing)}. "
        out.print(
            f"{absent}The figures are those of the other {len(held.collection.channel_names)} channels.", style="yellow", **plain
        )

    # Of what is read from here on.
    digests = {"files": digest_files(held.collection), "labels": digest_labels(held.collection)}
    testing = None
    if test_labels is not None:
        labelled = eval_dense.open_test_labels(settings, test_labels)
        for notice in labelled.notices:
            if notice not in held.collection.notices:
                out.print(f"note: --test-labels: {notice}", **plain)
        digests["test_labels"] = eval_dense.digest_test_labels(labelled)
        testing = eval_dense.TestLabels(held.collection, labelled, test_labels)
    reading = describe_reading(settings.data)
    own_source = is_own_source(folder, settings.data.source)
    changed = otherwise_held_out(folder, settings.data, held.collection, held.splits)
    if changed is not None:
        out.print(changed, style="yellow", **plain)

    reconstruction, reconstructed, linear = eval_reconstruction.measure(model, held, settings, where, out)
    report, extractors, train = eval_probes.measure(model, held, settings, where, out)
    document: dict[str, Any] = {
        "split": held.digest,
        "reconstruction": reconstructed,
        "probes": [result.to_dict() for result in report.results],
        "comparisons": [comparison.to_dict() for comparison in report.comparisons],
        "verdict": report.verdict(),
    }
    if held.missing:
        document["missing_channels"] = list(held.missing)
    details = {
        "run": str(folder.path.absolute()),
        "checkpoint": taken,
        "model": digest_weights(model.state_dict()),
        "source": reading["data.source"],
        "labels": reading["data.labels"],
        "own_images": are_own_images(folder.settings, settings) and changed is None,
        "held_out_as_in_training": changed is None if changed is not None or (own_source and folder.knows_data) else None,
        "settings": reading,
        "digests": digests,
        "eval": settings.eval.model_dump(mode="json"),
        **({"test_labels": absolute_place(test_labels, "labels")} if test_labels is not None else {}),
        "channels": list(held.collection.channel_names),
        "data": held.describe(),
        "images": held.test.limited(settings.eval.max_images).count_images(),
        "windows": reconstruction.windows,
        "floors_per_channel": reconstruction.floors_per_channel,
        "probe_reason": report.reason,
        "probe_notices": report.notices,
        "probe_samples": {"train": report.train_samples, "test": report.test_samples},
        "majority": report.majority,
    }
    find_digest = partial(eval_dense.find_digest, settings)
    take_earlier(folder, {**document, "details": details}, out, dense=dense, digest_test_labels=find_digest)
    unwritten: list[Path] = []
    scenes: dict[str, object] = {}

    def write() -> dict[str, Any]:
        whole = {**document, "details": details}
        # Another call may have measured something meanwhile.
        earlier = take_earlier(folder, whole, out, dense="dense" in whole, digest_test_labels=find_digest)
        whole = with_earlier_sections(whole, earlier, out)
        try:
            path = folder.write_json("eval.json", whole)
            out.print(f"Written to {path}", **plain)
            if (folder.path / "report.html").is_file():
                # It shows the figures of eval.json and the pictures that have been added.
                write_report(folder.path)
        except AuxMAEError as error:
            out.print(f"The report was not written anew: {error.message}", style="yellow", **plain)
        except OSError as error:
            # The figures are worth more than their copy: a run folder may be read-only, which is no fault.
            out.print(f"Not written to {folder.path / 'eval.json'}: {error.strerror}", style="yellow", **plain)
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                unwritten.append(folder.path / "eval.json")
        return whole

    try:
        if finetune:
            document["finetuning"] = eval_finetune.measure(model, held, settings, where, out)
        if robustness:
            document["robustness"] = eval_robustness.measure(
                model, held, settings, extractors, train, linear, where, folder, out, unwritten
            )
        if dense:
            eval_dense.measure(model, held, settings, where, folder, out, unwritten, testing, scenes)
            document["dense"] = scenes
            across = None if testing is not None else eval_dense.measure_across(model, held, settings, where, out)
            if across is not None:
                document["across_scenes"] = across
        elif held.collection.has_label_maps:
            ways = "one half of each scene against the other, with maps, and " if held.collection.layout == "scenes" else ""
            out.print(f"Pixel by pixel, {ways}across images: --dense", **plain)
    except BaseException:
        # What was measured until then took minutes, or hours.
        if scenes:
            document["dense"] = scenes
        write()
        raise
    document = write()
    if json_output:
        print_json(document)
    if unwritten:
        # What was asked for is not all there.
        raise typer.Exit(1)


def _how_to_test(held: Data, fraction: float) -> str:
    """What helps where nothing is held out to test on."""
    from auxmae.data.splits import how_to_hold_out

    if fraction == 0:
        return "hold something out: --set data.test_fraction=0.2"
    return how_to_hold_out(held.collection, crop=held.image_size if held.splits.method == "block" else None)
