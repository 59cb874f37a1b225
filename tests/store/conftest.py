"""Small caches from known rows: what every test of the store starts from."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from saecache.store import CacheWriter, Manifest, StorageConfig
from saecache.testing.known_rows import KnownRows as Source
from saecache.testing.known_rows import cache_bytes as contents
from saecache.testing.known_rows import make_known_rows as make_source

# How long an example takes says what else the machine does, not whether the code is right.
hypothesis.settings.register_profile("store", deadline=None)
hypothesis.settings.load_profile("store")

SMALL = {"chunk_rows": 64, "shard_bytes": 8192, "memory_bytes": 1 << 20}


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
