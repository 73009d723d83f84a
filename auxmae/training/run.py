"""The run folder: settings.toml, data.json, metrics.jsonl, checkpoints/, figures/, result.json, report.html."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from auxmae.errors import CheckpointError, DataError, UsageError, first_line
from auxmae.locking import take_lock
from auxmae.model.folders import RUNS, SETTINGS_NAME, STARTED_NAME, checkpoint_of_run, find_checkpoint, locate
from auxmae.model.mae import AuxMAE
from auxmae.places import expanded, quoted
from auxmae.settings import check_run_settings, settings_from_toml, wording, write_settings
from auxmae.settings.schema import SettingsTree
from auxmae.training.checkpoint import load_state, way_to_write
from auxmae.writing import replacing

# A file of this name marks the folder of a training that stopped after a few steps on purpose.
FAST_DEV_RUN_NAME = ".fast-dev-run"
# How steps are computed, not what: all that a run that goes on may be given anew, as another machine may want it.
OF_THE_MACHINE = (
    "data.workers", "kernels.backend", "run.device", "run.threads", "train.compile", "train.cuda_graphs", "train.precision",
)  # fmt: skip
# Of [train], how long, and what is measured and kept on the way: of no weight in any step, save for the learning rate's schedule.
OF_THE_LENGTH = (
    "checkpoint_minutes", "deterministic", "epochs", "figure_every", "max_minutes", "max_steps", "patience", "probe_every",
    "recompute", "tolerance", "validate_every", "validation_samples",
)  # fmt: skip
# Of [data], where images and labels lie, as they may have moved, which other files lie there by now, and which labels count: what
# comes of it is compared itself.
OF_THE_PLACE = ("exclude", "ignored_labels", "labels", "source")


def decisive(settings: SettingsTree) -> dict[str, Any]:
    """What a run that goes on has to find as it was, by "table.key": else its steps would be of two trainings, or not of what
    its settings say."""
    content = settings.model_dump(mode="json", include={"data", "scaling", "model", "masking", "loss", "train"})
    content["data"] = {key: value for key, value in content["data"].items() if key not in OF_THE_PLACE}
    content["train"] = {key: value for key, value in content["train"].items() if key not in OF_THE_LENGTH}
    named = {f"{table}.{key}": value for table, own in content.items() for key, value in own.items()}
    return {name: value for name, value in named.items() if name not in OF_THE_MACHINE}


def way_to_change(name: str) -> str:
    """What to do where --resume is given another value of a setting, "table.key", than the run's."""
    defaults = SettingsTree()
    known = {f"{table}.{key}" for table, own in defaults.model_dump().items() for key in own}
    if name not in known or name in decisive(defaults) or name == "run.folder":
        return "to change something, start a new run with --init-from"
    beside = {
        "train.epochs": " in place of train.max_steps, and raise train.max_minutes, which holds too",
        "train.max_steps": ", and raise train.max_minutes, which holds too",
    }
    return f"write it into the run's {SETTINGS_NAME}{beside.get(name, '')}; then give --resume alone"


