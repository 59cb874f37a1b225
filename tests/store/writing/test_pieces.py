"""A cache whose rows wait in object storage: the bytes are those of one whose rows wait in its folder."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from saecache.common.errors import SaecacheError
from saecache.store import CacheWriter, CorruptCacheError, StorageConfig, UsageError
from saecache.store.remote import Patience, RemoteFolder, open_remote_folder
from saecache.store.remote.bucket_pieces import BucketPieces, remove_pieces
from saecache.store.remote.places.failures import RemoteChangedError
from saecache.store.writing import pieces, spills
from saecache.store.writing.journal import parse_journal
from saecache.store.writing.pieces import Extent, is_right

SMALL = {"chunk_rows": 64, "shard_bytes": 8192, "memory_bytes": 1 << 20}
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def place() -> RemoteFolder:
    return open_remote_folder(f"memory://{uuid4().hex}/cache", Patience(max_attempts=1, max_retries=0))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two or three shards, read in many requests."""
    monkeypatch.setattr(spills, "WINDOW_BYTES", 1 << 14)
    monkeypatch.setattr(pieces, "_REQUEST_BYTES", 1 << 9)


def writer_of(path: Path, source: Any, place: RemoteFolder, **changes: Any) -> CacheWriter:
    storage = StorageConfig(**(SMALL | changes.pop("storage", {})))
    settings: dict[str, Any] = {"identity": {"source": "test"}, "heldout_fraction": 0.2} | changes
    return CacheWriter(
        path,
        hooks=source.hooks,
        context=source.context,
        storage=storage,
        pieces=BucketPieces(place),
        **settings,
    )


@pytest.mark.parametrize("storage", [
    {}, {"dtype": "int8"}, {"dtype": "bfloat16", "normalization": "none"}, {"codec": {"kind": "zstd"}},
])  # fmt: skip
@pytest.mark.parametrize("planned", [None, 40, 10**7])
def test_the_bytes_are_those_of_a_spill_folder(
    tmp_path: Path,
    make_source: Callable[..., Any],
    write_cache: Callable[..., Any],
    contents: Contents,
    place: RemoteFolder,
    storage: dict[str, Any],
    planned: int | None,
) -> None:
    """Every writer begins in another folder, as on another machine; few buckets, and many that are empty."""
    source = make_source(sequences=60)
    write_cache(tmp_path / "expected", source, storage=storage)
    for number in range(4):
        writer = writer_of(tmp_path / str(number), source, place, storage=storage, planned_sequences=planned)
        assert writer.sequences_done == 14 * number
        for calls, (_, arrays) in enumerate(source.batches(7, writer.sequences_done)):
            writer.write_sequences(**arrays)
            if calls == 1 and number < 3:
                writer.commit()
            if calls == 2 and number < 3:  # what came after the commit is lost with the machine
                break
        if number < 3:
            writer.close()
    writer.finalize(commit_first=False)
    assert contents(tmp_path / "3") == contents(tmp_path / "expected")


def test_shards_that_a_former_run_wrote_are_recorded_in_the_bucket(
    tmp_path: Path, source: Any, cache_path: Path, contents: Contents, place: RemoteFolder
) -> None:
    class StopError(Exception):
        pass

    def stop_half_way(done: int, total: int) -> None:
        if done > total / 2:
            raise StopError

    writer = writer_of(tmp_path / "c", source, place)
    for _, arrays in source.batches(7):
        writer.write_sequences(**arrays)
    with pytest.raises(StopError):
        writer.finalize(on_progress=stop_half_way)
    writer.close()
    records = [info.key for info in place.objects() if "/done/" in info.key]
    assert len(records) > 4
    journal = parse_journal(place.get(".harvest/journal.json", 1 << 20))
    assert sum(piece.rows for piece in journal.pieces) == journal.train_rows + journal.heldout_rows > 0
    writer_of(tmp_path / "c2", source, place).finalize()
    assert contents(tmp_path / "c2") == contents(cache_path)
    remove_pieces(place)
    assert place.objects() == []


