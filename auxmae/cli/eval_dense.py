"""`auxmae eval --dense`: scenes that have a label raster, pixel by pixel, each by itself with maps, and across scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.console import Console

    from auxmae.build import Data
    from auxmae.data.collection import Collection
    from auxmae.evaluation.pixel_probes import PixelProbes
    from auxmae.evaluation.pixel_windows import LabelledScene
    from auxmae.evaluation.probes import ProbeReport
    from auxmae.model.mae import AuxMAE
    from auxmae.settings.schema import SettingsTree
    from auxmae.training.run import RunFolder

# So many scenes are measured each by itself, at most: a page of tables.
_MOST = 8


def measure(
    model: AuxMAE,
    data: Data,
    settings: SettingsTree,
    device: Any,
    folder: RunFolder,
    out: Console,
    unwritten: list[Path],
    testing: TestLabels | None,
    found: dict[str, object],
) -> None:
    """Probes scenes by themselves, prints the tables, writes the maps into the run folder.

    `unwritten` gets the maps that could not be written; `testing` has the pixels to test on, where they are given; `found`,
    "dense" of the document, gets scene by scene what is measured, so that a fault at a later one costs none.
    """
    from auxmae.cli.eval_files import attempt
    from auxmae.evaluation.scenes import AT_RANDOM, evaluate_scene
    from auxmae.visuals.maps import map_figure, write_map

    collection = data.collection
    names = scene_names(collection)
    class_names = data.class_names if testing is None else testing.class_names
    probes = _probes(data, settings, device, class_names)
    items = labelled_scenes(collection)
    if testing is None and collection.layout != "scenes":
        # Many small images, whose halves say little: they are measured across images alone.
        items = []
    elif testing is None and len(items) > _MOST:
        text = f"{len(items)} scenes have labels for their pixels: {_MOST} are measured each by itself, all of them across scenes"
        out.print(text, style="yellow", highlight=False, soft_wrap=True)
        items = items[:_MOST]
    way = "each half predicted from the labels of the other" if testing is None else "predicted from the pixels to train on"
    for item in items:
        name = names[item]
        test_labels = None if testing is None else testing.read(item)
        if testing is not None and test_labels is None:
            out.print(f"{name}: no labels to test on, left out", style="yellow", highlight=False, soft_wrap=True)
            continue
        scene = read_scene(data, item)
        if not scene.valid.any():
            text = f"{name}: not one pixel is valid, left out (wrong? see data.nodata)"
            out.print(text, style="yellow", highlight=False, soft_wrap=True)
            continue
        with out.status(f"Probing the pixels of {name}") as status:
            result = evaluate_scene(
                model,
                scene,
                probes,
                test_labels=test_labels,
                progress=lambda what, name=name: status.update(f"{name}: {what}"),  # type: ignore[misc]
            )
        for notice in result.notices:
            out.print(f"{name}: {notice}", style="yellow", highlight=False, soft_wrap=True)
        for split, report in result.reports.items():
            _print(f"{name}, {split}", report, out, leaks=split == AT_RANDOM)
        found[name] = result.to_dict()
        if not (result.prediction >= 0).any():
            out.print(f"{name}: no map, as no pixel's class could be predicted", highlight=False, soft_wrap=True)
            continue
        place = collection.file_of(item).georeference
        raster, figure = folder.path / "maps" / f"{name}.tif", folder.figures / f"map-{name}.png"
        written = {
            "map": attempt(partial(write_map, result.prediction, class_names, place, raster), unwritten, raster, out),
            "figure": attempt(
                partial(map_figure, result.prediction, result.labels, class_names, figure, title=f"{name}: {way}"),
                unwritten,
                figure,
                out,
            ),
        }
        there = [path for path in written.values() if path is not None]
        if there:
            out.print(f"Maps: {', '.join(there)}", highlight=False, soft_wrap=True)
        found[name] = {**result.to_dict(), **written}


def measure_across(model: AuxMAE, data: Data, settings: SettingsTree, device: Any, out: Console) -> dict[str, object] | None:
    """Probes one half of the scenes by the labels of the other; "across_scenes" of the document, None of a scene alone."""
    from auxmae.data.splits import scene_groups
    from auxmae.evaluation.across_scenes import evaluate_across

    names, items = scene_names(data.collection), labelled_scenes(data.collection)
    groups = scene_groups(data.collection, settings.data.group_pattern)[items]
    if len(items) < 2:
        return None
    if len(np.unique(groups)) < 2:
        text = "All scenes show the same ground, share a label map, or are of one group: nothing is measured across scenes"
        out.print(text, style="yellow", highlight=False, soft_wrap=True)
        return None
    with out.status("Probing pixels across scenes") as status:
        result = evaluate_across(
            model,
            lambda number: read_scene(data, items[number]),
            [names[item] for item in items],
            groups,
            _probes(data, settings, device, data.class_names),
            progress=lambda what: status.update(f"Across scenes, {what}"),
        )
    for split, report in result.reports.items():
        _print(f"Across scenes, {split}", report, out)
    return result.to_dict()


def _probes(data: Data, settings: SettingsTree, device: Any, class_names: Sequence[str]) -> PixelProbes:
    from auxmae.evaluation.pixel_probes import PixelProbes

    table = settings.eval
    return PixelProbes(
        pool=table.pool,
        max_samples=table.max_samples,
        labels_per_class=table.labels_per_class,
        neighbours=table.neighbours,
        bootstrap=table.bootstrap,
        seed=settings.train.seed,
        device=device,
        stride=table.stride,
        class_names=class_names,
        channels=data.train.channels,
    )


def _print(title: str, report: ProbeReport, out: Console, *, leaks: bool = False) -> None:
    """The table of a split, what is to be known of it, and the verdict, or why it would flatter."""
    from auxmae.cli.console import print_table
    from auxmae.cli.eval_tables import probe_table
    from auxmae.evaluation.scenes import LEAKAGE

    out.print(title, style="bold", highlight=False)
    if report.results:
        print_table(out, probe_table(report))
    else:
        out.print(report.reason)
    for notice in report.notices:
        out.print(notice, style="yellow", highlight=False, soft_wrap=True)
    if report.results and leaks:
        out.print(LEAKAGE, style="yellow", highlight=False, soft_wrap=True)
    elif report.results:
        out.print(report.verdict(), highlight=False, soft_wrap=True)


def labelled_scenes(collection: Collection) -> list[int]:
    """The images that have a label raster."""
    return [item for item in range(len(collection)) if collection.has_label_map(item)]


def read_scene(data: Data, item: int) -> LabelledScene:
    """An image, scaled, with its labels."""
    import torch

    from auxmae.evaluation.pixel_windows import LabelledScene

    pixels, labels = data.collection.read(item), data.collection.read_labels(item)
    assert labels is not None
    valid = torch.from_numpy(pixels.valid)
    scaling = data.scaling.select(data.collection.channel_names)
    image = scaling.apply(torch.from_numpy(pixels.pixels)[None])[0].masked_fill(~valid, 0.0)
    return LabelledScene(image, valid, labels)


def check_measurable(collection: Collection) -> None:
    """Says, before anything is measured, that a scene alone has halves to be measured against each other.

    Raises:
        DataError: there is one labelled image, which is no scene.
    """
    from auxmae.errors import DataError

    if collection.layout != "scenes" and len(labelled_scenes(collection)) < 2:
        raise DataError(
            f"{collection.describe()}: --dense measures images against each other, and no two have a label for each pixel",
            hint="give labels for more images, or measure the halves of this one: --set data.layout=scenes",
        )


def open_test_labels(settings: SettingsTree, name: str) -> Collection:
    """The same images with the labels to test on.

    Raises:
        DataError: they cannot be read, or are not of these images.
    """
    from auxmae.build import open_data
    from auxmae.errors import DataError

    changes = {"labels": name, "channels": "auto", "wavelengths": "auto"}
    try:
        return open_data(settings.data.model_copy(update=changes), seed=settings.train.seed)
    except DataError as error:
        # It is the other option that has to be changed.
        hint = (error.hint or "").replace("data.labels (--labels)", "data.labels").removesuffix(", or set data.labels = 'none'")
        raise DataError(f"--test-labels: {error.message}", hint=hint.replace("data.labels", "--test-labels") or None) from error


def digest_test_labels(testing: Collection) -> str:
    """Hex digest of what tells that labels to test on have become others."""
    from auxmae.data.digests import digest, digest_files, digest_labels

    return digest([digest_files(testing), digest_labels(testing)])


def find_digest(settings: SettingsTree, name: str) -> str | None:
    """`digest_test_labels` of the labels of a name as they are now; None where they cannot be read."""
    from auxmae.errors import AuxMAEError

    try:
        return digest_test_labels(open_test_labels(settings, name))
    except AuxMAEError:
        return None


class TestLabels:
    """The pixels that a benchmark gives to test on: label rasters of the same images, their classes found by name.

    Args:
        collection: the images with the labels to train on.
        testing: the same images with the labels to test on.

    Raises:
        DataError: the latter are no label rasters, are of other images than the former, or label every pixel that could be
            trained on.
    """

    def __init__(self, collection: Collection, testing: Collection, name: str) -> None:
        from auxmae.errors import DataError

        if not testing.has_label_maps:
            raise DataError(f"{name}: no label for each pixel", hint="name a label raster with --test-labels")
        self._collection, self._testing = collection, testing
        # By path: a label file that lies among the images is no image in one of the two.
        self._items = {
            (testing.relative_paths[number], index): item for item, (number, index) in enumerate(testing.items.tolist())
        }
        trained = collection.class_names
        self.class_names = (*trained, *(each for each in testing.class_names if each not in trained))
        self._place = np.array([self.class_names.index(each) for each in testing.class_names] + [-1])
        tested = [item for item in labelled_scenes(collection) if self._is_tested(item)]
        if not tested:
            raise DataError(
                f"{name}: no scene with labels to train on (--labels) has any to test on",
                hint="--test-labels is of other pixels of the same scenes; to test on other scenes, name one folder with the "
                "label rasters of all of them with --labels alone: one half of the scenes is tested by the other "
                "(data.group_pattern keeps scenes together)",
            )
        if not any(self._leaves(item) for item in tested):
            raise DataError(
                f"{name}: every pixel with a label to train on has one to test on, and is not trained on: none is left",
                hint="leave the pixels to test on out of --labels, or those to train on out of --test-labels; "
                "where a number means 'no label', name it: --set data.ignored_labels=[0]",
            )

    def _is_tested(self, item: int) -> bool:
        """Whether an image has a pixel to test on."""
        tested = self.read(item)
        return tested is not None and bool((tested >= 0).any())

    def _leaves(self, item: int) -> bool:
        """Whether an image that is tested on has a pixel to train on that is not."""
        known, tested = self._collection.read_labels(item), self.read(item)
        return known is not None and tested is not None and bool(((known >= 0) & (tested < 0)).any())

    def read(self, item: int) -> NDArray[np.int64] | None:
        """(H, W) class of every pixel of an image, −1 where there is none; None where the image has no raster."""
        number, index = self._collection.items[item].tolist()
        there = self._items.get((self._collection.relative_paths[number], index))
        labels = None if there is None else self._testing.read_labels(there)
        return None if labels is None else self._place[labels]


def scene_names(collection: Collection) -> list[str]:
    """A name for every image, no two the same: the file's without its ending, or one made of its path below the source."""
    ways: list[list[str]] = [[], [], []]
    for number, index in collection.items.tolist():
        path = PurePosixPath(collection.relative_paths[number])
        within = f"-{index}" if collection.files[number].count > 1 else ""
        whole = path.as_posix().strip("/").replace("/", "-")
        for names, name in zip(ways, (path.stem, whole.removesuffix(path.suffix), whole.replace(".", "-")), strict=True):
            names.append(name + within)
    found, taken = [""] * len(collection), set[str]()
    for names in ways:
        often = Counter(name for name, chosen in zip(names, found, strict=True) if not chosen)
        for item, name in enumerate(names):
            if not found[item] and often[name] == 1 and name not in taken:
                found[item] = name
                taken.add(name)
    for item, name in enumerate(ways[-1]):
        found[item] = found[item] or f"{name}-{item}"
    return found
