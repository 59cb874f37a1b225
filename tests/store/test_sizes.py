"""Sizes are related to each other before anything is allocated or walked: hostile files cost little."""

import copy
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest

from saecache.common.errors import SaecacheError
from saecache.common.regular_files import open_regular, read_regular
from saecache.store import (
    CacheWriter,
    CorruptCacheError,
    ShardedArray,
    StorageConfig,
    inspect_output,
    open_cache,
    slice_cache,
    verify,
    verify_cache,
)
from saecache.store.derived.heldout import find_heldout_positions
from saecache.store.info import largest_rows, read_provenance
from saecache.store.manifest_file import load_manifest, parse_manifest
from saecache.store.remote.team import list_caches
from saecache.store.untrusted_json import parse_json

from ..killing import DEADLINE_SECONDS
from .test_hostile import copied, little_memory, sealed, values, values_of  # noqa: F401 - some are fixtures

MIB = 1 << 20


# JSON


def test_a_name_that_stands_twice_is_found_in_linear_time() -> None:
    """650 KB of such JSON took 115 s."""
    names = ",".join(f'"{number}":0' for number in range(60_000))
    content = ("{" + names + ',"59999":0}').encode()
    started = process_time()
    with pytest.raises(ValueError, match="'59999' stands twice"):
        parse_json(content)
    assert process_time() - started < 10


@pytest.mark.parametrize("unit", [b'"%06d",', b'"%x":1,', b"%d.5,"])
def test_a_file_of_short_values_does_not_fill_the_memory(unit: bytes) -> None:
    """250 MB of short strings took 11.4 GB."""
    brackets = (b"{", b"}") if b":" in unit else (b"[", b"]")
    inner = b"".join(unit % ((i,) * unit.count(b"%")) for i in range(1 << 19))
    content = brackets[0] + inner[:-1] + brackets[1]
    with little_memory(), pytest.raises(CorruptCacheError, match="more values"):
        parse_manifest(content, "x")


def test_the_manifest_of_many_hooks_is_not_too_dense(tmp_path: Path) -> None:
    """The limit is far from what is written, also where another program has taken out the spaces."""
    hooks = {f"h{number}": 2 for number in range(300)}
    with CacheWriter(
        tmp_path / "c", hooks=hooks, identity={}, storage=StorageConfig(dtype="int8", memory_bytes=MIB)
    ) as writer:
        writer.write_rows({hook: np.ones((3, 2), np.float32) for hook in hooks})
    content = (tmp_path / "c" / "zarr.json").read_bytes()
    compact = json.dumps(json.loads(content), separators=(",", ":")).encode()
    for text in (content, compact):
        count = text.count(b",") + text.count(b"{") + text.count(b"[")
        assert count < len(text) // 12
        assert parse_manifest(text, "x").hooks.keys() == hooks.keys()


# Numbers of the manifest


def rows_without_tokens(path: Path, rows: int = 100, **storage: Any) -> Path:
    settings = StorageConfig(chunk_rows=32, memory_bytes=MIB, **storage)
    with CacheWriter(path, hooks={"h": 4}, identity={}, storage=settings, heldout_fraction=0.1) as writer:
        writer.write_rows({"h": np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)})
    return path


@pytest.mark.parametrize("change", [{"sequences": 2**40}, {"context": 2**20}, {"sequences": 99}])
def test_rows_without_tokens_are_one_for_each_sequence(tmp_path: Path, change: dict[str, int]) -> None:
    """Nothing else bounds them, and to verify walks every position of every sequence."""
    path = rows_without_tokens(tmp_path / "c")
    (path / "zarr.json").write_bytes(sealed(values_of(path) | change))
    with pytest.raises(CorruptCacheError, match="sequences"):
        verify_cache(path)


def test_a_slice_of_rows_without_tokens_still_opens(tmp_path: Path) -> None:
    cache = open_cache(rows_without_tokens(tmp_path / "c"))
    slice_cache(cache, tmp_path / "slice", rows=10, heldout_rows=2)
    assert verify_cache(tmp_path / "slice").ok
    hostile = values_of(tmp_path / "slice") | {"sequences": 2**40}
    with pytest.raises(CorruptCacheError, match="sequences"):
        parse_manifest(sealed(hostile), "x")


