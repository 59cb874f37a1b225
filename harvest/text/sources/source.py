"""What a source of text is."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..chat import ChatTemplate


class Conversation(NamedTuple):
    """Messages with a known role and a content that is text, and the template that writes them out."""

    messages: list[dict[str, Any]]
    template: ChatTemplate


Content = str | Conversation | NDArray[np.int32]  # plain text, a chat, or token ids [n]


def num_characters(content: Content) -> int:
    """The length of a document; of one of token ids their number."""
    if isinstance(content, Conversation):
        return sum(len(message["content"]) for message in content.messages)
    return len(content)


class Document(NamedTuple):
    """One document. ``number`` grows in the source's fixed order, empty documents included.

    Numbers are 0, 1, 2, ..., but a mixture leaves out those of a part that has ended.
    """

    number: int
    content: Content


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
        """One more than the last document's number, None where nobody knows before reading them all."""
        ...
