"""What a cache says of itself without reading rows."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from saecache.store.info import describe, read_manifest, read_provenance


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
