"""The stored order, found through blocks and segments, against sorting everything at once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saecache.store import StorageConfig, row_keys
from saecache.store.encoding.records import RecordLayout
from saecache.store.writing.blocks import MAX_BUCKETS, Block, bucket_of, choose_buckets
from saecache.store.writing.shuffle import ShuffledSpill
from saecache.store.writing.spill import SpillLengths, SpillWriter


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    bits=st.integers(0, 5),
    heldout_every=st.integers(2, 9),
    cut=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    limit_rows=st.integers(1, 100),
    in_memory=st.integers(0, 6),
    merged=st.booleans(),
    processes=st.integers(1, 3),
)
def test_positions_are_those_of_one_sort(
    tmp_path_factory: pytest.TempPathFactory,
    blocks: list[int],
    bits: int,
    heldout_every: int,
    cut: tuple[int, int],
    limit_rows: int,
    in_memory: int,
    merged: bool,
    processes: int,
) -> None:
    place = tmp_path_factory.mktemp("spill")
    folders = [place / f"spill.{process}" for process in range(processes)]
    layout = RecordLayout(4, "float16")
    spills = [SpillWriter(folder, [layout], 1 << bits, (), 1) for folder in folders]
    for spill in spills:
        spill.begin(SpillLengths())
    first = 0
    kept: list[Block] = []  # which are not spilled
    for number, count in enumerate(blocks):
        block = Block(count, [layout])
        token = np.arange(first, first + count, dtype=np.uint64) * np.uint64(3)
        block.token[:], block.used = token, count
        block.bucket[:] = bucket_of(row_keys(9, token), 1 << bits)
        block.bucket[token % np.uint64(heldout_every) == 0] = 1 << bits
        block.records[0][:] = 0
        block.records[0].view(np.uint64)[:, 0] = token  # in place of the row
        if number >= len(blocks) - in_memory:
            kept.append(block)
        else:
            spills[number % processes].submit(block)
        first += count
    for spill in spills:
        spill.sync()
        spill.close()

    every = np.arange(first, dtype=np.uint64) * np.uint64(3)
    heldout = every % np.uint64(heldout_every) == 0
    expected = every[~heldout][np.argsort(row_keys(9, every[~heldout]))]
    shuffled = ShuffledSpill(
        folders,
        9,
        1 << bits,
        limit_bytes=limit_rows * layout.record_bytes,
        in_memory=kept,
        **({"record_bytes": layout.record_bytes} if merged else {}),
    )
    for split, wanted in (("train", expected), ("heldout", every[heldout])):
        start, stop = sorted(min(number, len(wanted)) for number in cut)
        assert np.array_equal(shuffled.tokens(split, start, stop), wanted[start:stop])
        words = [rows.words.copy() for rows in shuffled.rows(0, layout, split, start, stop)]
        assert all(len(block) <= limit_rows for block in words)
        joined = np.concatenate([np.empty((0, 4), np.uint16), *words])
        assert np.array_equal(joined.view(np.uint64)[:, 0], wanted[start:stop])
    shuffled.close()


def test_buckets_are_ranges_of_keys() -> None:
    keys = np.sort(row_keys(0, np.arange(5000, dtype=np.uint64)))
    buckets = bucket_of(keys, 64)
    assert (np.diff(buckets) >= 0).all()
    assert set(buckets.tolist()) == set(range(64))
    assert not bucket_of(keys, 1).any()


def test_a_bucket_fits_in_a_quarter_of_the_memory() -> None:
    storage = StorageConfig(memory_bytes=1 << 20)
    for rows in (1, 1000, 10**6, 10**7):
        buckets = choose_buckets(rows, 1544, storage)
        assert buckets & (buckets - 1) == 0
        assert rows * 1544 / buckets <= (1 << 18) or buckets == MAX_BUCKETS
    assert choose_buckets(10**12, 1544, storage) == MAX_BUCKETS


def test_begin_cuts_off_what_came_after_the_journal(tmp_path: Path) -> None:
    layout = RecordLayout(4, "float16")
    spill = SpillWriter(tmp_path, [layout], 2, ("ids",), 3)
    spill.begin(SpillLengths())
    block = Block(5, [layout])
    block.used, block.token[:], block.bucket[:], block.records[0][:] = 5, 0, 1, 0
    block.sequences = [{"ids": np.zeros((2, 3), np.int32)}]
    spill.submit(block)
    spill.sync()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"token": 40, "hook.0": 80, "segments": 12, "ids": 24}
    spill.submit(block)
    spill.sync()
    spill.close()
    spill = SpillWriter(tmp_path, [layout], 2, ("ids",), 3)
    spill.begin(SpillLengths(blocks=1, rows=5, sequences=2))
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == sizes
    spill.close()
