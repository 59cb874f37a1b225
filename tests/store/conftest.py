"""Small caches from known rows: what every test of the store starts from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray

from saecache.store import CacheWriter, Manifest, StorageConfig

# How long an example takes says what else the machine does, not whether the code is right.
hypothesis.settings.register_profile("store", deadline=None)
hypothesis.settings.load_profile("store")

SMALL = {"chunk_rows": 64, "shard_bytes": 8192, "memory_bytes": 1 << 20}


@dataclass(frozen=True)
class Source:
    """Rows whose every value is known, so that a cache made of them can be checked."""

    ids: NDArray[np.int32]
    documents: NDArray[np.int32]
    keep: NDArray[np.bool_]
    activations: dict[str, NDArray[np.float32]]

    @property
    def hooks(self) -> dict[str, int]:
        return {hook: rows.shape[1] for hook, rows in self.activations.items()}

    @property
    def context(self) -> int:
        return self.ids.shape[1]

    def raw(self, hook: str, token_index: NDArray[np.integer]) -> NDArray[np.float32]:
        """The rows [n, D] of some token indices."""
        places = np.searchsorted(np.flatnonzero(self.keep), np.asarray(token_index).astype(np.int64))
        return self.activations[hook][places]

    def batches(self, sequences: int, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """(first sequence, arguments of write_sequences) in batches of so many sequences."""
        rows = np.concatenate([[0], np.cumsum(self.keep.sum(axis=1))])
        for first in range(start, len(self.ids), sequences):
            last = min(first + sequences, len(self.ids))
            part = slice(first, last)
            kept = slice(rows[first], rows[last])
            yield (
                first,
                {
                    "ids": self.ids[part],
                    "documents": self.documents[part],
                    "keep": self.keep[part],
                    "activations": {hook: x[kept] for hook, x in self.activations.items()},
                },
            )


def make_source(
    sequences: int = 60, context: int = 16, hooks: Mapping[str, int] | None = None, seed: int = 0
) -> Source:
    rng = np.random.default_rng(seed)
    keep = rng.random((sequences, context)) < 0.8
    documents = np.repeat(np.arange(sequences) // 3, context).reshape(sequences, context)
    widths = hooks or {"resid_post.1": 24, "mlp_out.0": 17}
    activations = {
        hook: (rng.normal(size=(keep.sum(), width)) * rng.lognormal(size=(keep.sum(), 1)) + 0.3).astype(
            np.float32
        )
        for hook, width in widths.items()
    }
    ids = rng.integers(0, 1000, (sequences, context))
    return Source(ids.astype(np.int32), documents.astype(np.int32), keep, activations)


def write_cache(
    path: Path,
    source: Source,
    *,
    batch: int = 7,
    commit_every: int | None = None,
    storage: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Manifest:
    """``source`` as a cache, with ``batch`` sequences in each call and a commit after so many calls."""
    arguments = {"identity": {"source": "test"}, "heldout_fraction": 0.2} | settings
    writer = CacheWriter(
        path,
        hooks=source.hooks,
        context=source.context,
        storage=StorageConfig(**{**SMALL, **(storage or {})}),
        **arguments,
    )
    for number, (_, arrays) in enumerate(source.batches(batch, writer.sequences_done)):
        writer.write_sequences(**arrays)
        if commit_every and number % commit_every == commit_every - 1:
            writer.commit({"calls": number + 1})
    return writer.finalize()


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a cache by its path, but for the volatile facts."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in files
        if file.relative_to(path).parts[0] != "provenance"
    }


@pytest.fixture(scope="session", autouse=True)
def quick_disk() -> Iterator[None]:
    """Tests of crashes start processes of their own; no other needs to wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", name="make_source")
def make_source_fixture() -> Callable[..., Source]:
    return make_source


@pytest.fixture(scope="session", name="write_cache")
def write_cache_fixture() -> Callable[..., Manifest]:
    return write_cache


@pytest.fixture(scope="session", name="contents")
def contents_fixture() -> Callable[[Path], dict[str, bytes]]:
    return contents


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., dict[str, Any]]]:
    """Writes caches in processes that are killed."""
    from .crash import crash_server  # the server runs this file by its path

    with crash_server() as run:
        yield run


@pytest.fixture(scope="session")
def source() -> Source:
    return make_source()


@pytest.fixture(scope="session")
def cache_path(tmp_path_factory: pytest.TempPathFactory, source: Source) -> Path:
    """A finished cache that no test changes."""
    path = tmp_path_factory.mktemp("shared") / "cache"
    write_cache(path, source)
    return path
