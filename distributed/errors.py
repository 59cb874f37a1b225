"""Failures of several processes that work together."""

from ..common.errors import SaecacheError


class OtherProcessError(SaecacheError):
    """Another process of the run failed. It says why itself, so this one ends without a message.

    ``exit_status`` is the other's.
    """

    def __init__(self, rank: int, exit_status: int, message: str = "") -> None:
        super().__init__(f"process {rank} failed: {message}" if message else f"process {rank} failed")
        self.rank, self.exit_status = rank, exit_status


class LostProcessError(SaecacheError):
    """Another process of the run is gone, or did not answer in time."""
