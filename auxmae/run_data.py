"""The data that a trained run is used on: its own data set, or another one, as its model takes it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from auxmae.build import Data, build_data, open_data
from auxmae.data.channels import numbered_names, shortened
from auxmae.data.collection import Collection
from auxmae.data.digests import digest_names
from auxmae.data.splits import Splits
from auxmae.data.statistics import Scaling
from auxmae.errors import DataError, SettingsError, UsageError
from auxmae.model.embedding import ChannelSelection
from auxmae.model.folders import SETTINGS_NAME
from auxmae.model.mae import AuxMAE
from auxmae.places import expanded
from auxmae.settings import load_settings, unread_variables
from auxmae.settings.schema import DataSettings, SettingsTree
from auxmae.training.run import RunFolder

# How the files of one data set are read; another one's are other files.  The channels' names and wavelengths stay: they are
# the model's.
_READING = (
    "layout", "key", "axes", "size", "channel_pattern", "split", "group_pattern", "nodata", "exclude", "allow_broken",
)  # fmt: skip
# Names of more channels, as of a spectrometer, do not fit into a sentence.
_MOST_NAMES = 16
# What the trained model carries itself, and the two of [train] that batches and the split are made by.
_OF_TRAINING = ("model", "masking", "loss", "scaling")
_USED_OF_TRAIN = ("train.batch_size", "train.seed")
# What the environment says of these is of the machine and the measurement; the rest of a run's settings is its own.
_OF_ENVIRONMENT = ("run", "eval", "kernels")


def absolute_place(name: str, setting: Literal["source", "labels"]) -> str:
    """What data.source or data.labels names, wherever it is said: paths absolute and, but for ".." behind a link,
    without "..", other words as they are."""
    # What is a word in one of them is a folder's name in the other.
    words = ("synthetic",) if setting == "source" else ("auto", "none")
    if name in words or (setting == "labels" and name.startswith(":")):
        return name
    parts = list[str]()
    for part in expanded(name).absolute().parts:
        # What lies above a link is not what stands before it in the path.
        if part == ".." and parts[-1] != ".." and not Path(*parts).is_symlink():
            del parts[max(len(parts) - 1, 1) :]  # above the root is the root
        else:
            parts.append(part)
    return str(Path(*parts))


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
    if source != "synthetic" and not expanded(source).exists() and not any(c in source for c in "*?["):
        raise DataError(
            f"{source}: the run's data set is no longer there",
            hint=f"put it back, or write its new place into {run.path / SETTINGS_NAME}",
        )


def describe_reading(data: DataSettings) -> dict[str, Any]:
    """Every setting that decides which pixels are read and which label they have, by its full name, JSON-able."""
    names = ("source", "labels", "ignored_labels", *_READING, "channels", "wavelengths", "synthetic_images")
    values = with_absolute_places(data).model_dump(mode="json", include=set(names))
    return {f"data.{name}": value for name, value in values.items()}


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuses settings of a run that its model was made by: set anew they would change nothing.

    Args:
        overrides: "table.key=value" each, in place of a trained run's own settings.

    Raises:
        UsageError: names the first that cannot apply.
    """
    for text in overrides:
        name = text.partition("=")[0].strip()
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
        overrides: further settings, "table.key=value".
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
    given = {text.partition("=")[0].strip() for text in overrides}

    def forget(*names: str) -> None:
        nonlocal data
        defaults = DataSettings()
        data = data.model_copy(update={name: getattr(defaults, name) for name in names if f"data.{name}" not in given})

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
    if batch_size is not None:
        train = train.model_copy(update={"batch_size": batch_size})
    return settings.model_copy(update={"data": data, "train": train})


def find_channels(
    settings: SettingsTree, model: AuxMAE, *, overrides: Sequence[str] = (), allow_missing: bool = False
) -> tuple[SettingsTree, tuple[str, ...]]:
    """Chooses the model's channels from a data set by name: another order or further channels change nothing.

    Args:
        settings: of the data set.
        model: whose channels are wanted.
        overrides: where they set data.channels, those names stand (a data set without names is named by them).
        allow_missing: leave out channels that the data set lacks, and those that share a token with one of them.

    Returns:
        The settings with data.channels chosen, and the model's channels that are left out.

    Raises:
        DataError: a channel is missing and `allow_missing` is False, or none is there; or see `_check_count`.
    """

    def choose(names: Sequence[str]) -> SettingsTree:
        changes: dict[str, Any] = {"channels": tuple(names)}
        if len(names) < len(model.channel_names):
            changes["wavelengths"] = "auto"  # the settings' list is of all channels
        return settings.model_copy(update={"data": settings.data.model_copy(update=changes)})

    wanted = f"the model was trained on the channels {shortened(model.channel_names, most=_MOST_NAMES)}"
    hint = "--allow-missing goes on without them"
    if settings.data.channels != "auto" and any(text.partition("=")[0].strip() == "data.channels" for text in overrides):
        named = settings.data.channels
        unknown = [name for name in named if name not in model.channel_names]
        if unknown:
            raise DataError(
                f"data.channels names {shortened(unknown, most=_MOST_NAMES)}, and {wanted}",
                hint="of files that carry channel names, as in a GeoTIFF's band descriptions, the model's are chosen; "
                "files without have to hold channels of the model alone",
            )
    elif not allow_missing:
        return choose(model.channel_names), ()
    else:
        try:
            found = _open_as_it_is(settings)
        except SettingsError as error:
            raise DataError(f"{settings.data.source} does not fit: {error.message}", hint=error.hint) from error
        if _without_names(found) and len(found.channel_names) == len(model.channel_names):
            return choose(model.channel_names), ()
        _check_count(settings, model, found)
        named = tuple(name for name in model.channel_names if name in found.channel_names)
        if not named:
            has = shortened(found.channel_names, most=_MOST_NAMES)
            raise DataError(
                f"{settings.data.source} has none of the model's channels: it has {has}; {wanted}",
                hint="name the channels of the data with --set data.channels=[…]",
            )
    missing = tuple(name for name in model.channel_names if name not in named)
    if missing and not allow_missing:
        raise DataError(f"{settings.data.source} lacks the channels {', '.join(missing)}; {wanted}", hint=hint)
    if missing:
        # A group of channels is one token: what is there of it in part goes with what is not.
        whole = {name for group in model.groups if set(group) <= set(named) for name in group}
        if not whole:
            raise DataError(
                f"{settings.data.source} lacks the channels {', '.join(missing)}, and so one of every group that shares a token",
                hint="give all channels of a group, or train with model.channel_groups = 1",
            )
        named = tuple(name for name in named if name in whole)
        missing = tuple(name for name in model.channel_names if name not in whole)
    ChannelSelection(model.groups, model.channel_names, named)
    return choose(named), missing


