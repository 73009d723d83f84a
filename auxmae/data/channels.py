"""Which channels a collection has: names agreed between files, selected and ordered by the settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from auxmae.data.image import ImageFile
from auxmae.errors import DataError, SettingsError


@dataclass(frozen=True)
class ChannelPlan:
    """Names and wavelengths (nm) of the channels used, and for each file where it keeps them (None: as they are)."""

    names: tuple[str, ...]
    wavelengths: tuple[float, ...] | None
    order: tuple[tuple[int, ...] | None, ...]


def rename_channels(files: Sequence[ImageFile], names: tuple[str, ...], notices: list[str]) -> list[ImageFile]:
    """The files with channels of these names, in their order, whatever they call them.

    Raises:
        DataError: files have the same names in other orders.
        SettingsError: a file has more or fewer channels.
    """
    orders: dict[frozenset[str], ImageFile] = {}
    for file in files:
        if file.channels != len(names):
            raise SettingsError(
                f"data.channel_names has {len(names)} names; {file.path} has {file.channels} channels",
                hint="name all channels, in the files' order; data.channels chooses among them",
            )
        if file.channel_names is None:
            continue
        first = orders.setdefault(frozenset(file.channel_names), file)
        if file.channel_names != first.channel_names:
            raise DataError(
                f"data.channel_names names channels by order, and {first.path} and {file.path} have them in different orders",
                hint="leave data.channel_names out: data.channels chooses by the files' own names",
            )
    otherwise = [file for file in files if file.channel_names not in (None, names)]
    if otherwise and otherwise[0].channel_names:
        more = f" (and {len(otherwise) - 1} more theirs)" if len(otherwise) > 1 else ""
        notices.append(
            f"{otherwise[0].path.name} calls its channels {shortened(otherwise[0].channel_names)}{more}: by data.channel_names "
            f"they are {shortened(names)}, in this order"
        )
    return [replace(file, channel_names=names) for file in files]


def plan_channels(
    files: Sequence[ImageFile],
    channels: tuple[str, ...] | None,
    wavelengths: tuple[float, ...] | None,
    notices: list[str],
) -> ChannelPlan:
    """Agrees on the channels of all files.

    Args:
        files: at least one.
        channels: names to select and order by; where no file carries any, of C1, C2, …, or the names themselves.
        wavelengths: of the channels used, or of all channels, nm.
        notices: told what was taken over.

    Raises:
        DataError: the files' channels do not fit each other.
        SettingsError: a name is unknown, or a list has the wrong length.
    """
    named = [file for file in files if file.channel_names is not None]
    names_of = {id(file): _unique(file.channel_names, notices) for file in named if file.channel_names is not None}
    by_name = channels is not None and len(named) == len(files)
    if not by_name:
        for file in files[1:]:
            if file.channels != files[0].channels:
                raise DataError(
                    f"{files[0].path} has {files[0].channels} channels and {file.path} has {file.channels}",
                    hint="leave files out with data.exclude, or choose channels that all files name with data.channels",
                )
    if named:
        everything = names_of[id(named[0])]
    else:
        everything = numbered_names(files[0].channels)
        if channels is not None and not set(channels) <= set(everything):
            if len(channels) != files[0].channels:
                raise SettingsError(
                    f"data.channels has {len(channels)} names; {files[0].path} has {files[0].channels} channels without names",
                    hint=f"name all of them with data.channel_names, or choose among {shortened(everything)}",
                )
            everything = channels
            notices.append(f"the files carry no channel names: {shortened(channels)} are taken to be theirs, in this order")
    if named and len(named) < len(files):
        notices.append(
            f"{len(files) - len(named)} of {len(files)} files carry no channel names: "
            f"those of {named[0].path.name} are taken, in the same order"
        )
    chosen = channels or everything
    order: list[tuple[int, ...] | None] = []
    for file in files:
        available = names_of.get(id(file), everything)
        if channels is None and set(available) != set(everything):
            raise DataError(
                f"{named[0].path} and {file.path} name their channels differently: "
                f"{shortened(everything)} and {shortened(available)}",
                hint="choose channels that both have with data.channels, or leave files out with data.exclude",
            )
        if lacking := [name for name in chosen if name not in available]:
            # Of several, as of another sensor's, none is misspelt.
            near = nearest_name(lacking[0], available, cutoff=0.3) if len(lacking) == 1 else None
            hint = f"did you mean {near!r}?" if near else f"there are {shortened(available)}"
            raise SettingsError(f"data.channels: {file.path} has no channel {shortened([*map(repr, lacking)])}", hint=hint)
        places = tuple(available.index(name) for name in chosen)
        order.append(None if places == tuple(range(file.channels)) else places)
    return ChannelPlan(chosen, _wavelengths(files, wavelengths, chosen, everything, order), tuple(order))


def numbered_names(count: int) -> tuple[str, ...]:
    """What channels without names are called: C1, C2, …, of one width."""
    digits = len(str(count))
    return tuple(f"C{number:0{digits}}" for number in range(1, count + 1))


def _unique(names: tuple[str, ...], notices: list[str]) -> tuple[str, ...]:
    """Names as they are, numbered where a file gives one name twice."""
    if len(set(names)) == len(names):
        return names
    taken, result = set(names), list[str]()
    for name in names:
        number = 1
        while names.count(name) > 1 and (numbered := f"{name}_{number}") in taken:
            number += 1
        result.append(name if names.count(name) == 1 else numbered)
        taken.add(result[-1])
    notice = (
        f"channels that share a name are numbered in the order of their file: {shortened([n for n in result if n not in names])}"
    )
    if notice not in notices:
        notices.append(notice)
    return tuple(result)


def _wavelengths(
    files: Sequence[ImageFile],
    given: tuple[float, ...] | None,
    chosen: tuple[str, ...],
    everything: tuple[str, ...],
    order: Sequence[tuple[int, ...] | None],
) -> tuple[float, ...] | None:
    if given is not None:
        if len(given) == len(chosen):
            return given
        if len(given) == len(everything):
            return tuple(given[everything.index(name)] for name in chosen)
        raise SettingsError(
            f"data.wavelengths has {len(given)} values for {len(chosen)} channels", hint="give one to every channel"
        )
    for file, places in zip(files, order, strict=True):
        if file.wavelengths is not None:
            return file.wavelengths if places is None else tuple(file.wavelengths[place] for place in places)
    return None


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by, in which ch2 comes before ch10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def nearest_name(name: str, names: Sequence[str], *, cutoff: float = 0.6) -> str | None:
    """Which of the names is most like another: of those that only differ in a number (bands, wavelengths) the one of the nearest
    number, as C005 for C5 and 1501.8 nm for 1500; else the one of the most like letters, None where that is below `cutoff`."""

    def numbered(text: str) -> tuple[str, float, str] | None:
        parts = re.fullmatch(r"(\D*)(\d+(?:\.\d+)?)(\D*)", text.strip())
        return (parts[1].lower().strip(), float(parts[2]), parts[3].lower().strip()) if parts else None

    wanted = numbered(name)
    if wanted is not None:
        known = [(abs(found[1] - wanted[1]), each) for each in names if (found := numbered(each)) and _alike(wanted, found)]
        if known:
            return min(known, key=lambda pair: pair[0])[1]
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return near[0] if near else None


def _alike(wanted: tuple[str, float, str], found: tuple[str, float, str]) -> bool:
    """Whether what stands before and behind the numbers of two names is the same, or is left out in the wanted one."""
    return (wanted[0], wanted[2]) in ((found[0], found[2]), ("", ""))


def shortened(names: Sequence[str], *, most: int = 8) -> str:
    """Names for a sentence: of more than `most` the first four and the last."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:4])}, … {names[-1]}"
