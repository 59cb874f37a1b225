"""What a source of text is."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol


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
