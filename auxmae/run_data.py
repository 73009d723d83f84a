"""The data that a trained run is used on: its own data set, or another one, as its model takes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from auxmae.build import Data, build_data, open_data
from auxmae.data.collection import Collection
from auxmae.data.digests import digest_names
from auxmae.data.exclusion import Exclusion
from auxmae.data.files import would_find
from auxmae.data.opening import SYNTHETIC
from auxmae.data.splits import Splits
from auxmae.data.statistics import Scaling
from auxmae.device import overruled
from auxmae.errors import DataError, SettingsError, UsageError
from auxmae.model.folders import SETTINGS_NAME
from auxmae.model.mae import AuxMAE
from auxmae.places import absolute_place, expanded
from auxmae.run_channels import check_count, find_channels, fitting, open_as_it_is
from auxmae.settings import load_settings, override_names, unread_variables
from auxmae.settings.schema import DataSettings, SettingsTree
from auxmae.training.run import RunFolder

# How the files of one data set are read; another one's are other files.  The channels that are used, and their wavelengths,
# stay: they are the model's.
_READING = (
    "layout", "key", "axes", "size", "channel_names", "channel_pattern", "split", "group_pattern", "nodata", "exclude",
    "allow_broken",
)  # fmt: skip
# What the trained model carries itself, and the two of [train] that batches and the split are made by.
_OF_TRAINING = ("model", "masking", "loss", "scaling")
_USED_OF_TRAIN = ("train.batch_size", "train.seed")
# What the environment says of these is of the machine and the measurement; the rest of a run's settings is its own.
_OF_ENVIRONMENT = ("run", "eval", "kernels")


def with_absolute_places(data: DataSettings) -> DataSettings:
    """The same, naming images and labels wherever it is read."""
    return data.model_copy(
        update={"source": absolute_place(data.source, "source"), "labels": absolute_place(data.labels, "labels")}
    )


def check_named(option: str, name: str | None) -> None:
    """Raises SettingsError for an empty name, as of an unset variable in a script: it would mean the working directory."""
    if name == "":
        raise SettingsError(f"{option}: '' is wrong, expected non-empty text")


def check_present(run: RunFolder) -> None:
    """Raises DataError where the run's own data set is gone."""
    source = run.settings.data.source
    if source != "synthetic" and not expanded(source).exists() and not any(c in str(expanded(source)) for c in "*?["):
        raise DataError(
            f"{source}: the run's data set is no longer there",
            hint=f"put it back, or write its new place into {run.path / SETTINGS_NAME}",
        )