def _open_as_it_is(settings: SettingsTree) -> Collection:
    """The data set with all of its channels, called as its files call them."""
    plain = {"channels": "auto", "wavelengths": "auto"}
    return open_data(settings.data.model_copy(update=plain), seed=settings.train.seed)


def _without_names(collection: Collection) -> bool:
    return all(file.channel_names is None for file in collection.files)


def _check_count(settings: SettingsTree, model: AuxMAE, found: Collection) -> None:
    """Refuses channels without names where the model's have none either, and are more or fewer: which is which, nobody can tell.

    Args:
        settings: of the data set, before channels were chosen from it: data.channels names or chooses them.
        model: whose channels are wanted.
        found: the data set, opened with any choice of channels.

    Raises:
        DataError: see above.
    """
    count, there = len(model.channel_names), found.files[0].channels
    told_by_number = settings.data.channels == "auto" and model.channel_names == numbered_names(count)
    if told_by_number and _without_names(found) and there != count:
        own = f"{model.channel_names[0]} … {model.channel_names[-1]}"
        # C1 is the name of none among C01, …, C12.
        sayable = there < count or set(model.channel_names) <= set(numbered_names(there))
        raise DataError(
            f"{settings.data.source} has {there} channels without names, and the model was trained on {count} that only their "
            f"number tells apart ({own}): which of them are the same, nobody can know",
            hint=(f"say which of {own} the data have with --set data.channels=[…], or " if sayable else "")
            + "write names into the files",
        )


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
        DataError: the data set lacks a channel that the model was trained on, or see `_check_count`.
    """
    chosen, missing = find_channels(settings, model, overrides=overrides, allow_missing=allow_missing)
    with fitting(settings.data.source, model):
        try:
            collection = open_data(chosen.data, seed=chosen.train.seed)
        except SettingsError:
            _check_count(settings, model, _open_as_it_is(settings))
            raise
    _check_count(settings, model, collection)
    collection.notices.extend([*left_behind(run, settings, overrides), *_unread()])
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

    None where they are the same ones, or of another data set.
    """
    trained_on = run.changed_data(splits.digest, digest_names(collection)) if is_own_source(run, used.source) else None
    if trained_on is None:
        return None
    held_out = "some of what is held out here may have been trained on"
    consequence = "this may not be what was trained on" if part == "train" else held_out
    return f"Files, labels or the split are others than in training ({trained_on}): {consequence}."


def left_behind(run: RunFolder, used: SettingsTree, overrides: Sequence[str] = ()) -> list[str]:
    """What a run says of reading its own files and is not said of others, in a sentence for people; nothing where all is.

    Args:
        run: the run.
        used: from `settings_on_data`.
        overrides: what was given to it: to set a default anew is to choose it.
    """
    own, default = run.settings.data, DataSettings()
    given = {text.partition("=")[0].strip() for text in overrides}
    names = [
        name
        for name in (*_READING, "ignored_labels")
        if getattr(own, name) != getattr(used.data, name) == getattr(default, name) and f"data.{name}" not in given
    ]
    if not names:
        return []
    said = ", ".join(f"data.{name}" for name in names)
    return [f"the run's {said} {'are' if len(names) > 1 else 'is'} not taken over: set again, with --set, what is needed here"]


def _unread() -> list[str]:
    """What the environment says of a run's own settings, in a sentence for people; nothing where it does not."""
    names = unread_variables(os.environ, _OF_ENVIRONMENT)
    if not names:
        return []
    tables = ", ".join(f"[{name}]" for name in _OF_ENVIRONMENT)
    return [f"{', '.join(names)}: not read, since the run has its own settings; of the environment {tables} are read here"]


@contextmanager
def fitting(source: str, model: AuxMAE) -> Iterator[None]:
    """A channel that is not found is the data set's fault: the names come from the model, not from the user's settings."""
    try:
        yield
    except SettingsError as error:
        wanted = f"the model was trained on the channels {shortened(model.channel_names, most=_MOST_NAMES)}"
        hint = f"{error.hint + '; ' if error.hint else ''}--allow-missing drops named channels that are not there"
        raise DataError(f"{source} does not fit: {wanted}; {error.message}", hint=hint) from error
