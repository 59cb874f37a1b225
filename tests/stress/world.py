"""What all rounds share: caches, an SAE, a store behind a proxy, and places to run commands at."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ..store.remote.proxy import Proxy, running_proxy
from ..store.remote.server import BUCKET, SECRET_KEY
from .clients import DEADLINE_SECONDS, Client, Clients
from .stores import Store

EXTENDED = "extended"  # the name of the cache that extends the first
PROVENANCE = "provenance/zarr.json"  # when and where a cache was made: it differs from harvest to harvest
_HARVEST = """
model: {name: "builtin:demo"}
text: {kind: files, paths: text}
tokens: {context: 64}
hooks: [resid_post.1]
num_tokens: TOKENS
seed: SEED
heldout_fraction: 0.1
batch_size: 16
device: cpu
storage: {chunk_rows: 64, shard_bytes: 65536}
"""
_TRAIN = """
hook: resid_post.1
num_latents: 32
batch_rows: 64
epochs: 2
device: cpu
variants: [{kind: topk, k: 4}]
checkpoint: {every_steps: 4}
log: {every_steps: 4, progress: false}
"""


@dataclass
class World:
    """One store behind one proxy, and what was made in folders: what every round is compared with.

    ``caches`` are two caches, and a third that extends the first; ``trained`` is the SAE of a run on the
    first, ``measured`` its results, and ``published`` what publishing it writes.
    """

    store: Store
    proxy: Proxy
    clients: Clients
    folder: Path
    caches: dict[str, Path]
    trained: dict[str, bytes]
    measured: list[Any]
    published: dict[str, bytes]
    _numbers: Iterator[int] = field(default_factory=count)

    def new_place(self) -> "Place":
        number = next(self._numbers)
        folder = self.folder / f"{self.store.name}-{number}"
        folder.mkdir()
        return Place(self, f"{number}", folder)

    def quiet(self) -> None:
        """Wait until nothing of a killed client is on its way to the store any more."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.proxy.under_way:
            if time.monotonic() > deadline:
                raise TimeoutError("a request has been on its way for too long")
            time.sleep(0.001)


@dataclass
class Place:
    """A prefix of its own in the store, and a folder of its own here. ``cache`` is the one it is to hold."""

    world: World
    name: str
    folder: Path
    cache: str = "a"

    @property
    def team(self) -> str:
        return f"s3://{BUCKET}/{self.name}"

    @property
    def url(self) -> str:
        return f"{self.team}/c"

    def start(self, words: list[str], *, directly: bool = False) -> Client:
        """Start ``saecache WORDS``, whose requests go through the proxy unless ``directly``."""
        environment = self.world.store.environment(None if directly else self.world.proxy.url)
        environment["SAECACHE_CACHE_DIR"] = str(self.folder / "downloads")
        return self.world.clients.start(words, environment)

    def run(self, words: list[str], *, directly: bool = False) -> Client:
        client = self.start(words, directly=directly)
        self.world.clients.wait(client)
        return client

    def objects(self) -> dict[str, bytes]:
        return self.world.store.objects(f"{self.name}/c")

    def fill(self) -> None:
        """Put its cache there, as a push leaves it."""
        self.world.store.fill(f"{self.name}/c", files_of(self.world.caches[self.cache]))

    def difference(self, cache: str | None = None) -> str:
        """How the objects differ from those of a cache, or "" where they do not."""
        return difference(self.objects(), files_of(self.world.caches[cache or self.cache]))

    def remove(self) -> None:
        """Remove everything, so that a long run needs little room."""
        self.world.store.empty(self.name)
        shutil.rmtree(self.folder)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its relative path."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def difference(got: dict[str, bytes], expected: dict[str, bytes]) -> str:
    """The first differing key of each kind in words, or ""; provenance need only be there and be JSON."""
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    other = sorted(key for key in got.keys() & expected.keys() - {PROVENANCE} if got[key] != expected[key])
    found = {"missing": missing, "left over": extra, "other bytes": other}
    words = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in found.items() if keys]
    if PROVENANCE in got:
        json.loads(got[PROVENANCE])
    return "; ".join(words)


def complaint(client: Client) -> str:
    """What is wrong with how a command ended, whatever it was to do; "" where nothing is."""
    text = client.output + client.errors
    if SECRET_KEY in text:
        return "the secret key was printed"
    if "Traceback" in text or "panicked" in text:
        return f"a stack trace: {client.errors.strip().splitlines()[-1][:200]}"
    if client.status not in (0, 1, 2):
        return f"exit status {client.status}"
    if client.status and "error: " not in text:
        return f"exit status {client.status} without a message"
    return ""


def settings_files(folder: Path) -> None:
    """``harvest-a.yaml`` and others like it, ``train.yaml`` and the text of the harvests."""
    (folder / "text").mkdir()
    documents = (f"document {n} says " + "so it goes, " * (n % 7) for n in range(120))
    lines = (json.dumps({"text": document}) for document in documents)
    (folder / "text" / "documents.jsonl").write_text("\n".join(lines))
    for cache, seed, tokens in (("a", 0, 1000), ("b", 1, 1000), (EXTENDED, 0, 1600)):
        text = _HARVEST.replace("SEED", f"{seed}").replace("TOKENS", f"{tokens}")
        (folder / f"harvest-{cache}.yaml").write_text(text)
    (folder / "train.yaml").write_text(_TRAIN)


def make_world(clients: Clients, folder: Path) -> dict[str, Any]:
    """Give every command once where nothing disturbs it; the facts of a :class:`World`."""
    settings_files(folder)
    commands = [
        *(["harvest", f"harvest-{cache}.yaml", "--out", f"cache-{cache}"] for cache in "ab"),
        ["harvest", f"harvest-{EXTENDED}.yaml", "--extend", "cache-a", "--out", f"cache-{EXTENDED}"],
        ["train", "train.yaml", "--cache", "cache-a", "--out", "run"],
        ["evaluate", "run", "--cache", "cache-a", "--no-model", "--out", "measured/results.json"],
        ["publish", "run", "s3://team/sae", "--results", "measured/results.json", "--preview", "published"],
    ]
    for words in commands:
        client = clients.run(words, {}, learn=True)
        if client.status != 0:
            raise RuntimeError(f"{' '.join(words)}: {client.errors}")
    return {
        "caches": {cache: folder / f"cache-{cache}" for cache in ("a", "b", EXTENDED)},
        "trained": sae_of(folder / "run"),
        "measured": measures_of(folder / "measured" / "results.json"),
        "published": files_of(folder / "published"),
    }


def measures_of(results: Path) -> list[Any]:
    """What a results file says of its SAEs; the rest of it says when and from where."""
    found: list[Any] = json.loads(results.read_text())["saes"]
    return found


def sae_of(run: Path) -> dict[str, bytes]:
    """The files of the one SAE of a run."""
    return files_of(run / "topk_k4" / "sae")


@contextmanager
def open_world(store: Store, clients: Clients, folder: Path, made: dict[str, Any]) -> Iterator[World]:
    with running_proxy(store.endpoint) as proxy:
        yield World(store, proxy, clients, folder, **made)
