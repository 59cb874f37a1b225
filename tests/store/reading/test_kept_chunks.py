"""Chunks that were read stay mapped within a limit, and no mapping is kept alive for that."""

import gc
from pathlib import Path

import pytest
import torch

from saecache.store import open_cache
from saecache.store.reading import chunks
from saecache.store.reading.kept_chunks import KeptChunks
from saecache.store.reading.mapped_shards import MappedShard


class Pretended:
    """A mapping of four chunks of 10 bytes."""

    num_chunks = 4

    def __init__(self) -> None:
        self.unmapped: list[int] = []

    def chunk_bytes(self, slot: int) -> int:
        return 10

    def unmap(self, slot: int) -> None:
        self.unmapped.append(slot)


def test_those_that_were_read_longest_ago_are_unmapped() -> None:
    kept, first, second = KeptChunks(35), Pretended(), Pretended()
    for mapping, slot in ((first, 0), (first, 1), (second, 0), (first, 0)):
        kept.keep(mapping, slot)
    assert not first.unmapped
    kept.keep(second, 3)
    assert first.unmapped == [1]
    assert [kept.has(first, slot) for slot in range(3)] == [True, False, False]
    kept.keep(second, 1)
    assert second.unmapped == [0]
    assert kept.has(first, 0) and kept.has(second, 3) and kept.has(second, 1)


def test_a_chunk_larger_than_the_limit_does_not_stay() -> None:
    kept, mapping = KeptChunks(5), Pretended()
    kept.keep(mapping, 2)
    assert mapping.unmapped == [2] and not kept.has(mapping, 2)


def test_chunks_of_a_mapping_that_ended_take_no_room() -> None:
    kept, other = KeptChunks(30), Pretended()
    ended = Pretended()
    kept.keep(other, 0)
    for slot in (1, 2):
        kept.keep(ended, slot)
    del ended
    gc.collect()
    for slot in (1, 2):
        kept.keep(other, slot)
    assert not other.unmapped


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_later_epoch_maps_again_what_did_not_stay(
    limit: int, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advised: list[int | None] = []
    monkeypatch.setattr(chunks, "KEPT", KeptChunks(limit))
    monkeypatch.setattr(MappedShard, "advise", lambda self, slot, advice: advised.append(advice))
    cache = open_cache(cache_path)
    hook = cache.hooks[0]
    epochs = []
    for _ in range(2):
        advised.clear()
        epochs.append(torch.cat(list(cache.batches(hook, 64, epoch=1))))
    assert torch.equal(*epochs)
    assert bool(advised) == (limit == 0)
