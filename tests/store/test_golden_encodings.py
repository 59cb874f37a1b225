"""One cache per encoding, and a merged one, written once and never again: they open in every later version.

``golden_encodings`` was made by ``python tests/store/test_golden_encodings.py``. It writes what is missing,
replaces nothing, and prints what is pinned below.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecache.store import CacheWriter, StorageConfig, merge_caches, open_cache, verify_cache

FOLDER = Path(__file__).with_name("golden_encodings")
STORAGE: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32", "normalization": "none"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "float16-zstd": {"codec": {"kind": "zstd", "level": 3}},
    "float16-blosc": {"codec": {"kind": "blosc"}},
    "int8-blosc": {"dtype": "int8", "codec": {"kind": "blosc", "cname": "lz4", "shuffle": "noshuffle"}},
}
NAMES = [*STORAGE, "merged"]
PINNED = {  # name -> beginnings of its fingerprint, and of the sha256 of all its rows
    "float32": ("888603a71c5e", "e7f0c419df67"),
    "bfloat16": ("1fcd0e44f7c8", "3dd3c9d9c4ad"),
    "int8": ("87f2f6db94cb", "5884a5586bc3"),
    "float16-zstd": ("5982cd5abf5a", "1e364ba65910"),
    "float16-blosc": ("0d18a8b12d76", "1e364ba65910"),
    "int8-blosc": ("132de83331a5", "5884a5586bc3"),
    "merged": ("96d35fac09a0", "fcd1e51934da"),
}
ERROR = {"float16": 0.01, "float32": 1e-6, "bfloat16": 0.02, "int8": 0.03}  # of values up to 6


def whole_numbers(rows: int, width: int, start: int = 0) -> np.ndarray:
    """Rows without any random generator in them."""
    numbers = (np.arange(rows * width, dtype=np.int64) + start) * 2654435761 % 1000
    return (numbers.reshape(rows, width) / 100 - 4).astype(np.float32)


def write(path: Path, storage: dict[str, Any], text: str = "a", start: int = 0) -> None:
    writer = CacheWriter(
        path,
        hooks={"resid_post.1": 6},
        context=8,
        identity={"model": {"name": "golden"}, "text": text},
        seed=7,
        heldout_fraction=0.25,
        storage=StorageConfig(chunk_rows=32, shard_bytes=4096, **storage),
    )
    ids = np.arange(96).reshape(12, 8) + start
    documents = np.repeat(np.arange(6), 16).reshape(12, 8)
    rows = {"resid_post.1": whole_numbers(84, 6, start)}
    writer.write_sequences(ids=ids, documents=documents, keep=ids % 8 != 0, activations=rows)
    writer.finalize(counts={"documents": 6})


def write_named(path: Path, name: str) -> None:
    if name != "merged":
        write(path, STORAGE[name])
        return
    with tempfile.TemporaryDirectory() as folder:
        for part, (text, start) in enumerate((("a", 0), ("b", 800))):
            write(Path(folder) / str(part), {}, text, start)
        merge_caches([open_cache(Path(folder) / str(part)) for part in range(2)], path)


def rows_of(path: Path) -> tuple[str, np.ndarray]:
    """(sha256 of all rows as they are handed out, the training rows raw)."""
    cache = open_cache(path)
    digest = hashlib.sha256()
    for split in ("train", "heldout"):
        rows = cache.rows("resid_post.1", range(cache.num_rows(split)), split)
        digest.update(rows.numpy().astype("<f4").tobytes())
    raw = cache.rows("resid_post.1", range(len(cache)), normalization="none").numpy()
    return digest.hexdigest(), raw


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    for name in NAMES:
        shutil.unpack_archive(FOLDER / f"{name}.tar.xz", folder / name, filter="data")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_it_opens(unpacked: Path, name: str) -> None:
    assert verify_cache(unpacked / name).problems == []
    cache = open_cache(unpacked / name)
    digest, raw = rows_of(unpacked / name)
    assert (cache.fingerprint[:12], digest[:12]) == PINNED[name]
    sequence, position, document = cache.locate(np.arange(len(cache)))
    part, local = np.divmod(sequence, 12)
    assert np.array_equal(document, part * 6 + local // 2)
    written = np.stack([whole_numbers(84, 6, start) for start in (0, 800)])
    expected = written[part, local * 7 + position - 1]
    assert np.abs(raw - expected).max() < ERROR[cache.manifest.dtype]
    epoch = np.concatenate([batch.numpy() for batch in cache.batches("resid_post.1", 20, epoch=1)])
    assert len(epoch) == len(cache)


@pytest.mark.parametrize("name", NAMES)
def test_it_would_be_written_the_same_today(
    unpacked: Path, tmp_path: Path, contents: Callable[..., Any], name: str
) -> None:
    """Compressed bytes may change with the library that makes them; what they stand for may not."""
    write_named(tmp_path / "again", name)
    if "-" not in name:
        assert contents(tmp_path / "again") == contents(unpacked / name)
    assert rows_of(tmp_path / "again")[0] == rows_of(unpacked / name)[0]
    assert open_cache(tmp_path / "again").fingerprint == open_cache(unpacked / name).fingerprint


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 100_000


def main() -> None:
    for name in NAMES:
        archive = FOLDER / f"{name}.tar.xz"
        with tempfile.TemporaryDirectory() as folder:
            if not archive.exists():
                write_named(Path(folder) / name, name)
                shutil.make_archive(str(FOLDER / name), "xztar", Path(folder) / name)
            back = Path(folder) / "back"
            shutil.unpack_archive(archive, back, filter="data")
            print(f"{name!r}: {(open_cache(back).fingerprint[:12], rows_of(back)[0][:12])},")


if __name__ == "__main__":
    main()
