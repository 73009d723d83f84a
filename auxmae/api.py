"""What the command line does, from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from auxmae.settings import load_settings
from auxmae.settings.schema import SettingsTree
from auxmae.training import session
from auxmae.training.session import TrainingResult


def train(settings: SettingsTree | Mapping[str, Any] | str | Path | None = None, **options: Any) -> TrainingResult:
    """Pre-trains a masked autoencoder.

    Args:
        settings: a settings tree; or {"table": {"key": value}} over the defaults and the environment; or the path of a
            TOML file; or None for `auxmae.toml` in the working directory, if there is one.
        options: `resume`, `init_from`, `fast_dev_run`, `reporter`, `progress` of `training.session.train`.

    Raises:
        AuxMAEError: whatever the user can mend, with a hint.
    """
    if isinstance(settings, Mapping):
        settings = load_settings(None, tables=settings).settings
    elif not isinstance(settings, SettingsTree):
        settings = load_settings(None if settings is None else Path(settings)).settings
    return session.train(settings, **options)
