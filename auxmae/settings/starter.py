"""Writing settings as TOML with comments: the starter file, and the effective settings that a run folder keeps."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from auxmae.errors import SettingsError
from auxmae.settings import wording
from auxmae.settings.presets import PRESETS
from auxmae.settings.schema import SettingsTree
from auxmae.writing import write_text

COMMENT_WIDTH = 100

_STARTER_HEADER = """\
AuxMAE settings: `auxmae train` reads this file where it lies in the working directory, or by --config PATH.
Precedence: command line (--set train.epochs=9) > environment (AUXMAE_TRAIN__EPOCHS=9) > this file > preset > defaults.
`auxmae config show` prints the effective values and where each comes from, `auxmae config validate` checks them.
A setting that is commented out (#key = value) is left to model.preset; uncomment it to choose for yourself."""

_RUN_HEADER = """\
The effective settings of this run. `auxmae train --config THIS-FILE --output ANOTHER-FOLDER` trains the same again.
Weights that it started from are not in here: add the same --init-from."""


def preset_settings(preset: str) -> SettingsTree:
    """The defaults with a preset over them.

    Raises:
        SettingsError: there is no such preset.
    """
    if preset not in PRESETS:
        near = wording.did_you_mean(wording.nearest(preset, PRESETS))
        expected = ", ".join(wording.show(name) for name in PRESETS)
        raise SettingsError(f"--preset: {wording.show(preset)} is no preset, expected one of {expected}{near}")
    tables: dict[str, dict[str, Any]] = {name: dict(values) for name, values in PRESETS[preset].items()}
    tables.setdefault("model", {})["preset"] = preset
    return SettingsTree.model_validate(tables)


def starter_text(preset: str = "tiny") -> str:
    """A TOML file with every setting explained; those that a preset sets are commented out, to leave them to it.

    Raises:
        SettingsError: there is no such preset.
    """
    left_out = {f"{name}.{key}" for tables in PRESETS.values() for name, table in tables.items() for key in table}
    return _text(preset_settings(preset), _STARTER_HEADER, frozenset(left_out))


def settings_text(settings: SettingsTree) -> str:
    """Every value of `settings` as commented TOML, which reads back as equal settings."""
    return _text(settings, _RUN_HEADER, frozenset())


def write_settings(settings: SettingsTree, path: Path) -> Path:
    """Write `settings_text` to `path`, whole or not at all.

    Raises:
        AuxMAEError: the file cannot be written.
    """
    return write_text(path, settings_text(settings))


def _text(settings: SettingsTree, header: str, left_out: frozenset[str]) -> str:
    lines = [f"# {line}" for line in header.splitlines()]
    for name, table in wording.tables().items():
        lines += ["", f"[{name}] # {SettingsTree.model_fields[name].description}"]
        values = getattr(settings, name)
        for key, field in table.model_fields.items():
            explanation = f"{field.description}. Takes {wording.expectation(name, key)}."
            wrapped = textwrap.wrap(explanation, COMMENT_WIDTH, break_long_words=False, break_on_hyphens=False)
            lines += [f"# {line}" for line in wrapped]
            # "#key", where explanations have "# text": only a hash to take away.
            hash_ = "#" if f"{name}.{key}" in left_out else ""
            lines.append(f"{hash_}{key} = {_value(getattr(values, key))}")
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """A setting's value as TOML: the few types that settings have, so that no package is needed to write a run's."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's, which also wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())}}}"
    raise TypeError(f"{type(value).__name__} is no type of a setting")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)
