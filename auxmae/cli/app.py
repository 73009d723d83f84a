"""The command `auxmae`: registers the commands, and turns faults into one line and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from auxmae import __version__
from auxmae.cli import benchmark, config, data, doctor, embed, eval, init, interrupts, train, visualize
from auxmae.cli.console import print_json, replace_unencodable, require_stdout
from auxmae.cli.processes import say_fault
from auxmae.errors import AuxMAEError


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Ends an interrupted command with a line; Typer would end it without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            interrupts.end()


app = typer.Typer(
    name="auxmae",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Masked autoencoder pre-training for images with any number of channels.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"auxmae {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a fault.")] = False,
) -> None:
    """Masked autoencoder pre-training for images with any number of channels."""


app.command("train", rich_help_panel="Work")(train.command)
app.command("eval", rich_help_panel="Work")(eval.command)
app.command("embed", rich_help_panel="Work")(embed.command)
app.command("visualize", rich_help_panel="Work")(visualize.command)
app.command("benchmark", rich_help_panel="Work")(benchmark.command)
app.command("init", rich_help_panel="Set up")(init.command)
app.add_typer(config.app, name="config", rich_help_panel="Set up", help="Show, check and describe the settings.")
app.add_typer(data.app, name="data", rich_help_panel="Set up", help="Look at a data set.")
app.command("doctor", rich_help_panel="Set up")(doctor.command)


def main() -> None:
    """Runs the command line; a fault that the user can mend is one line on stderr, and of several each is."""
    debug = "--debug" in sys.argv[1:]
    # Accepted anywhere on the line: it is wanted when a command has just failed.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    replace_unencodable()
    try:
        if "--json" in arguments:
            # Before the work whose result would be lost.
            require_stdout()
        app(args=arguments)
    except AuxMAEError as error:
        if debug:
            raise
        for line in error.lines:
            say_fault(error, line)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        say_fault(error, _in_words(error))
        sys.exit(1)


def _in_printing(error: Exception) -> bool:
    """Whether it was raised where the command line prints."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return modules[-1].partition(".")[0] in ("rich", "typer", "click") or modules[-1] == print_json.__module__


def _of_memory(error: Exception) -> str | None:
    """ ": " and what was asked for, where memory was short, or nothing where that is not told; None of any other fault."""
    told = str(error).partition("\n")[0]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f": {told}" if told and cause is error else ""
        cause = cause.__cause__ or cause.__context__
    if type(error).__name__ == "OutOfMemoryError":  # of a GPU
        return f": {told}"
    if isinstance(error, RuntimeError) and any(words in told for words in ("CUDA error: out of memory", "ALLOC_FAILED")):
        return f": {told}"  # of a GPU that others fill, before PyTorch has any of it
    if isinstance(error, RuntimeError) and "can't allocate memory" in told:  # of PyTorch on a CPU
        return told[told.index("can't allocate memory") + len("can't allocate memory") :]
    unmapped = isinstance(error, ImportError) and "failed to map segment from shared object" in str(error)
    return "" if unmapped or (isinstance(error, OSError) and error.errno == errno.ENOMEM) else None


def _in_words(error: Exception) -> str:
    """One line about an exception that no command has turned into an AuxMAEError."""
    if (short := _of_memory(error)) is not None:
        return f"not enough memory{short} (free some, or ask for less: a smaller train.batch_size, or a smaller model)"
    if isinstance(error, OSError) and error.strerror:
        # Only what was opened by its name is named in the exception.
        name = error.filename or ("stdout" if _in_printing(error) else "")
        where = f"{name}: " if name else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{where}{error.strerror} ({'free some space' if full else 'check the path and who may use it'})"
    # Looked up, not imported: the kernels bring PyTorch, and where they are not loaded they raised nothing.
    kernels = sys.modules.get("auxmae_kernels")
    if kernels is not None and isinstance(error, kernels.KernelUnavailableError):
        return str(error)
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package and package not in ("auxmae", "auxmae_kernels"):
        # Trainings and benchmarks do with less than an installation brings; what asks for more is told so here.
        return f"this needs {package}, which is not installed (pip install auxmae brings it)"
    reason = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {reason} (a fault of AuxMAE: run again with --debug and report it)"
