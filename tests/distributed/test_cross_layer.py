"""Processes that share a cross-layer transcoder, whose layers end within their parts of the latents."""

from pathlib import Path

import pytest

from saecache.store.reading.reader import ActivationCache
from saecache.testing.shapes import SHAPES
from saecache.testing.sparse_rows import write_cache_of_two_hooks
from saecache.train import run

from .test_training import assert_same_run, config_of, ends, every_kind, train_with

LAYERS = {**SHAPES["cross-layer transcoder"].run, "num_latents": 320}  # five units of 64, in two layers


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return write_cache_of_two_hooks(tmp_path_factory.mktemp("cache") / "cache")


@pytest.mark.slow
def test_every_kind_has_the_bytes_of_one_process(cache: ActivationCache, tmp_path: Path) -> None:
    config = config_of(*every_kind(), **LAYERS)
    assert not run(config, cache, tmp_path / "alone").failed
    assert ends(train_with(3, cache, tmp_path / "run", config)) == ["well"] * 3
    assert_same_run(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_sharing_the_latents_beside_the_rows_changes_no_byte(cache: ActivationCache, tmp_path: Path) -> None:
    config = config_of(*every_kind()[:6], **LAYERS, parallel={"rows": 2})
    for size in (2, 4):
        assert ends(train_with(size, cache, tmp_path / f"{size}", config)) == ["well"] * size
    assert_same_run(tmp_path / "4", tmp_path / "2")