def test_to_verify_a_slice_walks_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It walked every sequence of the cache that was sliced, of which a manifest may claim 2^32."""
    cache = open_cache(rows_without_tokens(tmp_path / "c"))
    slice_cache(cache, tmp_path / "slice", rows=10, heldout_rows=2)
    claimed = values_of(tmp_path / "slice") | {"sequences": 2**32}
    (tmp_path / "slice" / "zarr.json").write_bytes(sealed(claimed))
    looked = 0

    def count(manifest: Any, documents: Any, sequences: Any) -> Any:
        nonlocal looked
        looked += documents.size
        return find_heldout_positions(manifest, documents, sequences)

    monkeypatch.setattr(verify, "find_heldout_positions", count)
    problems = verify_cache(tmp_path / "slice").problems
    assert problems == ["zarr.json: not the metadata that follows from the manifest"]
    assert verify.check_rows_in_place(load_manifest(tmp_path / "slice"), open_of(tmp_path / "slice")) == []
    assert looked == 12


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_single_row_on_the_wrong_side(tmp_path: Path, split: str) -> None:
    path = rows_without_tokens(tmp_path / "c")
    manifest = load_manifest(path)
    identity = manifest.identity | {"heldout_fraction": 0.3 if split == "train" else 0.01}
    other = manifest.model_copy(update={"identity": identity})
    problems = verify.check_rows_in_place(other, open_of(path))
    assert len(problems) == 1
    side = "held out" if split == "train" else "not held out"
    assert f"{manifest.layout.token(split).path}: row " in problems[0] and f"that is {side}" in problems[0]


def open_of(path: Path) -> Any:
    return lambda spec: ShardedArray(path, spec)


def test_more_rows_than_positions(values: dict[str, Any]) -> None:  # noqa: F811
    altered = copy.deepcopy(values)
    altered["heldout_rows"] += altered["sequences"] * altered["context"]
    with pytest.raises(CorruptCacheError, match="positions"):
        parse_manifest(sealed(altered), "x")


# Files that are none


@contextmanager
def no_waiting(seconds: float = DEADLINE_SECONDS) -> Iterator[None]:
    """Fail, instead of waiting for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError("it waits for ever")

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def replace(path: Path, kind: str, tmp_path: Path) -> None:
    """Put something else than a file in its place."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        try:
            os.mknod(path, 0o20644, os.makedev(1, 5))  # as /dev/zero, which has no end
        except PermissionError:
            pytest.skip("devices cannot be made here")


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "file"
    replace(place, kind, tmp_path)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(place)
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(place, 100)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_stands_in_place_of_a_file_of_a_cache(copied: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    """A FIFO as a zarr.json or a shard kept the reader waiting for ever."""
    manifest = load_manifest(copied)
    norms = manifest.layout.norm("train", "mlp_out.0").shard_path(0)
    replace(copied / "provenance/zarr.json", kind, tmp_path)
    replace(copied / "rows/zarr.json", kind, tmp_path)
    replace(copied / norms, kind, tmp_path)
    with no_waiting():
        assert read_provenance(copied) == {}
        assert norms in str(largest_rows(copied, manifest)["mlp_out.0"])
        problems = " ".join(verify_cache(copied).problems)
        assert "rows/zarr.json" in problems and norms in problems
        replace(copied / "zarr.json", kind, tmp_path)
        with pytest.raises(CorruptCacheError, match=r"zarr.json cannot be read: not a regular file"):
            open_cache(copied)
        assert inspect_output(copied) == "foreign"


@pytest.mark.parametrize("name", ["spill/token", "lock", "journal.json"])
def test_what_stands_in_place_of_a_file_of_an_unfinished_cache(tmp_path: Path, name: str) -> None:
    def write() -> None:
        with CacheWriter(tmp_path / "c", hooks={"h": 4}, identity={}) as writer:
            writer.write_rows({"h": np.ones((9, 4), np.float32)})
            writer.commit()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    replace(tmp_path / "c" / ".writing" / name, "fifo", tmp_path)
    with no_waiting(), pytest.raises(SaecacheError, match=f"{name} is not a file"):
        write()


# Compressed chunks


@pytest.mark.parametrize("kind", ["zstd", "blosc"])
def test_chunks_that_grow_when_they_are_decoded_are_not_kept(tmp_path: Path, kind: str) -> None:
    """A cache of 2.4 MB, of chunks of 128 MiB, took 2.9 GB; honest rows shrink by a few times at most."""
    width, rows = 1024, 40_000
    storage = StorageConfig(chunk_rows=2000, codec={"kind": kind}, normalization="none")
    with CacheWriter(tmp_path / "c", hooks={"h": width}, identity={}, storage=storage) as writer:
        for _ in range(20):
            writer.write_rows({"h": np.ones((rows // 20, width), np.float32)})
    cache = open_cache(tmp_path / "c")
    with little_memory(48 * MIB):  # twelve chunks
        for epoch in (0, 1):
            batches = cache.batches("h", 1000, epoch=epoch)
            for _ in range(3):
                assert (next(batches) == 1).all()
            batches.close()  # type: ignore[attr-defined]
    assert (cache.rows("h", [0, rows - 1, 7, 2000]) == 1).all()
    assert verify_cache(tmp_path / "c").ok


# The table of a team


def test_a_large_object_does_not_keep_a_team_waiting(tmp_path: Path, cache_path: Path) -> None:
    """A manifest of 250 MB took 11.4 GB and minutes, of everybody who listed its prefix."""
    shutil.copytree(cache_path, tmp_path / "team" / "good")
    for name in ("zarr.json", ".unfinished.json"):
        place = tmp_path / "team" / f"large{name}" / name
        place.parent.mkdir()
        with place.open("wb") as file:
            file.write(b'{"attributes": {"saecache": [')
            file.truncate(200 * MIB)
    with little_memory(16 * MIB):
        found = {listed.url.rpartition("/")[2]: listed for listed in list_caches(f"file://{tmp_path}/team")}
    assert {name: listed.state for name, listed in found.items()} == {
        "good": "complete",
        "largezarr.json": "unreadable",
        "large.unfinished.json": "unreadable",
    }
    assert "209715200 bytes" in found["largezarr.json"].problem
