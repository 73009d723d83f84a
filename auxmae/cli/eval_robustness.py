"""`auxmae eval --robustness`: the model's figures and the floors' under changes of the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console

    from auxmae.build import Data
    from auxmae.data.loading import Loader
    from auxmae.evaluation.features import Extractor, Features
    from auxmae.evaluation.linear_floor import LinearFloor
    from auxmae.model.mae import AuxMAE
    from auxmae.settings.schema import SettingsTree
    from auxmae.training.run import RunFolder

# Held-out images that are changed, at most: every change takes all features and a reconstruction anew.
_IMAGES = 200
# Of images of many windows, as many as have about so many of them.
_WINDOWS = 800


def measure(
    model: AuxMAE,
    data: Data,
    settings: SettingsTree,
    extractors: Mapping[str, Extractor],
    known: Mapping[str, Features],
    linear: LinearFloor,
    device: Any,
    folder: RunFolder,
    out: Console,
    unwritten: list[Path],
) -> dict[str, object]:
    """Measures, prints the table, draws the figure into the run folder; the content of "robustness" in the document.

    `extractors`, `known` and `linear` are as for `evaluate_robustness`; `unwritten` gets the figure if it cannot be written.
    """
    from auxmae.cli.console import print_table
    from auxmae.cli.eval_files import attempt
    from auxmae.cli.eval_tables import robustness_table
    from auxmae.evaluation.robustness import SIZES, evaluate_robustness, plan_changes
    from auxmae.visuals.robustness import robustness_figure

    assert data.test is not None
    names = data.collection.channel_names
    groups = [[names.index(name) for name in group] for group in model.groups if group[0] in names]
    usual = data.image_size
    # The same loader under every change but of size: it keeps what it has read.
    at_usual = _batches(data, None, settings)

    def batches(side: int | None) -> Loader | None:
        return at_usual if side is None else _batches(data, side, settings)

    sides = [side for part in SIZES if (side := round(part * usual)) >= 1 and batches(side) is not None]
    changes = plan_changes(groups, names, sides, seed=settings.train.seed)
    with out.status("Changing the images") as status:
        results = evaluate_robustness(
            model,
            data.train.limited(settings.eval.max_samples),
            batches,
            extractors,
            known,
            changes=changes,
            scaling=data.scaling.select(names),
            pool=settings.eval.pool,
            patch_size=model.patch_size if data.collection.has_label_maps else None,
            limit=settings.eval.max_samples,
            seed=settings.train.seed,
            mask_seed=settings.eval.mask_seed,
            device=device,
            linear=linear,
            progress=lambda what: status.update(f"Changing the images: {what}"),
        )
    print_table(out, robustness_table(results))
    path = folder.figures / "robustness.png"
    figure = attempt(lambda: robustness_figure(results, path), unwritten, path, out)
    if figure is not None:
        out.print(f"Curves: {figure}", highlight=False, soft_wrap=True)
    return {"results": [result.to_dict() for result in results], "figure": figure}


def _batches(data: Data, side: int | None, settings: SettingsTree) -> Loader | None:
    """Held-out images in windows of `side` px (None: the usual one); None where they are smaller.

    Of images that are samples, whole ones are chosen: features are means over all windows of an image, as in training.  Labelled
    ones come first, as accuracies are theirs.
    """
    from auxmae.cli.eval_probes import are_labelled
    from auxmae.data.dataset import ImageDataset
    from auxmae.data.loading import Loader

    assert data.test is not None
    part, held = data.splits.test, data.test
    limit = min(settings.eval.max_images or _IMAGES, _IMAGES)
    if side is not None and side > (int(part.blocks[:, 3:].min()) if len(part.blocks) else data.collection.smallest_side()):
        return None
    labelled = are_labelled(held.dataset)
    if not len(part.blocks) and data.collection.has_label_maps and labelled.any() and not labelled.all():
        held = held.of_images(np.flatnonzero(labelled))
        part = held.dataset.part
    elif not len(part.blocks) and not data.collection.has_label_maps:
        windows = len(held.dataset) / max(len(part.items), 1)
        limit = min(limit, max(round(_WINDOWS / max(windows, 1)), 1))
        order = np.random.default_rng((held.seed, 0)).permutation(len(part.items))
        order = order[np.argsort(~labelled[order], kind="stable")]
        held = held.of_images(np.sort(order[:limit]))
        part, limit = held.dataset.part, 0
    if side is None:
        return held.limited(limit)
    dataset = ImageDataset(data.collection, part, image_size=side, scaling=data.scaling, cover=True, seed=settings.train.seed)
    loader = Loader(dataset, held.batch_size, shuffle=False, seed=held.seed, limit=limit, channels=held.channels)
    return loader if len(dataset) else None
