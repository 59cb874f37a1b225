"""Documents -> sequences of one length, with the role of every position.

The packed stream is: the tokens of document 0, a separator, the tokens of document 1, a separator, and so
on, cut into sequences of ``context`` positions that each begin with BOS. A place in it is (document, tokens
of it already used), two numbers, so that a harvest continues anywhere without keeping any text.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...store.layout import PADDING_ID


class Role(IntEnum):
    """What a position is, whatever its token id: BOS, EOS and padding may share one id."""

    TEXT = 0
    BOS = 1
    SEPARATOR = 2
    PADDING = 3
    TEMPLATE = 4  # markup that a chat template adds


MESSAGE_ROLE = 5  # of the first of MESSAGE_ROLES; the others follow
EXCLUDED = 0x80  # added to the role of a chat's position that gives no row


class Cursor(NamedTuple):
    """The next token to use: ``offset`` tokens of ``document`` (its separator counted) are used up."""

    document: int = 0
    offset: int = 0


class TokenDocument(NamedTuple):
    """Token ids int32 [n] of document ``number``, and their roles uint8 [n]; None means that all are text."""

    number: int
    ids: NDArray[np.int32]
    roles: NDArray[np.uint8] | None = None

    def part(self, start: int | None, stop: int | None) -> "TokenDocument":
        """The tokens ``start:stop``."""
        return TokenDocument(self.number, self.ids[start:stop], _cut_roles(self.roles, start, stop))


def _cut_roles(
    roles: NDArray[np.uint8] | None, start: int | None, stop: int | None
) -> NDArray[np.uint8] | None:
    return None if roles is None else roles[start:stop]


@dataclass(frozen=True)
class PackingRule:
    """How documents become sequences; the settings with every 'auto' resolved."""

    context: int
    packing: str
    bos_id: int | None
    separator_id: int | None
    min_document_tokens: int
    max_document_tokens: int | None

    @property
    def text_positions(self) -> int:
        """Positions of a sequence that are not its BOS."""
        return self.context - (self.bos_id is not None)

    def identity(self) -> dict[str, Any]:
        """What of it makes two caches the same (the context is stated elsewhere)."""
        return {
            "packing": self.packing,
            "bos_id": self.bos_id,
            "separator_id": self.separator_id,
            "min_document_tokens": self.min_document_tokens,
            "max_document_tokens": self.max_document_tokens,
        }


@dataclass(frozen=True)
class Sequences:
    """Consecutive sequences: ids, documents int32 [n, context] (-1 = padding), roles uint8 [n, context].

    ``cursors[i]`` is where the stream goes on after sequence i.
    """

    ids: NDArray[np.int32]
    documents: NDArray[np.int32]
    roles: NDArray[np.uint8]
    cursors: list[Cursor]

    def __len__(self) -> int:
        return len(self.ids)

    def token_counts(self) -> NDArray[np.int64]:
        """Positions of each sequence that are not padding. int64 [n]."""
        counts: NDArray[np.int64] = (self.roles != Role.PADDING).sum(axis=1)
        return counts

    def first(self, n: int) -> "Sequences":
        """The first ``n`` of them."""
        return self[:n]

    def __getitem__(self, part: slice) -> "Sequences":
        return Sequences(self.ids[part], self.documents[part], self.roles[part], self.cursors[part])


def pack(
    documents: Iterator[TokenDocument], rule: PackingRule, start: Cursor, batch_size: int
) -> Iterator[Sequences]:
    """Batches of ``batch_size`` sequences; only the last is smaller.

    Args:
        documents: from number ``start.document`` on, in order.
        rule: how.
        start: where the stream goes on; ``Cursor()`` is its beginning.
        batch_size: sequences per batch. It does not change the sequences.
    """
    cut = _cut_packed if rule.packing == "packed" else _cut_per_document
    batch: list[_Piece] = []
    for piece in cut(_long_enough(documents, rule), rule, start):
        batch.append(piece)
        if len(batch) == batch_size:
            yield _assemble(batch, rule)
            batch = []
    if batch:
        yield _assemble(batch, rule)


class _Segment(NamedTuple):
    """Tokens of one document that stand together; ``offset`` is that of the first."""

    offset: int
    tokens: TokenDocument
    ends_with_separator: bool


class _Piece(NamedTuple):
    """The segments of one sequence, and where the stream goes on after it."""

    segments: list[_Segment]
    cursor: Cursor


def _long_enough(documents: Iterator[TokenDocument], rule: PackingRule) -> Iterator[TokenDocument]:
    for document in documents:
        if len(document.ids) >= rule.min_document_tokens:
            yield document.part(None, rule.max_document_tokens)


def _cut_packed(documents: Iterator[TokenDocument], rule: PackingRule, start: Cursor) -> Iterator[_Piece]:
    waiting: deque[_Segment] = deque()
    waiting_tokens = 0
    for document in documents:
        if rule.separator_id is not None:
            document = _with_separator(document, rule.separator_id)
        offset = start.offset if document.number == start.document else 0
        if offset < len(document.ids):
            waiting.append(_Segment(offset, document.part(offset, None), rule.separator_id is not None))
            waiting_tokens += len(document.ids) - offset
        while waiting_tokens >= rule.text_positions:
            yield _take(waiting, rule.text_positions)
            waiting_tokens -= rule.text_positions
    if waiting:
        yield _take(waiting, waiting_tokens)


def _take(waiting: deque[_Segment], count: int) -> _Piece:
    """The first ``count`` tokens of ``waiting``, which loses them."""
    taken = []
    while True:
        segment = waiting.popleft()
        tokens, size = segment.tokens, len(segment.tokens.ids)
        if size > count:
            head = _Segment(segment.offset, tokens.part(None, count), ends_with_separator=False)
            offset = segment.offset + count
            waiting.appendleft(segment._replace(offset=offset, tokens=tokens.part(count, None)))
            taken.append(head)
            return _Piece(taken, Cursor(tokens.number, offset))
        taken.append(segment)
        count -= size
        if count == 0:
            return _Piece(taken, Cursor(tokens.number + 1, 0))


def _with_separator(document: TokenDocument, separator_id: int) -> TokenDocument:
    ids = np.append(document.ids, np.int32(separator_id))
    roles = None if document.roles is None else np.append(document.roles, np.uint8(Role.SEPARATOR))
    return TokenDocument(document.number, ids, roles)


def _cut_per_document(
    documents: Iterator[TokenDocument], rule: PackingRule, start: Cursor
) -> Iterator[_Piece]:
    for document in documents:
        roles = document.roles
        if rule.bos_id is not None and roles is not None and len(roles) and roles[0] == Role.BOS:
            document = document.part(1, None)  # every sequence gets one
        segment = _Segment(0, document.part(None, rule.text_positions), ends_with_separator=False)
        yield _Piece([segment], Cursor(document.number + 1, 0))


def _assemble(pieces: list[_Piece], rule: PackingRule) -> Sequences:
    shape = (len(pieces), rule.context)
    ids = np.full(shape, PADDING_ID, dtype=np.int32)
    documents = np.full(shape, PADDING_ID, dtype=np.int32)
    roles = np.full(shape, Role.PADDING, dtype=np.uint8)
    for row, piece in enumerate(pieces):
        position = 0
        if rule.bos_id is not None:
            ids[row, 0] = rule.bos_id
            documents[row, 0] = piece.segments[0].tokens.number
            roles[row, 0] = Role.BOS
            position = 1
        for segment in piece.segments:
            tokens = segment.tokens
            end = position + len(tokens.ids)
            ids[row, position:end] = tokens.ids
            documents[row, position:end] = tokens.number
            roles[row, position:end] = Role.TEXT if tokens.roles is None else tokens.roles
            if segment.ends_with_separator:
                roles[row, end - 1] = Role.SEPARATOR
            position = end
    return Sequences(ids, documents, roles, [piece.cursor for piece in pieces])