def damage(place: RemoteFolder, end: str) -> None:
    for info in place.objects():
        if info.key.endswith(end):
            content = bytearray(place.get(info.key, 1 << 24))
            content[len(content) // 2] ^= 1
            place.put(info.key, bytes(content))


@pytest.mark.parametrize("end", ["_token", "_hook.0", "_index", "_ids"])
def test_damaged_pieces_are_noticed(tmp_path: Path, source: Any, place: RemoteFolder, end: str) -> None:
    writer = writer_of(tmp_path / "c", source, place)
    for _, arrays in source.batches(7):
        writer.write_sequences(**arrays)
    writer.commit()
    damage(place, end)
    with pytest.raises(CorruptCacheError, match=r"\.harvest"), writer:
        writer.finalize()


def test_a_piece_that_somebody_removed_is_missed(tmp_path: Path, source: Any, place: RemoteFolder) -> None:
    writer = writer_of(tmp_path / "c", source, place)
    for _, arrays in source.batches(7):
        writer.write_sequences(**arrays)
    writer.commit()
    place.delete([info.key for info in place.objects() if info.key.endswith("_hook.0")])
    with pytest.raises(RemoteChangedError, match="somebody removed"), writer:
        writer.finalize()


def test_a_journal_of_another_cache_is_refused(tmp_path: Path, source: Any, place: RemoteFolder) -> None:
    writer_of(tmp_path / "c", source, place).close()
    with pytest.raises(UsageError, match=r"unfinished cache of another identity(.|\n)*seed"):
        writer_of(tmp_path / "d", source, place, seed=1)
    place.put(".harvest/journal.json", b'{"version": 2}')
    with pytest.raises(CorruptCacheError, match="damaged or of another version"):
        writer_of(tmp_path / "e", source, place)


def committed(tmp_path: Path, source: Any, place: RemoteFolder) -> dict[str, Any]:
    """The values of the journal of an unfinished cache in the bucket."""
    writer = writer_of(tmp_path / "c", source, place)
    (_, arrays), *_ = source.batches(7)
    writer.write_sequences(**arrays)
    writer.commit()
    writer.close()
    return json.loads(place.get(".harvest/journal.json", 1 << 20))


@pytest.mark.parametrize("values", [
    {"sequences": 10**6}, {"rows": 10**6}, {"digests": {}}, {"blocks": 2**48}, {"blocks": 0},
])  # fmt: skip
def test_a_journal_with_impossible_pieces_is_refused(
    tmp_path: Path, source: Any, place: RemoteFolder, values: dict[str, Any]
) -> None:
    journal = committed(tmp_path, source, place)
    journal["pieces"][0] |= values
    place.put(".harvest/journal.json", json.dumps(journal).encode())
    with pytest.raises(SaecacheError), writer_of(tmp_path / "d", source, place) as writer:
        writer.finalize()


@pytest.mark.parametrize("digests", [{"index"}, {"ids", "document"}])
def test_a_piece_whose_sums_are_not_all_there_is_refused(
    tmp_path: Path, source: Any, place: RemoteFolder, digests: set[str]
) -> None:
    journal = committed(tmp_path, source, place)
    piece = journal["pieces"][0]
    piece["digests"] = {name: sha256 for name, sha256 in piece["digests"].items() if name in digests}
    place.put(".harvest/journal.json", json.dumps(journal).encode())
    with (
        pytest.raises(CorruptCacheError, match="journal has no sha256 of the"),
        writer_of(tmp_path / "d", source, place) as writer,
    ):
        writer.finalize()


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a\0b.json", "x" * 300 + ".json", "train.token.0", "é.json"]
)
def test_records_with_names_of_nothing_are_left_out(name: str) -> None:
    class Folder:
        def objects(self, must_show: str) -> list[Any]:
            return [SimpleNamespace(key=key) for key in (f"done/{name}", "done/train.token.0.json")]

        def get(self, key: str, most: int) -> bytes:
            return b"{}"

    pieces = BucketPieces.__new__(BucketPieces)
    pieces._folder = Folder()  # type: ignore[assignment]
    assert [found for found, _ in pieces.read_records(frozenset())] == ["train.token.0.json"]


@pytest.mark.parametrize("extra", ["[1" + "0" * 400 + "]", "[[1], [1, 2]]", '"x"', "{}"])
def test_a_record_with_impossible_sums_counts_as_none(
    tmp_path: Path, source: Any, place: RemoteFolder, cache_path: Path, contents: Contents, extra: str
) -> None:
    """The unit is done again, in a folder as in a bucket."""
    writer = writer_of(tmp_path / "c", source, place)
    for _, arrays in source.batches(7):
        writer.write_sequences(**arrays)
    done = tmp_path / "c" / ".writing" / "done"
    done.mkdir(parents=True)
    for record in ("train.token.0", "train.hook.0.0"):
        (done / f"{record}.json").write_text(f'{{"files": [], "extra": {extra}}}')
    writer.finalize()
    assert contents(tmp_path / "c") == contents(cache_path)


def test_pieces_that_no_commit_counts_are_removed(
    tmp_path: Path, source: Any, place: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(tmp_path / "c", source, place)
    (_, first), (_, second), *_ = source.batches(7)
    writer.write_sequences(**first)
    writer.commit()
    before = {info.key for info in place.objects()}
    writer.write_sequences(**second)
    with monkeypatch.context() as patched:
        patched.setattr(BucketPieces, "write_journal", lambda *_: pytest.fail("killed here"))
        with pytest.raises(BaseException, match="killed here"):
            writer.commit()
    writer.close()
    assert {info.key for info in place.objects()} > before
    assert writer_of(tmp_path / "d", source, place).sequences_done == 7
    assert {info.key for info in place.objects()} == before


def test_a_writer_that_another_one_has_followed_commits_nothing(
    tmp_path: Path, source: Any, place: RemoteFolder
) -> None:
    """As a process of a job that was believed dead; its rows must not be counted as those of the other."""
    (_, first), (_, second), *_ = source.batches(7)
    left = writer_of(tmp_path / "c", source, place)
    left.write_sequences(**first)
    left.commit()
    left.write_sequences(**second)
    follower = writer_of(tmp_path / "d", source, place)
    with pytest.raises(RemoteChangedError, match="another run of this harvest"):
        left.commit()
    left.close()
    follower.write_sequences(**second)
    follower.commit()
    assert writer_of(tmp_path / "e", source, place).sequences_done == 14


def test_rows_are_compared_with_the_sums_of_all_their_buckets() -> None:
    from saecache.store.encoding.checksum import crc32c

    rows = np.arange(60, dtype=np.uint8)
    sums = np.array([crc32c(rows[:20]), 0, crc32c(rows[20:])], np.uint32)
    extent = Extent(5, np.array([2, 0, 4]), sums)
    assert is_right(rows, 10, extent)
    assert not is_right(rows[:-10], 10, extent) and not is_right(np.append(rows, rows[:10]), 10, extent)
    assert not is_right(rows[::-1].copy(), 10, extent)
