"""The folder in which an output grows, so that an interrupted export goes on and a finished one appears at once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from auxmae.errors import AuxMAEError, UsageError
from auxmae.export.extract import FACTS
from auxmae.locking import take_lock

# After a crash of the machine at most this much work is done again; a signal loses nothing.
SAVE_SECONDS = 5.0


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turns faults of the file system into one line."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space; the same command then goes on (without --restart)" if full else "choose another --output"
        raise AuxMAEError(f"{output}: cannot be written: {error.strerror or error}", hint=hint) from error


def workspace_folder(output: Path) -> Path:
    """Where an output grows."""
    return output.with_name(f".{output.name}.part")


def has_all_rows(output: Path) -> bool:
    """Whether the workspace of an output holds every row: an interrupted export may have begun to publish them."""
    state = _read_json(workspace_folder(output) / "progress.json") or {}
    return bool(state.get("rows")) and state["rows"] == state.get("total")


class Workspace:
    """Features and facts of the rows done so far, beside the output as `.NAME.part/`.

    Use as a context manager: leaving it saves, whatever the reason for leaving.

    Args:
        output: where the finished output is to lie.
        identity: what the features depend on, by name; a workspace of another identity is refused.
        total: rows in all.
        restart: forget what an earlier export left.

    Raises:
        UsageError: the workspace is in use, or of other inputs.
        AuxMAEError: it cannot be written.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], total: int, *, restart: bool = False) -> None:
        self.output, self.total = output, total
        self.folder = workspace_folder(output)
        self.units = self.rows = self.width = self.header = 0
        self.saved = time.monotonic()
        self._streams: list[BinaryIO] = []
        with writing(output):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = take_lock(self.folder / "lock")
            except BlockingIOError as error:
                raise UsageError(f"{output}: another export is writing it", hint="wait, or choose another --output") from error
            try:
                if restart:
                    for path in self.folder.iterdir():
                        if path.name != "lock":
                            shutil.rmtree(path) if path.is_dir() else path.unlink()
                self._take_up(dict(identity))
            except BaseException:
                # Whoever holds on to the exception holds on to this workspace, and with it to the lock.
                self._close()
                raise

    @property
    def features_path(self) -> Path:
        return self.folder / "features.npy"

    @property
    def facts_path(self) -> Path:
        return self.folder / "facts.bin"

    def _take_up(self, identity: dict[str, Any]) -> None:
        state = _read_json(self.folder / "progress.json") or {}
        # Where nothing is done yet, there is nothing to go on with.
        stored = _read_json(self.folder / "identity.json") if state.get("rows") else None
        if stored is not None and stored != identity:
            changed = sorted(name for name in {*stored, *identity} if stored.get(name) != identity.get(name))
            raise UsageError(
                f"{self.output}: an interrupted export lies in {self.folder}, and since then there changed: {', '.join(changed)}",
                hint="add --restart to begin anew, or choose another --output",
            )
        if stored is None:
            _write_json(self.folder / "identity.json", identity)
        else:
            self.units, self.rows, self.width, self.header = (state[key] for key in ("units", "rows", "width", "header"))
        for path, size in (
            (self.features_path, self.header + 4 * self.rows * self.width),
            (self.facts_path, FACTS.itemsize * self.rows),
        ):
            stream = path.open("r+b" if path.exists() else "w+b")
            self._streams.append(stream)
            if stream.seek(0, os.SEEK_END) < size:
                raise UsageError(f"{path}: shorter than what was written", hint="add --restart to begin anew")
            # What came after the last save may be a fragment.
            stream.truncate(size)
            stream.seek(size)

    def append(self, units: int, features: NDArray[np.float32], facts: NDArray[np.void]) -> None:
        """Adds the rows of some units: (n, D) and (n,)."""
        with writing(self.output):
            stream, beside = self._streams
            if not self.width:
                shape = (self.total, features.shape[1])
                np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
                self.header, self.width = stream.tell(), features.shape[1]
            stream.write(np.ascontiguousarray(features, dtype="<f4").data)
            beside.write(np.ascontiguousarray(facts).tobytes())
            stream.flush()
            beside.flush()
            self.units, self.rows = self.units + units, self.rows + len(features)
            if time.monotonic() - self.saved >= SAVE_SECONDS:
                self.save()

    def save(self) -> None:
        """Makes what was appended last."""
        with writing(self.output):
            for stream in self._streams:
                stream.flush()
                os.fsync(stream.fileno())
            state = {"units": self.units, "rows": self.rows, "total": self.total, "width": self.width, "header": self.header}
            _write_json(self.folder / "progress.json", state)
            self.saved = time.monotonic()

    def remove(self) -> None:
        """Clears the workspace away: the output is finished."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        for stream in self._streams:
            # On a full disk closing fails too, and has been reported already.
            with contextlib.suppress(OSError):
                stream.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._lock.closed:
            try:
                self.save()
            except AuxMAEError:
                # The first fault is the one to report; the progress file is still that of the save before.
                if kind is None:
                    raise
            finally:
                self._close()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (FileNotFoundError, ValueError):
        return None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
