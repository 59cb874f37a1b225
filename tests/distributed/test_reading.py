"""A run of several processes that reads a cache in a bucket: its bytes come to each machine once."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from saecache.store import CacheWriter, open_cache
from saecache.store.config import StorageConfig
from saecache.store.remote.push import Push

from ..store.remote.proxy import Answer, Proxy
from .processes import start, wait

ROWS, WIDTH = 4096, 16
TRAIN = ["-m", "saecache", "train", "topk", "--set", "num_latents=256", "--set", "batch_rows=256"]
TRAIN += ["--set", "epochs=2"]


@pytest.fixture(scope="module")
def cache_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of many small shards."""
    path = tmp_path_factory.mktemp("sharded") / "cache"
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32))
    storage = StorageConfig(chunk_rows=64, shard_bytes=1 << 13)
    with CacheWriter(
        path, hooks={"h": WIDTH}, identity={"model": {"name": "none"}}, heldout_fraction=0.1, storage=storage
    ) as writer:
        writer.write_rows({"h": rows})
    return path


def count_bytes(proxy: Proxy) -> Counter[str]:
    """Bytes that leave the store from now on, by object."""
    sent: Counter[str] = Counter()
    lock = threading.Lock()

    def count(method: str, path: str, answer: Answer) -> Answer:
        if method == "GET" and "?" not in path:
            with lock:
                sent[path] += len(answer[2])
        return answer

    proxy.rewrite = count
    return sent


@pytest.mark.parametrize(
    ("size", "machines", "settings"),
    [
        (2, 1, ["--set", "variants=[{kind: topk, k: 4}]"]),
        (4, 1, ["--set", "variants=[{kind: relu}]"]),
        (4, 2, ["--set", "variants=[{kind: batch_topk, k: 4}]"]),
        (2, 1, ["--set", "parallel.variants=2", "--set", "variants=[{kind: topk, k: 4}, {kind: relu}]"]),
    ],
    ids=["2", "4", "4 on 2 machines", "2 with variants of their own"],
)
def test_every_byte_leaves_the_store_once_for_each_machine(
    cache_path: Path, team: str, proxy: Proxy, tmp_path: Path, size: int, machines: int, settings: list[str]
) -> None:
    url = f"{team}/cache"
    Push(cache_path, url).run()
    sent = count_bytes(proxy)
    folders = [str(tmp_path / f"machine{rank * machines // size}") for rank in range(size)]
    command = [*TRAIN, *settings, "--cache", url, "--out", str(tmp_path / "run")]
    ended = wait(start(size, command, tmp_path, own=[{"SAECACHE_CACHE_DIR": folder} for folder in folders]))
    assert [one.status for one in ended] == [0] * size, [one.errors[-2000:] for one in ended]
    files = {file.path: file.size for file in open_cache(cache_path).manifest.files}
    rows = [path for path in files if path.startswith("rows/h/activations/")]
    assert len(rows) > 10
    for path, size_there in files.items():
        once = machines * size_there
        found = sent[f"/{url.removeprefix('s3://')}/{path}"]
        assert found == once if path in rows else found in (0, once), path
    root = cache_path / "zarr.json"
    assert sent[f"/{url.removeprefix('s3://')}/zarr.json"] == root.stat().st_size  # one tells the others


def test_machines_that_share_rows_read_their_own_shards(
    cache_path: Path, team: str, proxy: Proxy, tmp_path: Path
) -> None:
    """In the first epoch, in which rows come as they are stored."""
    url = f"{team}/cache"
    Push(cache_path, url).run()
    sent = count_bytes(proxy)
    settings = ["epochs=1", "batch_rows=1024", "parallel.rows=2", "variants=[{kind: topk, k: 4}]"]
    settings += ["initialisation.decoder_bias=zeros"]  # else all look at the first rows
    command = [*TRAIN, *(part for setting in settings for part in ("--set", setting))]
    command += ["--cache", url, "--out", str(tmp_path / "run")]
    own = [{"SAECACHE_CACHE_DIR": str(tmp_path / f"machine{rank}")} for rank in range(2)]
    ended = wait(start(2, command, tmp_path, own=own))
    assert [one.status for one in ended] == [0, 0], [one.errors[-2000:] for one in ended]
    files = {file.path: file.size for file in open_cache(cache_path).manifest.files}
    rows = [path for path in files if path.startswith("rows/h/activations/")]
    batches = int(0.9 * ROWS) // 1024
    twice = [path for path in rows if sent[f"/{url.removeprefix('s3://')}/{path}"] > files[path]]
    read = [path for path in rows if sent[f"/{url.removeprefix('s3://')}/{path}"]]
    assert twice == [] and len(read) >= 4 * batches
