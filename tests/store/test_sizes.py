"""Sizes are related to each other before anything is allocated or walked: hostile files cost little."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest

from saecache.common.untrusted_files import open_regular, read_regular
from saecache.store import (
    CacheWriter,
    CorruptCacheError,
    StorageConfig,
    open_cache,
    slice_cache,
    verify_cache,
)
from saecache.store.manifest import load_manifest, parse_manifest
from saecache.store.untrusted import parse_json

from .test_hostile import copied, little_memory, sealed, values, values_of  # noqa: F401 - fixtures among them

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


@pytest.mark.parametrize("unit", [b'"%06d",', b'"%x":"",', b"%d.5,"])
def test_a_file_of_short_values_does_not_fill_the_memory(unit: bytes) -> None:
    """250 MB of short strings took 11.4 GB."""
    brackets = (b"{", b"}") if b":" in unit else (b"[", b"]")
    inner = b"".join(unit % ((i,) * unit.count(b"%")) for i in range(600_000))
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
        values = text.count(b",") + text.count(b"{") + text.count(b"[")
        assert values < len(text) // 12
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


def test_more_rows_than_positions(values: dict[str, Any]) -> None:  # noqa: F811
    altered = copy.deepcopy(values)
    altered["heldout_rows"] += altered["sequences"] * altered["context"]
    with pytest.raises(CorruptCacheError, match="positions"):
        parse_manifest(sealed(altered), "x")
