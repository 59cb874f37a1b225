"""The order of an epoch: pinned, complete, and how well it mixes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecache.store.reading.order import GROUP_SHARDS, WINDOW_CHUNKS, EpochOrder

ORDERS = st.builds(
    EpochOrder,
    num_rows=st.integers(1, 600),
    chunk_rows=st.integers(1, 20),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    shard_chunks=st.none() | st.integers(1, 12),
)

GOLDEN = [3, 10, 16, 17, 6, 20, 19, 21, 13, 0, 2, 14, 7, 5, 18, 1, 4, 11, 12, 22, 8, 15, 9]


def all_rows(order: EpochOrder) -> np.ndarray:
    return np.concatenate([order.rows(window) for window in range(order.num_windows)])


@given(ORDERS)
def test_every_row_comes_exactly_once(order: EpochOrder) -> None:
    rows = all_rows(order)
    assert np.array_equal(np.sort(rows), np.arange(order.num_rows))
    if order.epoch == 0:
        assert np.array_equal(rows, np.arange(order.num_rows))


@given(ORDERS, st.integers(0, 599))
def test_find_agrees_with_walking_there(order: EpochOrder, row: int) -> None:
    row %= order.num_rows
    window, place = order.find(row)
    assert order.rows(window)[place] == all_rows(order)[row]


@given(ORDERS)
def test_a_window_holds_the_rows_of_its_chunks(order: EpochOrder) -> None:
    for window in range(order.num_windows):
        chunks = order.chunks(window)
        assert len(chunks) <= WINDOW_CHUNKS
        following = [order.chunks(later) for later in range(window, order.num_windows)]
        assert np.array_equal(order.chunks_from(window), np.concatenate(following))
        assert set((order.rows(window) // order.chunk_rows).tolist()) == set(chunks.tolist())


def test_golden_order() -> None:
    order = EpochOrder(num_rows=23, chunk_rows=4, seed=1, epoch=2)
    assert all_rows(order).tolist() == GOLDEN


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(all_rows(EpochOrder(200, 8, seed, epoch)).tolist()) for seed in (0, 1) for epoch in (1, 2, 3)
    }
    assert len(orders) == 6


def test_mixing_guarantee() -> None:
    """A batch of a later epoch is drawn from a whole window of chunks that were chosen at random among all.

    So two rows of one chunk share a batch with probability 1 / WINDOW_CHUNKS, and neighbouring chunks share a
    window no more often than any two.
    """
    num_rows, chunk_rows, batch = 64 * 256, 64, 64
    windows = num_rows / (chunk_rows * WINDOW_CHUNKS)
    shared_batch, correlations = [], []
    for epoch in (1, 2, 3):
        place = np.empty(num_rows, dtype=np.int64)
        place[all_rows(EpochOrder(num_rows, chunk_rows, 0, epoch))] = np.arange(num_rows)
        same_chunk = place.reshape(-1, chunk_rows)
        assert (np.ptp(same_chunk, axis=1) > chunk_rows * WINDOW_CHUNKS / 2).all()
        assert (np.ptp(same_chunk, axis=1) < chunk_rows * WINDOW_CHUNKS).all()
        shared_batch.append((same_chunk[:, :1] // batch == same_chunk[:, 1:] // batch).mean())
        correlations.append(np.corrcoef(np.arange(num_rows), place)[0, 1])
        neighbours = place.reshape(-1, chunk_rows)[:, 0]
        same_window = (neighbours[1:] // (chunk_rows * WINDOW_CHUNKS)) == (
            neighbours[:-1] // (chunk_rows * WINDOW_CHUNKS)
        )
        assert same_window.mean() < 4 / windows
    assert np.mean(shared_batch) == pytest.approx(1 / WINDOW_CHUNKS, rel=0.1)
    assert np.abs(correlations).max() < 0.2


def test_few_shards_are_needed_at_a_time() -> None:
    """Chunks come from one group of shards after another, mixed within it; each epoch has other groups."""
    shard_chunks, num_shards = 40, 30
    groups = []
    for epoch in (1, 2):
        order = EpochOrder(shard_chunks * num_shards * 8, 8, 0, epoch, shard_chunks)
        chunks = np.concatenate([order.chunks(window) for window in range(order.num_windows)])
        shards = (chunks // shard_chunks).reshape(-1)
        per_group = GROUP_SHARDS * shard_chunks
        in_groups = [shards[start : start + per_group] for start in range(0, len(shards), per_group)]
        assert [len(set(group.tolist())) for group in in_groups] == [4, 4, 4, 4, 4, 4, 4, 2]
        assert len(set(in_groups[0][:WINDOW_CHUNKS].tolist())) > 1, "chunks of several shards are mixed"
        groups.append({frozenset(group.tolist()) for group in in_groups})
    assert groups[0] != groups[1]


def test_a_cache_of_one_group_has_the_order_without_shards() -> None:
    grouped = EpochOrder(4000, 8, 0, 1, shard_chunks=500 // GROUP_SHARDS)
    assert np.array_equal(all_rows(grouped), all_rows(EpochOrder(4000, 8, 0, 1)))


def test_golden_order_of_many_shards() -> None:
    order = EpochOrder(num_rows=160, chunk_rows=1, seed=1, epoch=2, shard_chunks=16)
    assert order.chunks(0).tolist() == [
        80,
        132,
        153,
        157,
        156,
        134,
        90,
        24,
        150,
        130,
        27,
        155,
        136,
        154,
        17,
        139,
    ]
