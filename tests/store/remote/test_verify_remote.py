"""``verify URL`` finds in a bucket what ``verify DIR`` finds in a folder, in the same words."""

import hashlib
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from saecache.store import CorruptCacheError, open_cache, verify_cache
from saecache.store.layout import index_size
from saecache.store.manifest import Manifest
from saecache.store.manifest_file import load_manifest
from saecache.store.remote.push import Push
from saecache.store.remote.shard_stream import ShardStream
from saecache.store.remote.transfer import Traffic
from saecache.store.remote.verify import verify_remote

from ..altering import alter, seal
from .conftest import HOOK


@pytest.fixture
def copied(tmp_path: Path, cache_path: Path) -> Path:
    shutil.copytree(cache_path, tmp_path / "copy")
    return tmp_path / "copy"


def set_nan(values: NDArray[Any]) -> None:
    values[70, 3] = np.nan


def exchange(values: NDArray[Any]) -> None:
    values[[0, 1]] = values[[1, 0]]


def move_beyond(values: NDArray[Any]) -> None:
    values[-1] = 2**40


def move_documents(values: NDArray[Any]) -> None:
    values[:] = values[::-1].copy()


def flip_in_chunk(content: bytearray) -> None:
    content[10] ^= 1


def flip_in_index(content: bytearray) -> None:
    content[-9] ^= 1


NUMBERS: dict[str, tuple[Callable[[Manifest], Any], Callable[[NDArray[Any]], None], str]] = {
    "NaN": (lambda m: m.layout.activations("train", HOOK), set_nan, "NaN or infinity in row 70;"),
    "order": (lambda m: m.layout.token("train"), exchange, "not in the order that follows from the seed"),
    "order of held-out rows": (lambda m: m.layout.token("heldout"), exchange, "not in the order"),
    "beyond": (lambda m: m.layout.token("heldout"), move_beyond, "is beyond the 60 sequences"),
    "side of the split": (lambda m: m.layout.documents(), move_documents, "is of a document that is"),
}


@pytest.mark.parametrize(("array", "edit", "words"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_that_were_written_so(
    copied: Path,
    team: str,
    array: Callable[[Manifest], Any],
    edit: Callable[[NDArray[Any]], None],
    words: str,
) -> None:
    alter(copied, array(load_manifest(copied)), edit)
    Push(copied, f"{team}/c").run()
    problems = verify_remote(f"{team}/c").problems
    assert problems and any(words in problem for problem in problems)
    assert problems == verify_cache(copied).problems


@pytest.mark.parametrize("flip", [flip_in_chunk, flip_in_index])
@pytest.mark.parametrize("dtype", [{}, {"codec": {"kind": "zstd"}}], ids=["plain", "compressed"])
def test_checksums_inside_shards(
    tmp_path: Path,
    team: str,
    source: Any,
    write_cache: Callable[..., Any],
    flip: Callable[[bytearray], None],
    dtype: dict[str, Any],
) -> None:
    """The sha256 in the manifest is that of the damaged file: only the checksums inside it differ."""
    path = tmp_path / "c"
    manifest = write_cache(path, source, storage=dtype)
    file = path / manifest.layout.activations("train", HOOK).shard_path(0)
    content = bytearray(file.read_bytes())
    flip(content)
    file.write_bytes(content)
    seal(path)
    Push(path, f"{team}/c").run()
    problems = verify_remote(f"{team}/c").problems
    assert len(problems) == 1 and "crc32c" in problems[0]
    assert problems == verify_cache(path).problems


def test_rows_that_are_not_finite_are_not_streamed(copied: Path, team: str, tmp_path: Path) -> None:
    """What was compared with the manifest as it came is looked at all the same, and not downloaded again."""
    alter(copied, load_manifest(copied).layout.activations("train", HOOK), set_nan)
    Push(copied, f"{team}/c").run()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "downloads"))
        cache = open_cache(f"{team}/c")
        shard = load_manifest(copied).layout.activations("train", HOOK).shard_path(0)
        for _ in range(2):
            with pytest.raises(CorruptCacheError, match="NaN or infinity in row 70;"):
                list(cache.batches(HOOK, 64))
        sha256 = hashlib.sha256((copied / shard).read_bytes()).hexdigest()
        assert list((tmp_path / "downloads" / "shards").rglob(sha256))  # kept


def test_progress_counts_every_byte_once(team: str, cache_path: Path) -> None:
    Push(cache_path, f"{team}/c").run()
    moved: list[int] = []
    report = verify_remote(f"{team}/c", Traffic(on_progress=moved.append))
    assert report.ok and sum(moved) == report.bytes


@pytest.mark.parametrize("block", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("codec", [None, {"kind": "zstd"}], ids=["plain", "compressed"])
def test_a_shard_in_blocks_of_any_size(
    tmp_path: Path, source: Any, write_cache: Callable[..., Any], block: int, codec: Any
) -> None:
    manifest = write_cache(tmp_path / "c", source, storage={"codec": codec} if codec else {})
    spec = manifest.layout.activations("train", HOOK)
    content = (tmp_path / "c" / spec.shard_path(0)).read_bytes()
    length = index_size(spec.chunks_per_shard)
    for place in (None, 3, len(content) - length - 2):
        altered = bytearray(content)
        if place is not None:
            altered[place] ^= 1
        shard = ShardStream(bytes(altered[-length:]), spec, 0, len(altered))
        for start in range(0, len(altered), block):
            shard.take(bytes(altered[start : start + block]))
        assert len(shard.problems) == (place is not None)


def test_memory_is_that_of_a_chunk_for_each_shard(
    tmp_path: Path, team: str, make_source: Callable[..., Any], write_cache: Callable[..., Any]
) -> None:
    source = make_source(sequences=1500, hooks={HOOK: 256})
    write_cache(tmp_path / "c", source, storage={"shard_bytes": 8 << 20, "chunk_rows": 64})
    size = sum(file.size for file in load_manifest(tmp_path / "c").files)
    Push(tmp_path / "c", f"{team}/c").run()
    verify_remote(f"{team}/c", Traffic(concurrency=2))  # what is imported and connected once
    tracemalloc.start()
    try:
        assert verify_remote(f"{team}/c", Traffic(concurrency=2)).ok
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()
