"""Training batches from a bucket: the first epoch against a plain download, the second against a local cache.

    python benchmarks/streaming.py [--quick] [--link MB/S] [--mib N] [--shard-mib N] [--rounds R]

A SeaweedFS server on this machine holds the cache, so server, network and reader share the processor: the
plain download (eight threads, to files, nothing checked) shows what is there to be had. Neither side syncs
its files. The first epoch opens the cache, downloads, checks all against the sha256 of the manifest, and
hands out all batches.

``checked`` passes are the first of a cache that was opened anew, so that every chunk is checked against its
crc32c once; ``again`` are later ones. Bucket and local cache take turns, who is first changes from round to
round, and nothing waits to be written while a pass is timed.

With ``--link`` everything from the server goes through a relay of so many megabytes a second: it stands for
a network that is slower than memory.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from shared.measuring import Report, parser, ratios, timed

from saecache.store import ActivationCache, CacheWriter, StorageConfig, open_cache
from saecache.store.remote.push import Push
from saecache.store.remote.shards import DOWNLOADS_AT_ONCE

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "store" / "remote"))
from server import BUCKET, start_server, stop_server

HOOK = "h"
URL = f"s3://{BUCKET}/bench/cache"
AGAIN = 3  # passes of each side in a round


RELAY = """
import socket, sys, threading, time
port, rate = int(sys.argv[1]), float(sys.argv[2]) * 1e6
lock, free_at = threading.Lock(), 0.0

def pump(source, target, paid):
    global free_at
    try:
        while block := source.recv(1 << 18):
            if paid:
                with lock:
                    now = time.monotonic()
                    free_at = max(free_at, now) + len(block) / rate
                    pause = free_at - now
                time.sleep(pause)
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass

listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
while True:
    client, _ = listening.accept()
    server = socket.create_connection(("127.0.0.1", port))
    threading.Thread(target=pump, args=(client, server, False), daemon=True).start()
    threading.Thread(target=pump, args=(server, client, True), daemon=True).start()
"""


@contextmanager
def link(endpoint: str, megabytes_per_second: float | None) -> Iterator[str]:
    """The endpoint behind a link of this speed."""
    if megabytes_per_second is None:
        yield endpoint
        return
    command = [sys.executable, "-c", RELAY, endpoint.rsplit(":", 1)[1], str(megabytes_per_second)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout
        try:
            yield f"http://127.0.0.1:{relay.stdout.readline().strip()}"
        finally:
            relay.kill()


def write_cache(path: Path, rows: int, width: int, shard_bytes: int) -> None:
    block = np.random.default_rng(0).normal(size=(8192, width)).astype(np.float32)
    storage = StorageConfig(shard_bytes=shard_bytes)
    with CacheWriter(path, hooks={HOOK: width}, identity={}, storage=storage) as writer:
        for start in range(0, rows, len(block)):
            writer.write_rows({HOOK: block[: rows - start]})


def plain_download(keys: list[str], folder: Path) -> None:
    """Every object to a file, as fast as obstore goes."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        client_options={"allow_http": True},
    )

    def download(number: int) -> None:
        with (folder / str(number)).open("wb", buffering=0) as file:
            for chunk in obstore.get(store, f"bench/cache/{keys[number]}").stream(min_chunk_size=1 << 20):
                file.write(chunk)

    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        list(pool.map(download, range(len(keys))))


def epoch(cache: ActivationCache, batch: int) -> float:
    """A pass over all rows, as a training loop makes it; what it read, for comparison."""
    return sum(float(x[0, 0]) for x in cache.batches(HOOK, batch))


class Rounds:
    """The passes that are compared. Each is timed from a quiet disk, and checked to have read the same."""

    def __init__(self, folder: Path, keys: list[str], batch: int) -> None:
        self.folder, self.keys, self.batch = folder, keys, batch
        os.environ["SAECACHE_CACHE_DIR"] = str(folder / "downloads")
        self.expected = epoch(open_cache(folder / "cache"), batch)
        self.seconds: dict[str, list[float]] = {}

    def run(self, number: int) -> None:
        """One round; odd ones go the other way round."""
        turns = slice(None, None, -1 if number % 2 else 1)
        for time_it in (self._plain, self._first)[turns]:
            for name in ("downloads", "plain"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            time_it()
        if number % 2:  # the plain download was last, the files of the epoch are gone
            shutil.rmtree(self.folder / "plain")
            epoch(open_cache(URL), self.batch)
        self._compare("checked", self._opened(), turns)
        opened = self._opened()
        for cache in opened.values():
            epoch(cache, self.batch)
        for _ in range(AGAIN):
            self._compare("again", opened, turns)

    def _opened(self) -> dict[str, ActivationCache]:
        return {"local": open_cache(self.folder / "cache"), "bucket": open_cache(URL)}

    def _compare(self, what: str, caches: dict[str, ActivationCache], turns: slice) -> None:
        for side, cache in list(caches.items())[turns]:
            self._timed(f"{side}, {what}", partial(epoch, cache, self.batch))

    def _plain(self) -> None:
        (self.folder / "plain").mkdir()
        self._timed("plain download", lambda: plain_download(self.keys, self.folder / "plain"))

    def _first(self) -> None:
        self._timed("first epoch", lambda: epoch(open_cache(URL), self.batch))

    def _timed(self, name: str, work: Callable[[], float | None]) -> None:
        os.sync()
        got: list[float | None] = []
        cost = timed(lambda: got.append(work()))
        self.seconds.setdefault(name, []).append(cost.seconds)
        assert got[0] in (None, self.expected), name


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--link", type=float, default=None, help="megabytes a second from the server")
    options.add_argument("--mib", type=int, default=768, help="size of the stored rows")
    options.add_argument(
        "--shard-mib", type=int, default=32, help="several times eight shards, as real caches have"
    )
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--batch", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    settings = options.parse_args()
    if settings.quick:
        settings.mib, settings.shard_mib, settings.rounds = 128, 16, 3
    rows = (settings.mib << 20) // (2 * settings.width)
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        folder = Path(name)
        write_cache(folder / "cache", rows, settings.width, settings.shard_mib << 20)
        files = open_cache(folder / "cache").manifest.files
        keys = [file.path for file in files if f"rows/{HOOK}/activations/" in file.path]
        report = Report(
            "streaming",
            settings,
            f"{rows:,} rows of {settings.width} float16 in {len(keys)} shards, batches of {settings.batch}, "
            f"{torch.get_num_threads()} threads, "
            f"{f'a link of {settings.link:g} MB/s' if settings.link else 'loopback'}",
        )
        (folder / "server").mkdir()
        server = start_server(folder / "server")
        try:
            os.environ.update(server.environment())
            Push(folder / "cache", URL).run()
            with link(server.endpoint, settings.link) as endpoint:
                os.environ["AWS_ENDPOINT_URL"] = endpoint
                rounds = Rounds(folder, keys, settings.batch)
                for number in range(settings.rounds):
                    rounds.run(number)
        finally:
            stop_server(server)
        megabytes = sum(file.size for file in files if file.path in set(keys)) / 1e6
    for what, taken in rounds.seconds.items():
        report.add(what, (megabytes / time for time in taken), "MB/s", "speed")
    for what, other in (
        ("first epoch", "plain download"),
        ("bucket, checked", "local, checked"),
        ("bucket, again", "local, again"),
    ):
        faster = ratios(rounds.seconds[other], rounds.seconds[what])
        report.add(f"{what} / {other}", faster, group="ratio of speeds")
    report.save()


if __name__ == "__main__":
    main()
