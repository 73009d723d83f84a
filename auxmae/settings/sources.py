"""Where settings come from: command line > environment > file > preset > defaults; and how their faults are told.

Each source becomes a layer of checked keys; pydantic-settings puts the layers over each other and validates the result.
A setting is taken whole from the highest layer that has it (`masking.mixture` too).
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tomli
from pydantic import ValidationError

from auxmae.errors import SettingsError
from auxmae.places import expanded
from auxmae.settings import wording
from auxmae.settings.document import Document, KeyPath, read_document
from auxmae.settings.presets import PRESETS
from auxmae.settings.schema import SettingsTree

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

FILE_NAME = "auxmae.toml"
PREFIX = "AUXMAE_"
# Variables that are no settings: the kernels' own switches, and where the tests find real images.
OTHER_VARIABLES = frozenset({"AUXMAE_AUTOTUNE", "AUXMAE_KERNELS", "AUXMAE_KERNEL_TABLE", "AUXMAE_ONEDNN", "AUXMAE_TEST_DATA"})
# Typed options whose name is not the setting's own.
OPTION_NAMES = {"data.source": "--data", "run.folder": "--output"}

Tables = dict[str, dict[str, Any]]


class InvalidSettingsError(SettingsError):
    """Settings that cannot be used; the message is the first fault.

    Args:
        faults: every fault, one line each.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        others = len(faults) - 1
        hint = f"and {others} more {'fault' if others == 1 else 'faults'}: `faults` of this error lists all"
        super().__init__(faults[0], hint=hint if others else None)
        self.faults = tuple(faults)

    @property
    def lines(self) -> tuple[str, ...]:
        """The faults."""
        return self.faults


class Origin(NamedTuple):
    """Where a value was set.

    Attributes:
        label: as messages name it: `auxmae.toml:12`, a variable, an option; "" for Python, where the setting's name says it.
        rank: 0 preset, 1 file, 2 environment, 3 command line or Python.
    """

    label: str
    rank: int


class Fault(NamedTuple):
    """One thing wrong with the settings."""

    origin: Origin
    text: str  # "table.key: what is wrong, what was expected"

    def __str__(self) -> str:
        line = f"{self.origin.label}: {self.text}" if self.origin.label else self.text
        # Keys and values are the user's: a line break or an escape sequence in them must not reach the terminal.
        return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)

    def place(self) -> tuple[int, int]:
        """Sorts faults: file by line, environment, command line."""
        line = self.origin.label.rpartition(":")[2]
        return self.origin.rank, int(line) if self.origin.rank == 1 and line.isdecimal() else 0


@dataclass
class Layer:
    """The settings of one source, all of them known to the schema."""

    values: Tables = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def put(self, path: KeyPath, value: object, origin: Origin) -> None:
        """Take a value, or record why its key or it is none; a third part of the path is a key of [masking.mixture]."""
        fault = _path_fault(path, value, python=not origin.label)
        if fault is None and not wording.is_utf8(value):
            fault = f"{'.'.join(path)}: {wording.show(value)} is not valid UTF-8 text, expected a name that is"
        if fault is not None:
            self.faults.append(Fault(origin, fault))
            return
        name, key, *inner = path
        table = self.values.setdefault(name, {})
        if inner:
            before = table.get(key)
            value = {**(before if isinstance(before, dict) else {}), inner[0]: value}
        table[key] = value
        self.origins[f"{name}.{key}"] = origin


@dataclass(frozen=True)
class Loaded:
    """Effective settings, the file that was read (None: no file), and where each `table.key` came from."""

    settings: SettingsTree
    file: Path | None
    origins: dict[str, str]


def load_settings(
    config: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
    tables: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    environ_tables: Container[str] | None = None,
    cwd: Path | None = None,
) -> Loaded:
    """Find, merge and check all settings.

    Args:
        config: a TOML file; None: `auxmae.toml` of the working directory, where there is one, and no file beside `tables`.
        overrides: `table.key=value` texts of `--set`; a value is TOML, or text where it is not. Wins over `options`.
        options: values of typed options by `table.key`; None stands for an option that was not given.
        tables: {"table": {"key": value}} from Python; stands over the environment, as the command line does.
        environ: the environment (default: the process's own); `AUXMAE_TABLE__KEY` variables are read.
        environ_tables: the tables that are read from there, all where it is None; variables of other tables are checked alone.
        cwd: the working directory (default: the process's own); a relative `config` is found there.

    Raises:
        SettingsError: anything that is wrong, on one line: where, the key, what was expected, the nearest valid key.
    """
    path, name = (None, FILE_NAME) if config is None and tables is not None else _locate(config, cwd)
    document = read_document(path, name) if path is not None else None
    layers = [
        _command_line(overrides, options or {}, tables or {}),
        _environment(os.environ if environ is None else environ, environ_tables),
        _file(document) if document is not None else Layer(),
    ]
    layers.append(_preset(layers))
    origins: dict[str, Origin] = {}
    for layer in reversed(layers):
        origins.update(layer.origins)
    faults = [fault for layer in layers for fault in layer.faults]
    try:
        settings = _validate(layers, path)
    except ValidationError as error:
        faults.extend(_faults_of(error, layers, origins))
    if faults:
        raise InvalidSettingsError([str(fault) for fault in sorted(faults, key=Fault.place)])
    labels = {key: origins[key].label if key in origins else "default" for key in wording.keys()}  # noqa: SIM118
    return Loaded(settings, path, labels)


