"""What a source of text is, and the one that a configuration describes."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from ...common.errors import UsageError
from ..config import BuiltinText, FilesText, HubText


class Document(NamedTuple):
    """One document; ``number`` counts from 0 in the source's fixed order, empty documents included."""

    number: int
    text: str


class TextSource(Protocol):
    """Documents in a fixed order. A source is deterministic: the same identity gives the same documents."""

    def identity(self) -> dict[str, Any]:
        """What makes two sources the same (plain JSON): names and checksums, or a resolved revision."""
        ...

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Documents from number ``start`` on.

        Raises:
            UsageError: data that is not as configured (missing column, malformed line), with its place.
        """
        ...

    def num_documents(self) -> int | None:
        """How many documents there are, None where nobody knows before reading them all."""
        ...


def open_source(
    config: HubText | FilesText | BuiltinText, pinned: dict[str, Any] | None = None
) -> TextSource:
    """The source that ``config`` describes; its first document has been read once.

    Args:
        config: which text.
        pinned: the identity of the text of a harvest to be continued. A revision that is left open is taken
            from it, and files that have not changed are not checked again.

    Raises:
        UsageError: nothing there, no such column or split, or not a single document.
    """
    source: TextSource
    if isinstance(config, HubText):
        from .hub import HubSource

        source = HubSource(config, pinned)
    elif isinstance(config, FilesText):
        from .files import FilesSource

        source = FilesSource(config, pinned)
    else:
        from .stdlib import StdlibSource

        source = StdlibSource()
    source.identity()  # reads and checks every file, before the first document
    if next(iter(source.documents()), None) is None:
        raise UsageError(f"the text is empty: {source} has not a single document")
    return source