@dataclass(frozen=True)
class RunFolder:
    """A run on disk; everything needed to use the model again lies in it, and nothing outside it is referred to."""

    path: Path

    @property
    def settings(self) -> SettingsTree:
        """The effective settings of the run."""
        return settings_from_toml(self.path / SETTINGS_NAME)

    @property
    def is_fast_dev_run(self) -> bool:
        """Whether its training was of a few steps, to see that everything works, whatever its settings say."""
        return (self.path / FAST_DEV_RUN_NAME).exists()

    def mark_fast_dev_run(self) -> None:
        """Notes that it is such a run."""
        (self.path / FAST_DEV_RUN_NAME).touch()

    def note_machine(self, settings: SettingsTree, step: int) -> list[str]:
        """Keeps what a resumed run goes on with, of the settings in `OF_THE_MACHINE`, and logs what they were before.

        Args:
            settings: those that it goes on with.
            step: the last one that was computed as before.

        Returns:
            What has changed, each in words.
        """
        before, after = dict[str, Any](), dict[str, Any]()
        own = self.settings
        for name in OF_THE_MACHINE:
            table, _, key = name.partition(".")
            old, new = getattr(getattr(own, table), key), getattr(getattr(settings, table), key)
            if old != new:
                before[name], after[name] = old, new
        if after:
            write_settings(settings, self.path / SETTINGS_NAME)
            self.log({"kind": "settings", "step": step, "before": before, "after": after})
        return [f"{name} = {wording.show(value)} in place of {wording.show(before[name])}" for name, value in after.items()]

    def check_settings(self, settings: SettingsTree) -> None:
        """Compares the `decisive` settings of a training that goes on with those that its last checkpoint was trained with.

        Raises:
            CheckpointError: that is missing or broken.
            UsageError: somebody has changed one.
        """
        now = decisive(settings)
        # Not in checkpoints of before, or not all.  The optimiser's numbers are not needed here.
        trained_with = load_state(self.checkpoint("last"), mapped=True).get("settings", {})
        for name, before in trained_with.items():
            if name in now and now[name] != before:
                raise UsageError(
                    f"{self.path / SETTINGS_NAME}: {name} = {wording.show(now[name])}, and the run was trained with "
                    f"{wording.show(before)}: --resume goes on exactly as before",
                    hint=f"put it back, or start a new run: --init-from {quoted(self.path)}",
                )

    def check_channels(self, now: Sequence[str], trained_on: Sequence[str]) -> None:
        """Compares the channels' names with those that the model was trained on.

        Raises:
            DataError: they are others, or in another order.
        """
        for number, (name, before) in enumerate(zip_longest(now, trained_on, fillvalue="none"), 1):
            if name != before:
                raise DataError(
                    f"{self.settings.data.source}: channel {number} is {name} now, and {self.path} was trained with {before}",
                    hint=f"put the data back as they were, or start a new run: --init-from {quoted(self.path)}",
                )

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def lock(self) -> TextIO:
        """Keeps every other training out until it is closed.

        Raises:
            UsageError: another one has it, or the folder cannot be written to.
        """
        try:
            return take_lock(self.path / ".lock")
        except BlockingIOError as error:
            raise UsageError(f"{self.path}: another training is writing it", hint="wait for it, or stop it") from error
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written: {error.strerror}", hint="check who may write there") from error

    def checkpoint(self, which: str) -> Path:
        """The folder of the checkpoint "best" or "last"."""
        return find_checkpoint(self.path / "checkpoints" / which)

    def available(self, which: str) -> str:
        """Which checkpoint `load_model` takes, "best" or "last", where it finds one."""
        return which if self.checkpoint(which).is_dir() else "last"

    def load_model(self, which: str = "best") -> AuxMAE:
        """The model of a checkpoint; without validation there is no best one, and the last is taken.

        Raises:
            CheckpointError: there is none, or it is broken.
        """
        return AuxMAE.from_pretrained(checkpoint_of_run(self.path, which))

    def check_there(self) -> None:
        """To be called before a training writes: nothing is to grow where the folder was.

        Raises:
            CheckpointError: somebody has moved or deleted it.
        """
        if not self.path.is_dir():
            raise CheckpointError(
                f"run folder {self.path} no longer exists (moved or deleted)",
                hint="where it was moved, go on from its last checkpoint: auxmae train --resume ITS-NEW-PLACE",
            )

    def note_data(self, data: str, split: str, files: str, pixels: list[list[float]]) -> None:
        """Notes what the run trains on: the data in words, and what `changed_data` compares.

        Args:
            split, files: digests of the split, and of the files' names and sizes.
            pixels: a sample of them, see `Data.sample_pixels`.
        """
        self.write_json("data.json", {"data": data, "split": split, "files": files, "pixels": pixels})

    @property
    def knows_data(self) -> bool:
        """Whether it was noted what the run was trained on."""
        return (self.path / "data.json").is_file()

    def changed_data(self, split: str, files: str, pixels: list[list[float]] | None = None) -> str | None:
        """What the run was trained on, in words, where something else was noted then; else None.

        Raises:
            CheckpointError: what was noted is broken.
        """
        path = self.path / "data.json"
        if not self.knows_data:
            return None
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
            data, same = str(noted["data"]), (noted["split"], noted["files"]) == (split, files)
            if same and pixels is not None and "pixels" in noted:  # not in runs of before
                before = noted["pixels"]
                # Runs of before have one number of each image.
                now = pixels if isinstance(before[0], list) else [numbers[0] for numbers in pixels]
                # Another release of a library may decode a JPEG to slightly other values.
                same = np.shape(before) == np.shape(now) and np.allclose(before, now, rtol=1e-3, atol=0)
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise CheckpointError(
                f"{path}: broken: {first_line(error)}", hint="delete it: then nobody asks whether the data are the run's own"
            ) from error
        return None if same else data

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl.

        Raises:
            CheckpointError: the run folder is gone, or the disk is full or not writable.
        """
        self.check_there()
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            saved = self.checkpoint("last").is_dir() and not self.is_fast_dev_run
            going_on = f", then go on with: auxmae train --resume {quoted(self.path)}" if saved else "; nothing was saved yet"
            raise CheckpointError(
                f"{self.metrics_path}: cannot be written: {error.strerror}", hint=way_to_write(error.errno) + going_on
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl that are whole."""
        return self._read_metrics()[0]

    def _read_metrics(self) -> tuple[list[dict[str, Any]], int]:
        """The records, and how many lines are none: that of a killed run may be a fragment, a bad disk damages any."""
        lines = self.metrics_path.read_bytes().splitlines() if self.metrics_path.exists() else []
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step", 0), (int, float)):
                records.append(record)
        return records, len(lines) - len(records)

    def truncate_metrics(self, step: int) -> int:
        """Forgets what was logged after `step`, so that a resumed run logs it once; how many lines were unreadable."""
        records, unreadable = self._read_metrics()
        kept = [record for record in records if record.get("step", 0) <= step]
        with replacing(self.metrics_path) as draft:
            draft.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        return unreadable

    def write_json(self, name: str, content: object) -> Path:
        """Writes a JSON document into the folder, whole or not at all.

        Raises:
            OSError: it cannot be written; the one from before is untouched.
        """
        path = self.path / name
        with replacing(path) as draft:
            # Bytes of a path that are no UTF-8 become JSON's escapes: nothing that was measured is lost by a folder's name.
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        return path