def settings_from_toml(path: Path) -> SettingsTree:
    """The settings of one file, its preset and the defaults, whatever the environment says.

    Raises:
        SettingsError: as `load_settings`.
    """
    return load_settings(path, environ={}).settings


def check_run_settings(path: Path) -> None:
    """Says that a run's settings file is not the whole one that was written: defaults in its place would be another run's.

    Raises:
        SettingsError: it is not, or cannot be read.
    """
    written = read_document(path, str(path)).data
    own = written.get("data")
    if not all(written.get(name) for name in wording.tables()) or not isinstance(own, dict) or "source" not in own:
        raise SettingsError(f"{path} is empty or incomplete", hint="put back the one that the run wrote")


def _locate(config: Path | None, cwd: Path | None) -> tuple[Path | None, str]:
    folder = Path.cwd() if cwd is None else cwd
    if config is not None:
        return folder / expanded(config), str(config)
    path = folder / FILE_NAME
    return (path if os.path.lexists(path) else None), FILE_NAME


def _command_line(overrides: Sequence[str], options: Mapping[str, object], tables: Mapping[str, object]) -> Layer:
    layer = Layer()
    _put_tables(layer, tables)
    for setting, value in options.items():
        if value is not None:
            path = tuple(setting.split("."))
            option = OPTION_NAMES.get(setting, "--" + path[-1].replace("_", "-"))
            layer.put(path, _from_option(path, value), Origin(option, 3))
    for override in overrides:
        origin = Origin("--set", 3)
        left, equals, text = override.partition("=")
        path = tuple(part.strip() for part in left.split("."))
        if not equals or not all(path):
            text = f"{wording.show(override)} is no setting, expected TABLE.KEY=VALUE, such as train.epochs=50"
            layer.faults.append(Fault(origin, text))
            continue
        _put_text(layer, path, text.strip(), origin)
    return layer


def _put_tables(layer: Layer, tables: Mapping[str, object]) -> None:
    """What a caller in Python gave; None stands for a value that was not given, as in options."""
    origin = Origin("", 3)
    for name, table in tables.items():
        if isinstance(table, Mapping) and table:
            for key, value in table.items():
                path = (str(name), str(key))
                if value is not None or _path_fault(path, None) is not None:
                    layer.put(path, _from_option(path, _plain(value)), origin)
        elif not isinstance(table, Mapping) or name not in wording.tables():
            layer.put((str(name),), dict(table) if isinstance(table, Mapping) else table, origin)


