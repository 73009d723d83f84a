"""What the command line does, from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from auxmae.errors import UsageError
from auxmae.settings import Loaded, load_settings
from auxmae.settings.schema import SettingsTree
from auxmae.training import session
from auxmae.training.progress import WarningReporter
from auxmae.training.result import TrainingResult


def train(settings: Loaded | SettingsTree | Mapping[str, Any] | str | Path | None = None, **options: Any) -> TrainingResult:
    """Pre-trains a masked autoencoder.

    It seeds the global generators of torch, numpy and random.  Ctrl-C finishes the step, writes a checkpoint and returns, with
    "interrupted" as the outcome's reason and no held-out error; a second one, more than a second later, raises KeyboardInterrupt.

    Args:
        settings: what `load_settings` gave, or its settings tree; or {"table": {"key": value}} over the defaults and the
            environment, without any file; or the path of a TOML file; or None for `auxmae.toml` in the working directory, if
            there is one.  None with `resume`, which goes on with the run's own and reads no other.
        options: `resume`, `overrides`, `init_from`, `fast_dev_run`, `reporter`, `progress` of `training.session.train`.  Without
            a reporter nothing is printed, and what looks wrong is a Python warning; `training.progress.LineReporter` prints
            lines as the command does, and any object with the methods of `training.progress.Reporter` is told every step.

    Raises:
        AuxMAEError: whatever the user can mend, with a hint.
        TypeError: settings of another type.
    """
    if options.get("resume") is not None:
        if settings is not None:
            raise UsageError(
                "resume goes on exactly as before, so settings cannot be given with it",
                hint='overrides=["table.key=value"] changes those of the machine; for others, start a new run with init_from',
            )
        settings = SettingsTree()  # in whose place come the run's own
    if isinstance(settings, Mapping):
        settings = load_settings(None, tables=settings)
    elif settings is None or isinstance(settings, (str, Path)):
        settings = load_settings(None if settings is None else Path(settings))
    tree = settings.settings if isinstance(settings, Loaded) else settings
    if not isinstance(tree, SettingsTree):
        raise TypeError(f"settings must be a settings tree, a dict of tables or a path, not {type(tree).__name__}")
    return session.train(tree, **{"reporter": WarningReporter(), **options})
