"""Caches in another number type or compression."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache.store import BadActivationError, StorageConfig, UsageError, open_cache, verify_cache
from saecache.store.derived.converting import convert_cache

from ..commands import saecache
from ..encodings import ENCODINGS

HOOK = "resid_post.1"


def settings_of(name: str) -> dict[str, Any]:
    storage = StorageConfig(**ENCODINGS[name])
    return {"dtype": storage.dtype, "codec": storage.codec}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, source: Any, write_cache: Callable[..., Any]) -> Path:
    path = tmp_path_factory.mktemp("exact") / "cache"
    write_cache(path, source, storage=ENCODINGS["float32"])
    return path


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name != "float32"])
def test_from_float32_it_is_a_harvest_in_the_other_type(
    exact: Path, source: Any, tmp_path: Path, write_cache: Callable[..., Any], contents: Any, name: str
) -> None:
    convert_cache(open_cache(exact), tmp_path / "converted", **settings_of(name))
    write_cache(tmp_path / "direct", source, storage=ENCODINGS[name])
    assert contents(tmp_path / "converted") == contents(tmp_path / "direct")
    assert verify_cache(tmp_path / "converted").ok


@pytest.mark.parametrize("name", ["float16-zstd", "float16-blosc"])
def test_compression_alone_and_back_changes_no_value(
    cache_path: Path, source: Any, tmp_path: Path, write_cache: Any, contents: Any, name: str
) -> None:
    convert_cache(open_cache(cache_path), tmp_path / "small", **settings_of(name))
    write_cache(tmp_path / "direct", source, storage=ENCODINGS[name])
    assert contents(tmp_path / "small") == contents(tmp_path / "direct")
    convert_cache(open_cache(tmp_path / "small"), tmp_path / "back", codec=None)
    assert contents(tmp_path / "back") == contents(cache_path)


def test_a_second_rounding_is_in_the_identity(cache_path: Path, tmp_path: Path) -> None:
    whole = open_cache(cache_path)
    convert_cache(whole, tmp_path / "int8", dtype="int8")
    small = open_cache(tmp_path / "int8")
    assert small.manifest.identity["converted_from"] == ["float16"]
    assert small.provenance["derived"]["by"] == "convert"
    assert np.array_equal(small.token_index()[:], whole.token_index()[:])
    difference = (small.rows(HOOK, range(len(whole))) - whole.rows(HOOK, range(len(whole)))).abs()
    largest = whole.rows(HOOK, range(len(whole))).abs().amax(1, keepdim=True)
    assert (difference <= largest / 254 * 1.001).all()
    convert_cache(small, tmp_path / "wide", dtype="float32")
    wide = open_cache(tmp_path / "wide")
    assert wide.manifest.identity["converted_from"] == ["float16", "int8"]
    assert torch.equal(wide.rows(HOOK, range(50)), small.rows(HOOK, range(50)))
    assert verify_cache(tmp_path / "int8").ok and verify_cache(tmp_path / "wide").ok


def test_what_cannot_be_converted(
    cache_path: Path, tmp_path: Path, make_source: Any, write_cache: Any
) -> None:
    with pytest.raises(UsageError, match="stored like that already"):
        convert_cache(open_cache(cache_path), tmp_path / "c")
    with pytest.raises(UsageError, match="slice it first"):
        convert_cache(open_cache(cache_path, rows=10), tmp_path / "c", dtype="int8")
    source = make_source(10, hooks={"h": 8})
    source.activations["h"] *= 1e6
    write_cache(tmp_path / "raw", source, storage={"normalization": "none", "dtype": "float32"})
    with pytest.raises(BadActivationError, match=r"hook h: values up to .* are too large for float16"):
        convert_cache(open_cache(tmp_path / "raw"), tmp_path / "c", dtype="float16")
    convert_cache(open_cache(tmp_path / "raw"), tmp_path / "d", dtype="bfloat16")
    assert verify_cache(tmp_path / "d").ok


def test_as_it_is_typed(cache_path: Path, tmp_path: Path) -> None:
    arguments = ["convert", cache_path, tmp_path / "c", "--dtype", "int8", "--codec", "zstd", "--level", "5"]
    done = saecache(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["dtype"], facts["codec"]) == ("int8", {"kind": "zstd", "level": 5})
    assert "nothing to do" in saecache(*arguments).stdout
    info = saecache("info", tmp_path / "c")
    assert "int8, compressed by zstd, normalization unit" in info.stdout
    for wrong in (
        ["--codec", "zip"],
        ["--dtype", "int4"],
        ["--level", "3"],
        ["--codec", "blosc", "--level", "77"],
    ):
        refused = saecache("convert", cache_path, tmp_path / "d", *wrong)
        assert refused.exit_code == 2 and refused.stderr.startswith("error: "), refused.stderr
