"""Packing against a plain definition, for any batch size and from any place in the stream."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saecache.harvest.text.packing import Cursor, PackingRule, Role, TokenDocument, pack

BOS, SEPARATOR = 0, 0  # one id for both, as in GPT-2 and Pythia


def rule(**changes: object) -> PackingRule:
    values = {
        "context": 4,
        "packing": "packed",
        "bos_id": BOS,
        "separator_id": SEPARATOR,
        "min_document_tokens": 1,
        "max_document_tokens": None,
    }
    return PackingRule(**{**values, **changes})


def documents(lengths: list[int], start: int = 0):
    for number, length in enumerate(lengths):
        if number >= start:
            yield TokenDocument(number, np.arange(length, dtype=np.int32) + 100 * number)


def plain_packed(lengths: list[int], r: PackingRule) -> list[list[tuple[int, int, int]]]:
    """(id, document, role) of every position, written as the definition reads."""
    stream = []
    for number, length in enumerate(lengths):
        if length < r.min_document_tokens:
            continue
        kept = length if r.max_document_tokens is None else min(length, r.max_document_tokens)
        stream += [(100 * number + i, number, Role.TEXT) for i in range(kept)]
        if r.separator_id is not None:
            stream.append((r.separator_id, number, Role.SEPARATOR))
    sequences = []
    while stream:
        cut, stream = stream[: r.text_positions], stream[r.text_positions :]
        head = [] if r.bos_id is None else [(r.bos_id, cut[0][1], Role.BOS)]
        row = head + cut
        sequences.append(row + [(-1, -1, Role.PADDING)] * (r.context - len(row)))
    return sequences


def collected(batches) -> np.ndarray:
    parts = [np.stack([b.ids, b.documents, b.roles.astype(np.int32)], axis=-1) for b in batches]
    return np.concatenate(parts) if parts else np.empty((0, 0, 3), np.int32)


RULES = st.builds(
    rule,
    context=st.integers(2, 7),
    bos_id=st.sampled_from([None, BOS]),
    separator_id=st.sampled_from([None, SEPARATOR]),
    min_document_tokens=st.integers(1, 3),
    max_document_tokens=st.sampled_from([None, 3, 5]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=8), RULES, st.integers(1, 5))
def test_packed_is_the_definition(lengths: list[int], r: PackingRule, batch_size: int) -> None:
    batches = list(pack(documents(lengths), r, Cursor(), batch_size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert collected(batches).tolist() == [[list(map(int, p)) for p in s] for s in plain_packed(lengths, r)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=8), RULES, st.sampled_from(["packed", "per_document"]))
def test_it_goes_on_from_every_cursor(lengths: list[int], r: PackingRule, packing: str) -> None:
    r = PackingRule(**{**r.__dict__, "packing": packing})
    whole = collected(pack(documents(lengths), r, Cursor(), 2))
    cursors = [c for batch in pack(documents(lengths), r, Cursor(), 3) for c in batch.cursors]
    assert len(cursors) == len(whole)
    for done, cursor in enumerate(cursors, 1):
        rest = collected(pack(documents(lengths, cursor.document), r, cursor, 2))
        assert rest.tolist() == whole[done:].tolist()


def test_one_document_per_sequence() -> None:
    r = rule(packing="per_document", separator_id=None, min_document_tokens=2)
    got = collected(pack(documents([2, 1, 9, 0, 3]), r, Cursor(), 10))
    assert got[..., 0].tolist() == [[0, 0, 1, -1], [0, 200, 201, 202], [0, 400, 401, 402]]
    assert got[..., 1].tolist() == [[0, 0, 0, -1], [2, 2, 2, 2], [4, 4, 4, 4]]
    assert got[..., 2].tolist() == [[1, 0, 0, 3], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_the_role_tells_bos_separator_and_text_of_one_id_apart() -> None:
    documents_ = iter(
        [TokenDocument(0, np.array([0, 7], np.int32)), TokenDocument(1, np.array([0], np.int32))]
    )
    (batch,) = pack(documents_, rule(context=6), Cursor(), 1)
    assert batch.ids.tolist() == [[0, 0, 7, 0, 0, 0]]
    assert batch.roles.tolist() == [
        [Role.BOS, Role.TEXT, Role.TEXT, Role.SEPARATOR, Role.TEXT, Role.SEPARATOR]
    ]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1]]


def test_nothing_gives_nothing() -> None:
    assert list(pack(iter([]), rule(), Cursor(), 3)) == []
    assert list(pack(documents([0, 0]), rule(), Cursor(), 3)) == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_long_document_is_cut_without_gaps(batch_size: int) -> None:
    r = rule(context=5, separator_id=None)
    got = collected(pack(documents([401]), r, Cursor(), batch_size))[..., 0]
    assert got[:, 1:].reshape(-1)[:401].tolist() == list(range(401))
