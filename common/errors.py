"""The failures a user can meet, each with a name. ``exit_status`` is what the command line returns for it."""

from .printable import shortened


class SaecacheError(Exception):
    """A failure that is told to the user as one message, without a stack trace.

    The message may quote the files of others, which may hold megabytes: it is shortened.
    """

    exit_status = 1

    def __str__(self) -> str:
        return shortened(super().__str__())


class UsageError(SaecacheError, ValueError):
    """Bad usage, configuration or input, found before any long work: expected, got, where, fix."""

    exit_status = 2


class CorruptCacheError(SaecacheError):
    """Stored bytes are not what the manifest or their checksum says. The message names the file."""


class IncompleteCacheError(SaecacheError):
    """The folder holds an unfinished cache: there is no manifest yet."""


class BadActivationError(SaecacheError):
    """NaN, Inf or overflow in the activations. The message names the hook, the document and the position."""

    exit_status = 2


class DiskFullError(SaecacheError):
    """The disk ran full while writing. What was committed is kept: the same command continues."""
