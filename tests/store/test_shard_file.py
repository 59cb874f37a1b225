"""The bytes of one shard file, and indexes that lie."""

import errno
import hashlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from saecache.store import CorruptCacheError, ShardedArray, shard_file
from saecache.store.layout import ArraySpec
from saecache.store.shard_file import ABSENT, ShardWriter, crc32c, parse_index

from ..killing import DEADLINE_SECONDS

SPEC = ArraySpec("a", (10, 2), "float16", 4, 12, ("row", "dimension"))
STORED = SPEC.chunk_bytes + 4


def test_every_byte_of_a_shard(tmp_path: Path) -> None:
    chunks = [np.arange(8, dtype="<f2").reshape(4, 2) + i for i in range(2)]
    writer = ShardWriter()
    size, digest = writer.write(tmp_path / "shard", iter(chunks), 3).result()
    writer.close()
    expected = b""
    for chunk in chunks:
        expected += chunk.tobytes() + struct.pack("<I", google_crc32c.value(chunk.tobytes()))
    index = struct.pack("<6Q", 0, 20, 20, 20, 2**64 - 1, 2**64 - 1)
    expected += index + struct.pack("<I", google_crc32c.value(index))
    content = (tmp_path / "shard").read_bytes()
    assert content == expected
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


@pytest.mark.parametrize("slow", ["_hash_parts", "_write_parts"])
def test_a_slow_thread_does_not_see_a_later_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """Chunks may be made in CHUNKS_IN_FLIGHT + 1 buffers in turn."""
    original = getattr(shard_file, slow)

    def slowly(*arguments: object) -> None:
        time.sleep(0.005)
        original(*arguments)

    ring = [np.empty((4, 2), "<f2") for _ in range(shard_file.CHUNKS_IN_FLIGHT + 1)]

    def chunks() -> Iterator[np.ndarray]:
        for number in range(20):
            ring[number % len(ring)][:] = number
            yield ring[number % len(ring)]

    monkeypatch.setattr(shard_file, slow, slowly)
    writer = ShardWriter()
    _, digest = writer.write(tmp_path / "shard", chunks(), 20).result()
    writer.close()
    content = (tmp_path / "shard").read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    for number in range(20):
        chunk = np.frombuffer(content, "<f2", 8, number * STORED)
        assert (chunk == number).all()


def test_crc32c_of_long_payloads_and_known_value() -> None:
    payload = np.random.default_rng(0).integers(0, 256, 5_000_001, dtype=np.uint8)
    assert crc32c(payload) == crc32c(payload.tobytes())
    assert crc32c(b"123456789") == bytes.fromhex("839206e3")  # 0xE3069283, RFC 3720 B.4


def test_an_error_while_making_chunks_leaves_nothing(tmp_path: Path) -> None:
    def chunks():  # type: ignore[no-untyped-def]
        yield np.zeros((4, 2), "<f2")
        raise ValueError("from the source")

    writer = ShardWriter()
    with pytest.raises(ValueError, match="from the source"):
        writer.write(tmp_path / "shard", chunks(), 3)
    writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["fsync", "write"])
def test_an_error_of_the_disk_comes_with_the_result_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(shard_file, "append_early", fail)
    writer = ShardWriter()
    finished = writer.write(tmp_path / "shard", iter([np.zeros((4, 2), "<f2")]), 1)
    with pytest.raises(OSError, match="broken disk"):
        finished.result()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_the_next_file_is_begun_before_the_last_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_sync = threading.Event()
    sync = os.fsync

    def waiting(descriptor: int) -> None:
        may_sync.wait(DEADLINE_SECONDS)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", waiting)
    (tmp_path / "folder").mkdir()
    writer = ShardWriter()
    written = [
        writer.write(tmp_path / "folder" / str(number), iter([np.full((4, 2), number, "<f2")]), 1)
        for number in range(2)
    ]
    assert not any(future.done() for future in written)
    may_sync.set()
    for number, future in enumerate(written):
        content = (tmp_path / "folder" / str(number)).read_bytes() if future.result() else b""
        assert (np.frombuffer(content, "<f2", 8) == number).all()
        assert future.result() == (len(content), hashlib.sha256(content).hexdigest())
    writer.close()


def index_of(*entries: tuple[int, int]) -> bytes:
    table = np.array(entries, dtype="<u8").tobytes()
    return table + crc32c(table)


WHOLE = [(0, STORED), (STORED, STORED), (2 * STORED, STORED)]
SIZE = SPEC.shard_size(0)


def test_a_good_index() -> None:
    entries = [WHOLE[2], (int(ABSENT), int(ABSENT)), WHOLE[0]]
    assert parse_index(index_of(*entries), SPEC, "f", SIZE).tolist() == [
        [2 * STORED, STORED],
        [-1, -1],
        [0, STORED],
    ]


@pytest.mark.parametrize(
    "entry",
    [
        (0, STORED - 1),
        (0, STORED + 1),
        (0, 0),
        (2 * STORED + 1, STORED),  # reaches into the index
        (SIZE, STORED),
        (2**64 - 2, STORED),
        (2**63, STORED),
        (2**64 - STORED, STORED),  # would wrap around
        (int(ABSENT), STORED),
        (0, int(ABSENT)),
        (0, 2**63),
    ],
)
def test_entries_outside_the_file_are_refused(entry: tuple[int, int]) -> None:
    with pytest.raises(CorruptCacheError, match="f: index entry 1"):
        parse_index(index_of(WHOLE[0], entry, WHOLE[2]), SPEC, "f", SIZE)


def test_a_flipped_bit_in_the_index_is_found() -> None:
    index = bytearray(index_of(*WHOLE))
    index[9] ^= 1
    with pytest.raises(CorruptCacheError, match="crc32c"):
        parse_index(bytes(index), SPEC, "f", SIZE)


def test_a_short_index_is_refused() -> None:
    with pytest.raises(CorruptCacheError, match="too short"):
        parse_index(b"123", SPEC, "f", 3)


def test_a_chunk_that_the_index_leaves_out_is_not_read_as_zeros(tmp_path: Path) -> None:
    content = bytes(3 * STORED) + index_of(WHOLE[0], (int(ABSENT), int(ABSENT)), WHOLE[2])
    path = tmp_path / SPEC.shard_path(0)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(CorruptCacheError, match="chunk 1 is not stored"):
        ShardedArray(tmp_path, SPEC)[5]


def test_a_shard_that_was_cut_or_lost_is_named(tmp_path: Path) -> None:
    writer = ShardWriter()
    writer.write(tmp_path / SPEC.shard_path(0), iter([np.zeros((4, 2), "<f2")] * 3), 3)
    writer.close()
    path = tmp_path / SPEC.shard_path(0)
    assert ShardedArray(tmp_path, SPEC)[3].tolist() == [0, 0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCacheError, match=r"a/c/0/0: .* bytes, expected"):
        ShardedArray(tmp_path, SPEC)[3]
    path.unlink()
    with pytest.raises(CorruptCacheError, match="a/c/0/0: the shard is missing"):
        ShardedArray(tmp_path, SPEC)[3]
