"""What can be set, where it comes from, how it is written: see `schema.py`, `presets.py`, `sources.py`, `starter.py`."""

from auxmae.settings.presets import PRESETS
from auxmae.settings.schema import SettingsTree
from auxmae.settings.sources import (
    FILE_NAME,
    InvalidSettingsError,
    Loaded,
    check_run_settings,
    load_settings,
    override_names,
    settings_from_toml,
    unread_variables,
)
from auxmae.settings.starter import preset_settings, settings_text, starter_text, write_settings

__all__ = [
    "FILE_NAME",
    "PRESETS",
    "InvalidSettingsError",
    "Loaded",
    "SettingsTree",
    "check_run_settings",
    "load_settings",
    "override_names",
    "preset_settings",
    "settings_from_toml",
    "settings_text",
    "starter_text",
    "unread_variables",
    "write_settings",
]
