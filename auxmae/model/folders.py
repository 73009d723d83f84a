"""Where a saved model lies: a name → the folder that holds its `config.json` and `model.safetensors`.

That is a folder written by `save_pretrained`, one downloaded from the Hugging Face hub, or a checkpoint of a run:
RUN/checkpoints/best or RUN/checkpoints/last.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from auxmae.errors import CheckpointError, UsageError, first_line
from auxmae.places import expanded, quoted

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
# What a run folder is known by.
SETTINGS_NAME = "settings.toml"
RUNS = Path("runs")
# Holds when a run was started: the times of files tell when somebody last edited, resumed or copied it.
STARTED_NAME = ".started"


def find_model(name: str | Path, **options: Any) -> Path:
    """The folder of a saved model; what is on the hub is downloaded.

    Args:
        name, options: see `AuxMAE.from_pretrained`.

    Raises:
        CheckpointError: nothing there, or no model in what is there.
        TypeError: options for a folder, or unknown ones.
        UsageError: "last", and there is no run.
    """
    folder = find_checkpoint(locate(name))
    if not folder.is_dir():
        folder = _download(str(name), options)
    elif options:
        raise TypeError(f"{folder} is a folder, and nothing is downloaded: {', '.join(options)} cannot apply")
    if (folder / CONFIG_NAME).is_file():
        return folder
    if (folder / "checkpoints").is_dir():
        return checkpoint_of_run(folder)
    raise CheckpointError(f"{folder}: no {CONFIG_NAME}", hint="give a run folder or a checkpoint folder")


def locate(name: str | Path) -> Path:
    """The path that a name means: "last" is the newest run under runs/.

    Raises:
        UsageError: "last", and there is no run; or an empty name.
    """
    if not str(name).strip():
        raise UsageError("the name of a run or model is empty", hint="give a run folder, or 'last' for the newest under runs/")
    if str(name) != "last":
        return expanded(name)
    runs = [path.parent for path in RUNS.glob(f"*/{SETTINGS_NAME}")]
    if not runs:
        raise UsageError(
            f"there is no run under {RUNS.resolve()} yet", hint="auxmae train makes one, or give a run folder's path"
        )
    return max(runs, key=lambda path: (started(path), path.name))


def started(run: Path) -> float:
    """When a run was started, in seconds since the epoch.

    Raises:
        OSError: there is no run.
    """
    with suppress(OSError, ValueError):
        return float((run / STARTED_NAME).read_text(encoding="utf-8"))
    # In runs of before this file is the one that is written once.
    noted = run / "data.json"
    return (noted if noted.is_file() else run / SETTINGS_NAME).stat().st_mtime


def checkpoint_of_run(run: Path, which: str = "best") -> Path:
    """The folder of a run's checkpoint, "best" or "last"; without validation there is no best one, and the last is taken.

    Raises:
        CheckpointError: there is none.
    """
    for name in (which, "last"):
        folder = find_checkpoint(run / "checkpoints" / name)
        if folder.is_dir():
            return folder
    if find_checkpoint(run / "checkpoints" / "best").is_dir():
        raise CheckpointError(
            f"{run}: its last checkpoint is missing",
            hint=f"put it back, or use the best one: a new training by --init-from {quoted(run)}, all else by --checkpoint best",
        )
    raise CheckpointError(
        f"{run}: there is no checkpoint in it; the first is written at the end of an epoch, or when a training is stopped",
        hint="delete the folder and train anew, or name another run",
    )


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint at `folder`, or the one that an interrupted swap left beside it."""
    old = set_aside(folder)
    return old if old.is_dir() and not folder.is_dir() else folder


def set_aside(checkpoint: Path) -> Path:
    """Where a checkpoint lies while another takes its place."""
    return checkpoint.parent / f".{checkpoint.name}.old"


def _download(name: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    hint = "give a run folder, 'last', a checkpoint folder, or OWNER/NAME on the hub"
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(f"{name}: no such folder", hint=hint)
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME], **options))
    except TypeError:
        raise  # unknown options
    except Exception as error:  # those of the hub's HTTP client have no base class that all its releases share
        raise CheckpointError(f"{name}: no such folder, and the hub cannot give it: {first_line(error)}", hint=hint) from error
