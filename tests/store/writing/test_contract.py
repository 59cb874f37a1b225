"""Our own writers hold the contract of caches."""

from pathlib import Path

import numpy as np
import pytest

from saecache.store import CacheWriter, StorageConfig, slice_cache
from saecache.store.reading.reader import open_cache
from saecache.testing import CacheContract, KnownRows, make_known_rows

from ..conftest import write_cache


class TestSequences(CacheContract):
    """Sequences of tokens, with commits."""

    def rows(self) -> KnownRows:
        return make_known_rows()

    def write(self, path: Path) -> None:
        write_cache(path, self.rows(), commit_every=3)


class TestSequencesInMemory(TestSequences):
    """Rows that are never spilled, stored raw."""

    num_interruptions = 4

    def write(self, path: Path) -> None:
        write_cache(path, self.rows(), storage={"normalization": "none", "dtype": "float32"})


class TestRows(CacheContract):
    """Rows that come from no text."""

    num_interruptions = 4

    def rows(self) -> KnownRows:
        known = make_known_rows(sequences=500, context=1)
        return KnownRows(known.ids, known.documents, np.ones_like(known.keep), self.activations())

    def activations(self) -> dict[str, np.ndarray]:
        return {"layer3": np.random.default_rng(1).normal(size=(500, 12)).astype(np.float32)}

    def write(self, path: Path) -> None:
        storage = StorageConfig(chunk_rows=64, shard_bytes=8192)
        with CacheWriter(
            path, hooks={"layer3": 12}, identity={"source": "x"}, heldout_fraction=0.2, storage=storage
        ) as writer:
            if not (done := writer.sequences_done):  # else it was stopped while it cleaned up
                writer.write_rows(self.activations(), documents=self.rows().documents[:, 0])
            assert done in (0, 500)


class TestSlice(CacheContract):
    """A cache made of another one."""

    num_interruptions = 4

    @pytest.fixture(autouse=True)
    def _source(self, cache_path: Path) -> None:
        self.source = cache_path

    def rows(self) -> KnownRows:
        known = make_known_rows()
        return KnownRows(
            known.ids, known.documents, known.keep, {"mlp_out.0": known.activations["mlp_out.0"]}
        )

    def write(self, path: Path) -> None:
        slice_cache(open_cache(self.source), path, hooks=["mlp_out.0"])
