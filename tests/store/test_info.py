"""What a cache says of itself without reading rows."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecache.store import CacheWriter, StorageConfig, UsageError, open_cache
from saecache.store.info import describe, largest_rows, read_manifest, read_provenance

from .commands import saecache


def test_describe(cache_path: Path, source: Any) -> None:
    manifest, provenance = read_manifest(cache_path), read_provenance(cache_path)
    lines = dict(describe(manifest, provenance))
    assert lines["fingerprint"] == manifest.fingerprint
    assert lines["training rows"] == f"{manifest.train_rows:,}"
    assert lines["sequences"] == "60 of 16 positions"
    assert lines["stored as"] == "float16, normalization unit"
    assert lines["hook mlp_out.0"].startswith("17 wide, norm ")
    assert lines["source"] == "test" and lines["seed"] == "0"
    assert lines["software.numpy"] and lines["created"]
    assert all(len(value) <= 100 for value in lines.values())


def test_long_names_of_others_are_cut(cache_path: Path) -> None:
    """Labels are one column: the longest one sets the width of every line."""
    long = "\x1b" * 100_000
    manifest = read_manifest(cache_path).model_copy(update={"counts": {long: 1}})
    lines = describe(manifest, {long: {"a": 1, "b": {long: 2}}})
    assert max(len(label) for label, _ in lines) == 100
    assert sum(label.startswith("\\x1b") for label, _ in lines) == 3


def with_sinks(path: Path) -> None:
    """5,000 rows of norm about 5 (a mean of 2 in each entry), among them 3 of norm about 500."""
    x = np.random.default_rng(0).normal(size=(5000, 24)).astype(np.float32) + 2
    x[[7, 1000, 4000]] *= 100
    storage = StorageConfig(chunk_rows=64, shard_bytes=8192)
    with CacheWriter(path, hooks={"h": 24, "w": 24}, identity={}, storage=storage) as writer:
        writer.write_rows({"h": x, "w": np.ones_like(x)})


def test_info_shows_norm_quantiles_and_how_much_the_largest_rows_weigh(tmp_path: Path) -> None:
    """Attention sinks: a few rows with most of E|x|^2 are what an SAE then learns."""
    with_sinks(tmp_path / "c")
    cache = open_cache(tmp_path / "c")
    x = cache.rows("h", np.arange(len(cache)), normalization="none").double()
    energy = x.square().sum(1).sort(descending=True).values
    share = float(energy[:5].sum() / energy.sum())
    found = largest_rows(tmp_path / "c", cache.manifest)
    assert found["h"].share == pytest.approx(share, rel=1e-3) and 0.8 < share < 0.9
    assert (found["h"].rows, found["h"].looked_at) == (5, 5000)
    assert found["w"].share == pytest.approx(0.001)

    shown = dict(describe(cache.manifest, largest=found))
    expected = f"{share:.1%} of E|x|^2 is in 5 of 5,000 rows; the setting sink_ratio leaves such rows out"
    assert shown["largest rows of h"] == expected
    assert shown["largest rows of w"] == "0.1% of E|x|^2 is in 5 of 5,000 rows"
    quantiles = cache.statistics("h").norm_quantiles
    assert shown["norms of h"].startswith(f"1 %: {quantiles['0.01']:.4g}, 25 %: ")
    assert shown["norms of h"].endswith(f", 99 %: {quantiles['0.99']:.4g}, 100 %: {quantiles['1']:.4g}")

    text = saecache("info", tmp_path / "c").stdout
    assert expected in text and shown["norms of h"] in text
    document = json.loads(saecache("info", tmp_path / "c", "--json").stdout)
    assert document["largest_rows"]["h"] == {"share": found["h"].share, "rows": 5, "looked_at": 5000}
    assert document["fingerprint"] == cache.fingerprint


def test_of_a_large_cache_the_first_rows_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sinks(tmp_path / "c")
    monkeypatch.setattr("saecache.store.info._MOST_ROWS", 100)
    manifest = read_manifest(tmp_path / "c")
    x = open_cache(tmp_path / "c").rows("h", range(100), normalization="none").double()
    energy = x.square().sum(1)
    found = largest_rows(tmp_path / "c", manifest)["h"]
    assert (found.rows, found.looked_at) == (1, 100)
    assert found.share == pytest.approx(float(energy.max() / energy.sum()), rel=1e-3)


def test_of_a_large_cache_at_a_url_nothing_is_downloaded(
    tmp_path: Path, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, nowhere = read_manifest(cache_path), "s3://127.0.0.1/nowhere"

    def refuse(url: str) -> Any:
        raise UsageError(f"{url} was opened")

    monkeypatch.setattr("saecache.store.info.open_remote", refuse)
    opened = dict.fromkeys(manifest.hooks, f"{nowhere} was opened")
    assert largest_rows(nowhere, manifest) == opened  # few bytes: and an error is shown in their place
    monkeypatch.setattr("saecache.store.info._CHEAP_BYTES", 8 * 2 * manifest.train_rows - 1)
    assert largest_rows(nowhere, manifest) == {}


def test_info_of_a_cache_whose_norms_are_damaged(tmp_path: Path, cache_path: Path) -> None:
    path = shutil.copytree(cache_path, tmp_path / "c")
    (path / "rows" / "mlp_out.0" / "norm" / "c" / "0").unlink()
    done = saecache("info", path)
    assert done.exit_code == 0 and "mlp_out.0/norm/c/0: the shard is missing" in done.stdout
    assert "of E|x|^2 is in 1 of" in done.stdout  # the other hook's


def test_long_names_do_not_widen_every_line(cache_path: Path) -> None:
    manifest, long = read_manifest(cache_path), "x" * 100_000
    manifest = manifest.model_copy(update={"counts": {long: 1}})
    shown = describe(manifest, {long: {str(i): i for i in range(100)}, "short": 1})
    assert max(len(label) for label, _ in shown) == 100
    assert ("short", "1") in shown and shown[-2][0] == "x" * 97 + "..."


def test_provenance_is_never_needed(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) == {}
    (tmp_path / "provenance").mkdir()
    for content in ("", "[]", "{}", '{"attributes": 3}'):
        (tmp_path / "provenance" / "zarr.json").write_text(content)
        assert read_provenance(tmp_path) == {}


def test_loads_no_torch_zarr_or_numba() -> None:
    code = (
        "import sys, saecache.common.errors, saecache.store.info, saecache.store.config;"
        "import saecache.store.writing.planned_size;"
        "print([name for name in ('torch', 'zarr', 'numba', 'transformers') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
