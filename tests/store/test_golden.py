"""A cache that was written once and is never written again: what is readable today stays readable.

``golden`` was made by ``python tests/store/test_golden.py``. A change of the format needs a new version
of it, and a new golden cache beside this one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from saecache.store import CacheWriter, Manifest, StorageConfig, open_cache, verify_cache

GOLDEN = Path(__file__).with_name("golden")
FINGERPRINT = "310b4ebb633c6f531a8362814f454004f86c9fe909412e177f4f8daf700436b2"
SEQUENCES, POSITIONS = [8, 6, 9, 4, 5], [5, 2, 1, 3, 7]  # of the first five rows


def whole_numbers(rows: int, width: int) -> np.ndarray:
    """Rows without any random generator in them."""
    numbers = np.arange(rows * width, dtype=np.int64) * 2654435761 % 1000
    return (numbers.reshape(rows, width) / 100 - 4).astype(np.float32)


def write(path: Path) -> Manifest:
    storage = StorageConfig(chunk_rows=16, shard_bytes=4096)
    writer = CacheWriter(
        path,
        hooks={"resid_post.1": 6, "mlp_out.0": 5},
        context=8,
        identity={"model": {"name": "golden"}},
        seed=42,
        heldout_fraction=0.25,
        storage=storage,
    )
    ids = np.arange(96).reshape(12, 8)
    documents = np.repeat(np.arange(6), 16).reshape(12, 8)
    keep = ids % 8 != 0
    rows = {"resid_post.1": whole_numbers(84, 6), "mlp_out.0": whole_numbers(84, 5)}
    writer.write_sequences(ids=ids, documents=documents, keep=keep, activations=rows)
    return writer.finalize(counts={"documents": 6})


def test_the_golden_cache_opens() -> None:
    assert verify_cache(GOLDEN).problems == []
    cache = open_cache(GOLDEN)
    assert cache.fingerprint == FINGERPRINT
    assert (len(cache), cache.num_rows("heldout")) == (70, 14)
    sequence, position, document = cache.locate(np.arange(5))
    assert sequence.tolist() == SEQUENCES and position.tolist() == POSITIONS
    assert np.array_equal(document, sequence // 2)
    for hook, width in (("resid_post.1", 6), ("mlp_out.0", 5)):
        raw = whole_numbers(84, width)[sequence * 7 + position - 1]
        assert np.abs(cache.rows(hook, range(5), normalization="none").numpy() - raw).max() < 0.01


def test_it_would_be_written_the_same_today(tmp_path: Path, contents: Callable[..., Any]) -> None:
    write(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(GOLDEN)


if __name__ == "__main__":
    write(GOLDEN)
