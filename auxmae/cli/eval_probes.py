"""The part of `auxmae eval` that needs labels: probes on the encoder's frozen features and on the floors'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.console import Console

    from auxmae.build import Data
    from auxmae.data.dataset import ImageDataset
    from auxmae.data.loading import Loader
    from auxmae.evaluation.features import Extractor, Features
    from auxmae.evaluation.probes import ProbeReport
    from auxmae.model.mae import AuxMAE
    from auxmae.settings.schema import EvalSettings, SettingsTree

# Training images that the floors which need fitting are fitted on, at most.
_FLOOR_IMAGES = 1000


def measure(
    model: AuxMAE, data: Data, settings: SettingsTree, device: Any, out: Console
) -> tuple[ProbeReport, dict[str, Extractor], dict[str, Features]]:
    """Probes, prints the table and the verdict → (report, extractors, their features of the training part's labelled samples)."""
    from auxmae.cli.console import print_table
    from auxmae.cli.eval_tables import probe_table
    from auxmae.evaluation.features import extract_all
    from auxmae.evaluation.probes import ENCODER, ProbeReport, find_copies, run_probes

    assert data.test is not None
    extractors: dict[str, Extractor] = {}
    train: dict[str, Features] = {}
    report = ProbeReport([], "The data carry no labels.")
    table, seed, copies = settings.eval, settings.train.seed, 0
    if data.class_names:
        with out.status("Probing frozen features") as status:
            extractors = _extractors(model, data, table, device, seed)
            patch_size = model.patch_size if data.collection.has_label_maps else None

            def told(images: int) -> None:
                status.update(f"Probing frozen features: {images} images or windows seen")

            train, test = (
                extract_all(
                    extractors,
                    draw_labelled(part, table.max_samples, seed),
                    patch_size=patch_size,
                    limit=table.max_samples,
                    seed=seed,
                    progress=told,
                )
                for part in (data.train, data.test)
            )
            copies = find_copies(train[ENCODER], test[ENCODER])
            report = run_probes(
                train,
                test,
                labels_per_class=table.labels_per_class,
                neighbours=table.neighbours,
                bootstrap=table.bootstrap,
                seed=seed,
                class_names=data.class_names,
                progress=lambda what: status.update(f"Probing: {what}"),
            )
    if data.collection.has_label_maps and not report.reason:
        report.notices.append(
            "Here the floors, but for the untrained network, see a patch alone, where the encoder sees the crop around it: "
            "--dense takes channel statistics and random convolutions of the encoder's window."
        )
    if copies:
        report.notices.append(
            f"{copies} of {report.test_samples} test images have the same pixels as a training image: they flatter every kind of "
            "features, unless they are left out or held out together (of files, with data.exclude and data.group_pattern)."
        )
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True}
    if report.reason:
        out.print(f"No probes. {report.reason}", **plain)
    else:
        print_table(out, probe_table(report))
        out.print(report.verdict(), **plain)
    for notice in report.notices:
        out.print(notice, style="yellow", **plain)
    return report, extractors, train


def are_labelled(dataset: ImageDataset) -> NDArray[np.bool_]:
    """(images of the part,) whether an image has a label, or a raster of labels."""
    collection, items = dataset.collection, dataset.part.items
    if collection.has_label_maps:
        return np.array([collection.has_label_map(item) for item in items.tolist()], dtype=bool)
    return np.zeros(len(items), dtype=bool) if collection.labels is None else collection.labels[items] >= 0


def draw_labelled(part: Loader, limit: int, seed: int) -> Loader:
    """What samples are drawn from: of more labelled images than `limit` those that `extract_all` would keep, before any is read.

    How many patches of a window have a label is known when it is read: there, ten times as many windows as samples.
    """
    dataset = part.dataset
    collection, blocks = dataset.collection, len(dataset.part.blocks)
    if blocks or not (collection.has_label_maps or collection.labels is not None):
        return part.limited(10 * limit) if collection.has_label_maps else part
    known = are_labelled(dataset)
    labelled = np.flatnonzero(known)
    if collection.has_label_maps or len(labelled) <= limit:
        found = part if known.all() else part.of_images(labelled)
        return found.limited(10 * limit) if collection.has_label_maps else found
    keys = np.random.default_rng(seed).random(len(labelled))
    return part.of_images(labelled[np.sort(np.argsort(keys, kind="stable")[:limit])])


def _extractors(model: AuxMAE, data: Data, settings: EvalSettings, device: Any, seed: int) -> dict[str, Extractor]:
    """The encoder's features and the floors'."""
    from auxmae.evaluation.feature_floors import floor_extractors
    from auxmae.evaluation.features import encoder_extractor
    from auxmae.evaluation.probes import ENCODER, RANDOM, untrained

    dense = data.collection.has_label_maps
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