def _plain(value: object) -> object:
    """The same with Python's numbers and lists in place of numpy's."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, KeyPath]]:
    """The variables that name settings or would, and what they name."""
    for variable in sorted(environ):
        name = variable.upper()
        if name.startswith(PREFIX) and name not in OTHER_VARIABLES:
            yield variable, tuple(name.removeprefix(PREFIX).lower().split("__"))


def override_names(overrides: Iterable[str]) -> list[str]:
    """Which settings texts of `--set` are of, "table.key" each."""
    return [text.partition("=")[0].strip() for text in overrides]


def unread_variables(environ: Mapping[str, str], tables: Container[str]) -> list[str]:
    """The variables that set something in other tables than these."""
    return [variable for variable, path in _variables(environ) if _path_fault(path, None) is None and path[0] not in tables]


def _environment(environ: Mapping[str, str], tables: Container[str] | None) -> Layer:
    layer = Layer()
    for variable, path in _variables(environ):
        if _path_fault(path, None) is None:
            if tables is None or path[0] in tables:
                _put_text(layer, path, environ[variable].strip(), Origin(variable, 2))
        else:
            name = variable.upper()
            # Compared without the prefix, which would make everything look alike.
            known = [key.upper().replace(".", "__") for key in wording.keys()]  # noqa: SIM118
            known += [other.removeprefix(PREFIX) for other in OTHER_VARIABLES]
            meant = wording.meant_key(path[0], path[1]) if len(path) == 2 and path[0] in wording.tables() else None
            near = meant.upper().replace(".", "__") if meant else wording.nearest(name.removeprefix(PREFIX), known)
            proposal = wording.did_you_mean(near and PREFIX + near)
            text = f"unknown variable, expected {PREFIX}TABLE__KEY{proposal}"
            layer.faults.append(Fault(Origin(variable, 2), text))
    return layer


def _file(document: Document) -> Layer:
    layer = Layer()
    for name, table in document.data.items():
        if name in wording.tables() and isinstance(table, dict):
            for key, value in table.items():
                layer.put((name, key), value, Origin(document.where((name, key)), 1))
        else:
            layer.put((name,), table, Origin(document.where((name,)), 1))
    return layer


def _preset(layers: Iterable[Layer]) -> Layer:
    """What the preset of the highest layer that names one sets; nothing where its name is wrong: told later.

    Its time limit goes with its epochs: who says how long to train is not cut short by it.
    """
    chosen: object = SettingsTree.model_fields["model"].get_default(call_default_factory=True).preset
    for layer in layers:
        if "model.preset" in layer.origins:
            chosen = layer.values["model"]["preset"]
            break
    preset = Layer()
    if isinstance(chosen, str) and chosen in PRESETS:
        for name, table in PRESETS[chosen].items():
            for key, value in table.items():
                if (name, key) != ("train", "max_minutes") or not any(map(_says_how_long, layers)):
                    preset.put((name, key), value, Origin(f"preset '{chosen}'", 0))
    return preset


def _says_how_long(layer: Layer) -> bool:
    train = layer.values.get("train", {})
    return "epochs" in train or train.get("max_steps", 0) != 0


def _from_option(path: KeyPath, value: object) -> object:
    if isinstance(value, (str, Path)):
        return _from_text(path, str(value))
    return value


def _put_text(layer: Layer, path: KeyPath, text: str, origin: Origin) -> None:
    value = _from_text(path, text)
    if value == text and len(text) > 1 and text[0] == text[-1] == '"' and "\\" in text:
        # Meant as TOML, where a pattern's backslash is an escape: with its quotes it would match nothing.
        fault = f"{'.'.join(path)}: a backslash in double quotes starts an escape, expected {text[1:-1]} without the quotes"
        layer.faults.append(Fault(origin, fault))
        return
    layer.put(path, value, origin)


def _from_text(path: KeyPath, text: str) -> object:
    """A value written as TOML; what is not TOML is text, and so is anything given to a setting that takes any text."""
    try:
        parsed = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if set(parsed) != {"value"}:  # the text goes on after a line break
        return text
    value: object = parsed["value"]
    known = len(path) == 2 and ".".join(path) in wording.keys()  # noqa: SIM118
    if known and wording.takes_text(path[0], path[1]) and not isinstance(value, str):
        return text
    return value


def _path_fault(path: KeyPath, value: object, *, python: bool = False) -> str | None:
    """Why a path names no setting: "train.epoch: unknown setting; did you mean 'train.epochs'?"; None where it does."""
    shown = wording.show(".".join(path))[1:-1]
    tables = wording.tables()
    if len(path) == 1 and path[0] in tables:
        return f"{shown}: {wording.show(value)} is not a table, expected settings such as {shown}.{_first_key(path[0])}"
    if len(path) == 2 and path[0] in wording.keys():  # noqa: SIM118
        return _path_fault(path[:1], {path[1]: value}, python=python)
    both = wording.meant_key("", path[0]) if len(path) == 1 and "." in path[0] else None
    if both is not None and (both == path[0] or not isinstance(value, dict)):
        # The table and the setting in one name.
        form = _nested(both, value) if python else f"{both} without quotes"
        return f"{shown}: unknown setting outside a table, expected {form}"
    if len(path) == 1 and not isinstance(value, (dict, list)):
        meant = wording.meant_key("", path[0]) or wording.nearest(path[0], tables)
        return f"{shown}: unknown setting outside a table, expected TABLE.KEY{wording.did_you_mean(meant)}"
    if path[0] not in tables:
        near = wording.nearest(path[0], tables)
        meant = wording.meant_key(near or path[0], path[1]) if len(path) > 1 else near
        expected = "" if meant else f", expected one of {', '.join(tables)}"
        return f"{shown}: unknown table {wording.show(path[0])}{expected}{wording.did_you_mean(meant)}"
    table = tables[path[0]]
    if path[1] not in table.model_fields:
        meant = wording.meant_key(path[0], path[1])
        expected = "" if meant else f", expected one of {', '.join(table.model_fields)}"
        return f"{shown}: unknown setting{expected}{wording.did_you_mean(meant)}"
    if len(path) > 2 and not (len(path) == 3 and ".".join(path[:2]) == "masking.mixture"):
        setting = ".".join(path[:2])
        return f"{shown}: {setting} is no table{wording.did_you_mean(setting)}"
    return None


def _nested(setting: str, value: object) -> str:
    """A `table.key` and its value as `load_settings` takes them from Python."""
    table, _, key = setting.partition(".")
    written = repr(value)
    short = len(written) <= wording.LONGEST_VALUE and written.isprintable()
    return f'{{"{table}": {{"{key}": {written if short else "…"}}}}}'


def _first_key(table: str) -> str:
    return next(iter(wording.tables()[table].model_fields))


def _validate(layers: Sequence[Layer], path: Path | None) -> SettingsTree:
    # Imported here: it takes as long as the rest of this package together.
    from pydantic_settings import (
        BaseSettings,
        InitSettingsSource,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
        TomlConfigSettingsSource,
    )

    # pydantic-settings merges nested tables key by key; a setting that is itself a table must come whole from a layer.
    taken: set[str] = set()
    values: list[Tables] = []
    for layer in layers:
        free = [key.split(".") for key in layer.origins if key not in taken]
        values.append({})
        for name, key in free:
            values[-1].setdefault(name, {})[key] = layer.values[name][key]
        taken.update(layer.origins)
    command_line, environment, file, preset = values

    class FileSource(TomlConfigSettingsSource):
        def _read_file(self, file_path: object) -> dict[str, Any]:
            return file  # read by tomli, with the line of every key

    class Root(SettingsTree, BaseSettings):
        model_config = SettingsConfigDict(toml_file=path)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: object, **__: object
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                InitSettingsSource(settings_cls, command_line),
                InitSettingsSource(settings_cls, environment),
                FileSource(settings_cls),
                InitSettingsSource(settings_cls, preset),
            )

    root = Root()
    return SettingsTree(**{name: getattr(root, name) for name in SettingsTree.model_fields})


def _faults_of(error: ValidationError, layers: Sequence[Layer], origins: Mapping[str, Origin]) -> list[Fault]:
    faults: dict[str, Fault] = {}  # one a key: a union tells of each of its branches
    for detail in error.errors(include_url=False):
        location = [str(part) for part in detail["loc"][:2]]
        if len(location) == 2 and ".".join(location) in origins:
            key = ".".join(location)
            if key not in faults:
                value = next(layer.values for layer in layers if key in layer.origins)[location[0]][location[1]]
                faults[key] = Fault(origins[key], f"{key}: {_value_fault(location[0], location[1], value, detail, origins[key])}")
        else:
            message = _message(detail)
            key, origin = _involved(location[0] if location else None, message, origins)
            faults[message] = Fault(origin, f"{key}: {message}")
    return list(faults.values())


def _message(detail: ErrorDetails) -> str:
    return str(detail.get("ctx", {}).get("error", detail["msg"]))


def _value_fault(table: str, key: str, value: object, detail: ErrorDetails, origin: Origin) -> str:
    if detail["type"] == "value_error":
        return _message(detail)
    wrong = wording.show(value)
    index = next((part for part in detail["loc"][2:] if isinstance(part, int)), None)
    if index is not None and detail["type"] != "missing":
        wrong = f"item {index + 1}, {wording.show(detail['input'])},"
    meant = wording.nearest(value, wording.choices(table, key)) if isinstance(value, str) else None
    # True or false, in quotes.
    proposal = f"; did you mean {meant}, without quotes?" if meant is not None and meant == value else wording.did_you_mean(meant)
    if isinstance(value, str) and meant is None and index is None:
        meant = wording.meant_value(table, key, value)
        # A shell takes away the quotes of a list; in a file and in Python quotes would make a text of it.
        in_shell = origin.rank > 1 and origin.label
        proposal = wording.did_you_mean(meant) if in_shell else f"; did you mean {meant}?" if meant else ""
        if in_shell and meant == value:
            # Inner quotes, which no shell has taken away.
            proposal = f"; did you mean {meant}, without the inner quotes?"
    return f"{wrong} is wrong, expected {wording.expectation(table, key)}{proposal}"


def _involved(table: str | None, message: str, origins: Mapping[str, Origin]) -> tuple[str, Origin]:
    """The setting to blame for a contradiction: of those that the message names, the first of the highest source."""
    words = re.findall(r"[a-z_]+(?:\.[a-z_]+)?", message)
    named = [word if table is None or "." in word else f"{table}.{word}" for word in words]
    involved = [key for key in named if key in origins]
    if not involved:
        return table or "settings", Origin("settings", 1)
    key = max(involved, key=lambda name: origins[name].rank)
    return key, origins[key]
