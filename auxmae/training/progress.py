"""How training shows itself: a live display on a terminal, plain lines off it, nothing at all."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Reporter(Protocol):
    """What the trainer tells while it works."""

    def start(self, total_steps: int, step: int) -> None: ...

    def step(self, step: int, values: dict[str, Any]) -> None: ...

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def stop(self) -> None: ...


class SilentReporter:
    """Says nothing."""

    def start(self, total_steps: int, step: int) -> None: ...

    def step(self, step: int, values: dict[str, Any]) -> None: ...

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def stop(self) -> None: ...


def _duration(seconds: float) -> str:
    seconds = max(round(seconds), 0)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _facts(values: dict[str, Any]) -> str:
    return (
        f"loss {values['loss']:.4f}  lr {values['learning_rate']:.1e}  {values['images_per_second']:.0f} images/s  "
        f"{_duration(values['seconds_left'])} left"
    )


class QuietReporter(SilentReporter):
    """Says on stderr what looks wrong, and nothing else."""

    def warning(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)


class WarningReporter(SilentReporter):
    """Says what looks wrong as Python's warnings do, for who calls it from Python, and nothing else."""

    def warning(self, text: str) -> None:
        warnings.warn(text, stacklevel=2)


class LiveReporter:
    """A rich progress bar: loss, learning rate, images/s, time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self.task: TaskID | None = None

    def start(self, total_steps: int, step: int) -> None:
        self.progress.start()
        self.task = self.progress.add_task("train", total=total_steps, completed=step, epoch=1, facts="")

    def step(self, step: int, values: dict[str, Any]) -> None:
        if self.task is not None:
            self.progress.update(self.task, completed=step, epoch=values["epoch"] + 1, facts=_facts(values))

    def message(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def warning(self, text: str) -> None:
        self.message(f"warning: {text}")

    def stop(self) -> None:
        self.progress.stop()


class LineReporter:
    """A plain line now and then, so that a log file shows how it goes."""

    def __init__(self, console: Console, seconds: float = 10.0) -> None:
        self.console = console
        self.seconds = seconds
        self.total = 0
        self.printed = 0.0

    def start(self, total_steps: int, step: int) -> None:
        self.total = total_steps

    def step(self, step: int, values: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self.printed >= self.seconds or step >= self.total:
            self.printed = now
            line = f"epoch {values['epoch'] + 1}  step {step}/{self.total}  {_facts(values)}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        self.message(f"warning: {text}")

    def stop(self) -> None: ...


class EnduringReporter:
    """Passes on to another one until its output is gone: a training outlives the terminal or the pipe that it speaks to."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter: Reporter = reporter

    def _tell(self, call: Callable[[Reporter], None]) -> None:
        try:
            call(self.reporter)
        except (OSError, SystemExit):  # rich makes the latter of a broken pipe
            self.reporter = SilentReporter()
            with contextlib.suppress(OSError):
                print("note: the output is closed; the training goes on without it", file=sys.stderr, flush=True)

    def start(self, total_steps: int, step: int) -> None:
        self._tell(lambda reporter: reporter.start(total_steps, step))

    def step(self, step: int, values: dict[str, Any]) -> None:
        self._tell(lambda reporter: reporter.step(step, values))

    def message(self, text: str) -> None:
        self._tell(lambda reporter: reporter.message(text))

    def warning(self, text: str) -> None:
        self._tell(lambda reporter: reporter.warning(text))

    def stop(self) -> None:
        self._tell(lambda reporter: reporter.stop())


def make_reporter(console: Console) -> Reporter:
    """The live display on a terminal, plain lines elsewhere."""
    return EnduringReporter(LiveReporter(console) if console.is_terminal else LineReporter(console))
