"""The channels that a trained model wants, among those that a data set has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from auxmae.build import open_data
from auxmae.data.channels import numbered_names, shortened
from auxmae.data.collection import Collection
from auxmae.errors import DataError, SettingsError
from auxmae.model.embedding import ChannelSelection
from auxmae.model.mae import AuxMAE
from auxmae.settings import override_names
from auxmae.settings.schema import SettingsTree

# Names of more channels, as of a spectrometer, do not fit into a sentence.
_MOST_NAMES = 16


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
        DataError: a channel is missing and `allow_missing` is False, or none is there; or see `check_count`.
    """

    def choose(names: Sequence[str]) -> SettingsTree:
        # The settings' wavelengths may be of more channels, and the model has its own.
        changes: dict[str, Any] = {"channels": tuple(names), "wavelengths": "auto"}
        return settings.model_copy(update={"data": settings.data.model_copy(update=changes)})

    wanted = f"the model was trained on the channels {shortened(model.channel_names, most=_MOST_NAMES)}"
    hint = "--allow-missing goes on without them"
    if settings.data.channels != "auto" and "data.channels" in override_names(overrides):
        named = settings.data.channels
        unknown = [name for name in named if name not in model.channel_names]
        if unknown:
            raise DataError(
                f"data.channels names {shortened(unknown, most=_MOST_NAMES)}, and {wanted}",
                hint="of channels that have names, as by data.channel_names, the model's are chosen",
            )
    elif not allow_missing:
        return choose(model.channel_names), ()
    else:
        try:
            found = open_as_it_is(settings)
        except SettingsError as error:
            raise DataError(f"{settings.data.source} does not fit: {error.message}", hint=error.hint) from error
        if _without_names(found) and len(found.channel_names) == len(model.channel_names):
            return choose(model.channel_names), ()
        check_count(settings, model, found)
        named = tuple(name for name in model.channel_names if name in found.channel_names)
        if not named:
            has = shortened(found.channel_names, most=_MOST_NAMES)
            raise DataError(
                f"{settings.data.source} has none of the model's channels: it has {has}; {wanted}",
                hint="name the channels of the data with --set data.channel_names=[…]",
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


def open_as_it_is(settings: SettingsTree) -> Collection:
    """The data set with all of its channels, called as its files call them."""
    plain = {"channels": "auto", "wavelengths": "auto"}
    return open_data(settings.data.model_copy(update=plain), seed=settings.train.seed)


def _without_names(collection: Collection) -> bool:
    return all(file.channel_names is None for file in collection.files)


def check_count(settings: SettingsTree, model: AuxMAE, found: Collection) -> None:
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
            + "name all of theirs with --set data.channel_names=[…]",
        )


@contextmanager
def fitting(source: str, model: AuxMAE) -> Iterator[None]:
    """A channel that is not found is the data set's fault: the names come from the model, not from the user's settings."""
    try:
        yield
    except SettingsError as error:
        wanted = f"the model was trained on the channels {shortened(model.channel_names, most=_MOST_NAMES)}"
        hint = f"{error.hint + '; ' if error.hint else ''}--allow-missing drops named channels that are not there"
        raise DataError(f"{source} does not fit: {wanted}; {error.message}", hint=hint) from error
