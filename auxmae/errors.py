"""What a user can mend: a message, a hint, an exit code.

The command line prints one line of these and no traceback; every other exception is a fault of AuxMAE itself.
"""

from __future__ import annotations


class AuxMAEError(Exception):
    """A fault that the user can mend.

    Args:
        message: what is wrong and where, on one line.
        hint: what to do about it, on one line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    @property
    def lines(self) -> tuple[str, ...]:
        """What the command line prints: a line for each fault."""
        return (str(self),)


class UsageError(AuxMAEError):
    """The command was called in a way that cannot work."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, of the wrong type, out of bounds, or contradicts another."""


class DataError(AuxMAEError):
    """A file or a data set cannot be used as it is."""


class ResourceError(AuxMAEError):
    """The machine does not give what it takes, as memory, open files or processes: a file that was to be read may be whole."""


class CheckpointError(AuxMAEError):
    """A run folder or a checkpoint is missing, broken, or does not fit."""


class PeerLostError(AuxMAEError):
    """Another process of the same training ended; the reason is in that one's message."""

    exit_code = 75


class MissingDependencyError(AuxMAEError):
    """An optional package is needed; the hint names the extra that brings it."""


def first_line(error: BaseException) -> str:
    """What an exception says, without its further lines; its type where it says nothing, as an EOFError may."""
    return str(error).partition("\n")[0] or type(error).__name__