def describe_reading(data: DataSettings) -> dict[str, Any]:
    """Every setting that decides which pixels are read and which label they have, by its full name, JSON-able."""
    names = ("source", "labels", "ignored_labels", *_READING, "channels", "wavelengths", "synthetic_images")
    values = with_absolute_places(data).model_dump(mode="json", include=set(names))
    if data.channel_names == "auto":
        # Documents of before there was such a setting do not say it.
        del values["channel_names"]
    return {f"data.{name}": value for name, value in values.items()}


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuses settings of a run that its model was made by: set anew they would change nothing.

    Args:
        overrides: "table.key=value" each, in place of a trained run's own settings.

    Raises:
        UsageError: names the first that cannot apply.
    """
    for name in override_names(overrides):
        table = name.partition(".")[0]
        if table in _OF_TRAINING or (table == "train" and name not in _USED_OF_TRAIN):
            raise UsageError(
                f"--set {name}: the run's model is trained, so {name} cannot be changed", hint="leave it out, or train a new run"
            )


def settings_on_data(
    run: RunFolder,
    *,
    source: str | None = None,
    labels: str | None = None,
    overrides: Sequence[str] = (),
    batch_size: int | None = None,
    device: str | None = None,
) -> SettingsTree:
    """The settings of a run, on its own data set or on another one.

    The environment stands over the run's [run], [eval] and [kernels] alone: the others say what the run is.
    On other files, what the run says of labels and of how its own files are read falls back to the defaults; on other labels
    alone, the values to ignore do.  What is set anew stays.

    Args:
        run: the run.
        source, labels: another data set, in place of the run's.
        overrides: further settings, "table.key=value"; they stand over the other arguments too.
        batch_size, device: images per batch, and where to compute, over the settings'.

    Raises:
        DataError: the run's own data set is gone.
        SettingsError: see `load_settings`; or an empty name.
        UsageError: see `check_overrides`.
    """
    check_named("--data", source)
    check_named("--labels", labels)
    check_overrides(overrides)
    path, options = run.path / SETTINGS_NAME, {"run.device": device}
    settings = load_settings(path, overrides=overrides, options=options, environ_tables=_OF_ENVIRONMENT).settings
    own, data, train = run.settings.data, settings.data, settings.train
    given = override_names(overrides)

    def forget(*names: str) -> None:
        nonlocal data
        defaults = DataSettings()
        data = data.model_copy(update={name: getattr(defaults, name) for name in names if f"data.{name}" not in given})

    # As in training, --set stands over what has an option of its own.
    source = source if "data.source" not in given else None
    labels = labels if "data.labels" not in given else None
    if source is not None:
        data = data.model_copy(update={"source": source})
    if not is_own_source(run, data.source):
        forget("labels", *_READING)
    else:
        check_present(run)
    if labels is not None:
        data = data.model_copy(update={"labels": labels})
    named, owned = with_absolute_places(data), with_absolute_places(own)
    if (named.source, named.labels) != (owned.source, owned.labels):
        forget("ignored_labels")
    if batch_size is not None and "train.batch_size" not in given:
        train = train.model_copy(update={"batch_size": batch_size})
    return settings.model_copy(update={"data": data, "train": train})


def open_run_collection(
    run: RunFolder, model: AuxMAE, settings: SettingsTree, *, overrides: Sequence[str] = (), allow_missing: bool = False
) -> tuple[SettingsTree, Collection, tuple[str, ...]]:
    """Opens the data set of a run, or another one, with the channels of the run's model.

    Args:
        run, model: the run and a model loaded from it.
        settings: from `settings_on_data`.
        overrides: what was given to it.
        allow_missing: do without the model's channels that the data set lacks.

    Returns:
        The settings with data.channels chosen, the images, and the model's channels that are left out.

    Raises:
        DataError: the data set lacks a channel that the model was trained on, or see `check_count`.
    """
    chosen, missing = find_channels(settings, model, overrides=overrides, allow_missing=allow_missing)
    with fitting(settings.data.source, model):
        try:
            collection = open_data(chosen.data, seed=chosen.train.seed)
        except SettingsError:
            check_count(settings, model, open_as_it_is(settings))
            raise
    check_count(settings, model, collection)
    collection.notices.extend([*left_behind(run, settings, overrides), *unread(_OF_ENVIRONMENT), *overruled(settings)])
    return chosen, collection, missing


def open_run_data(
    run: RunFolder, model: AuxMAE, settings: SettingsTree, *, overrides: Sequence[str] = (), allow_missing: bool = False
) -> Data:
    """The data set of a run, or another one, as the run's model takes it: its scaling, its crop size, no augmentation.

    Args, errors: see `open_run_collection`; the channels that are left out are `Data.missing`.
    """
    chosen, collection, missing = open_run_collection(run, model, settings, overrides=overrides, allow_missing=allow_missing)
    scaling = Scaling.from_dict(model.scaling) if model.scaling else Scaling.identity(model.channel_names)
    found = build_data(chosen, collection=collection, image_size=model.image_size, scaling=scaling, augment=False)
    names = chosen.data.channels
    if tuple(names) != tuple(model.channel_names):
        found.missing = missing
        for loader in (found.train, found.validation, found.test):
            if loader is not None:
                loader.channels = torch.tensor([model.channel_names.index(name) for name in names])
    return found


def is_own_source(run: RunFolder, source: str) -> bool:
    """Whether a source is the one that the run names as its own, whatever has become of the files."""
    return absolute_place(source, "source") == absolute_place(run.settings.data.source, "source")


def otherwise_held_out(
    run: RunFolder, used: DataSettings, collection: Collection, splits: Splits, *, part: str = "test"
) -> str | None:
    """That other images are held out than in the run's training, and what it means for a part, in a sentence for people.

    None where they are the same ones, or of another data set that has no file of the run's own.
    """
    if not is_own_source(run, used.source):
        shared = 0 if part == "train" else _count_shared(run, collection)
        if not shared:
            return None
        files = f"{shared} of the {len(collection.files)} files here are of the run's own data set ({run.settings.data.source})"
        return f"{files}: what is taken for held out here may have been trained on."
    trained_on = run.changed_data(splits.digest, digest_names(collection))
    if trained_on is None:
        return None
    held_out = "some of what is held out here may have been trained on"
    consequence = "this may not be what was trained on" if part == "train" else held_out
    return f"Files, labels or the split are others than in training ({trained_on}): {consequence}."


def _count_shared(run: RunFolder, collection: Collection) -> int:
    """How many of a collection's files the run's own source finds, as far as their places tell: copies are other files."""
    own = run.settings.data
    if SYNTHETIC in (own.source, collection.source):
        return 0
    exclusion = Exclusion(own.exclude)
    places = [file.path.resolve() for file in collection.files]
    return sum(would_find(own.source, place) and not exclusion.leaves_out(place) for place in places)


def left_behind(run: RunFolder, used: SettingsTree, overrides: Sequence[str] = ()) -> list[str]:
    """What a run says of reading its own files and is not said of others, in a sentence for people; nothing where all is.

    Args:
        run: the run.
        used: from `settings_on_data`.
        overrides: what was given to it: to set a default anew is to choose it.
    """
    own, default = run.settings.data, DataSettings()
    given = override_names(overrides)
    names = [
        name
        for name in (*_READING, "ignored_labels")
        if getattr(own, name) != getattr(used.data, name) == getattr(default, name) and f"data.{name}" not in given
    ]
    if not names:
        return []
    said = ", ".join(f"data.{name}" for name in names)
    return [f"the run's {said} {'are' if len(names) > 1 else 'is'} not taken over: set again, with --set, what is needed here"]


def unread(tables: Sequence[str]) -> list[str]:
    """What the environment says of a run's own settings, in a sentence for people; nothing where it does not.

    Args:
        tables: those that are read from there.
    """
    names = unread_variables(os.environ, tables)
    if not names:
        return []
    read = f"; of the environment {', '.join(f'[{name}]' for name in tables)} are read here" if tables else ""
    return [f"{', '.join(names)}: not read, since the run has its own settings{read}"]
