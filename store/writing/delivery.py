"""Where the files of a cache go while it is being finished, when not to stay in its folder."""

from typing import Protocol

from ..manifest import FileInfo


class Delivery(Protocol):
    """Takes finished shards away from the folder they were written to, and in the end the whole cache."""

    def has(self, file: FileInfo, *, keep: bool) -> bool:
        """Whether a shard that a former run wrote is safe: still in the folder (it must be, with ``keep``),
        or where it goes.
        """

    def take(self, file: FileInfo, *, keep: bool) -> None:
        """Bring a shard to its place; without ``keep`` it is removed from the folder once it is there."""

    def finish(self) -> None:
        """Everything is in the folder or was taken, the manifest too: wait, and deliver the rest."""