def check_unused(folder: str) -> None:
    """Says at once, before any work, that a run folder holds something already.

    Raises:
        UsageError: it does, cannot be looked into, or names a variable that is not there.
    """
    path = expanded(folder)
    if variable := re.search(r"\$([A-Za-z_]\w*)|\$\{(\w+)\}", str(path)):
        # In a shell its name would mean another folder, which a later rm takes too.
        raise UsageError(
            f"{path}: the run folder is named by {variable[1] or variable[2]}, which is not set",
            hint="set it, or choose another --output (run.folder)",
        )
    try:
        used = folder != "auto" and path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise UsageError(f"{path}: the run folder cannot be made: {error.strerror}", hint="choose another --output") from error
    if used:
        trial = RunFolder(path).is_fast_dev_run
        others = [f"delete {quoted(path)}"] if trial else []
        if not trial and (path / SETTINGS_NAME).is_file():
            last, best = (RunFolder(path).checkpoint(which).is_dir() for which in ("last", "best"))
            # What is in a run that has only a best checkpoint is worth keeping, and not to be gone on with.
            others = [f"go on with it: auxmae train --resume {quoted(path)}"] if last else []
            if not last and not best:
                others = [f"delete {quoted(path)}, which has no checkpoint, where no training is writing it"]
        raise UsageError(
            f"{path} {'holds a trial by --fast-dev-run' if trial else 'is not empty'}, and a run overwrites nothing",
            hint=", or ".join(["choose another --output", *others]),
        )


def create_run(folder: str, settings: SettingsTree, *, locks: ExitStack | None = None) -> RunFolder:
    """Makes a run folder and writes the effective settings into it.

    Args:
        folder: the path, or "auto" for runs/DATE-TIME.
        locks: until it is closed the folder is locked, see `RunFolder.lock`.

    Raises:
        UsageError: the folder holds something already, is being written, or cannot be made.
    """
    try:
        path = _new_folder() if folder == "auto" else expanded(folder)
        check_unused(str(path))
        path.mkdir(parents=True, exist_ok=True)
        run = RunFolder(path)
        if locks is not None:
            locks.enter_context(run.lock())
        run.figures.mkdir(exist_ok=True)
        (path / "checkpoints").mkdir(exist_ok=True)
        (path / STARTED_NAME).write_text(f"{time.time()}\n", encoding="utf-8")
        write_settings(settings, path / SETTINGS_NAME)
    except OSError as error:
        place = RUNS if folder == "auto" else folder
        raise UsageError(f"{place}: the run folder cannot be made: {error.strerror}", hint="choose another --output") from error
    return run


def _new_folder() -> Path:
    """runs/DATE-TIME, made by this process: others may begin in the same second."""
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    path, attempt = RUNS / stamp, 1
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            attempt += 1
            path = RUNS / f"{stamp}-{attempt}"
        else:
            return path


def open_run(name: str | Path) -> RunFolder:
    """Opens a run folder by path, or the newest one under runs/ as "last".

    Raises:
        UsageError: there is no such run, or its settings are not whole.
    """
    path = locate(name)
    if not (path / SETTINGS_NAME).is_file():
        reason = "no such folder" if not path.exists() else f"no run folder: it holds no {SETTINGS_NAME}"
        raise UsageError(f"{path}: {reason}", hint="name a run folder, or 'last' for the newest one under runs/")
    check_run_settings(path / SETTINGS_NAME)
    return RunFolder(path)
