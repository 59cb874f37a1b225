"""What can go wrong between us and a judge."""

from ...common.errors import SaecacheError

CONTINUES = "Answers so far are stored: the same command continues"


class EndpointError(SaecacheError):
    """The server cannot be used, or is out of order. Stored answers are kept: the same command continues."""


class RefusedRequestError(Exception):
    """The server takes no such request, or answers it with something else than an answer. Others may work."""


class UnreadableAnswerError(Exception):
    """The judge answered, but not in the form that the prompt asks for."""


class Stopped(Exception):  # noqa: N818  # no error: another thread failed, or the user pressed Ctrl-C
    """The work ends before this call was made."""
