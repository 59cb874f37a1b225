"""Batches that a thread brings to a device: the bits of the CPU's reader, ahead, and no thread left."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache.common.errors import CorruptCacheError
from saecache.common.transfers import TRANSFERS
from saecache.store import ActivationCache, CacheWriter, StorageConfig, open_cache
from saecache.store.normalization import KINDS, Kind
from saecache.store.reading import device_batches
from saecache.store.reading.device_batches import Load

from ...killing import DEADLINE_SECONDS
from ...pretend_transfers import PretendTransfers, pretend
from ..encodings import ENCODINGS

HOOK, WIDTH, ROWS = "h", 24, 3000
ROW_FACTOR = Kind("raw", row_factor=lambda x: 1 / x.norm(dim=-1, keepdim=True).clamp_min(1e-20))

Install = Callable[..., type[PretendTransfers]]


def write(path: Path, **storage: Any) -> ActivationCache:
    """Rows of very different norms and means, some of them attention sinks, one constant, one zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, WIDTH)) * rng.lognormal(size=(ROWS, 1)) + rng.normal(size=(ROWS, 1))
    x[7], x[8], x[::50] = 3, 0, x[::50] * 100
    config = StorageConfig(chunk_rows=64, shard_bytes=1 << 16, **storage)
    with CacheWriter(path, hooks={HOOK: WIDTH}, identity={}, storage=config, heldout_fraction=0.1) as writer:
        writer.write_rows({HOOK: x.astype(np.float32)})
    return open_cache(path)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ActivationCache]:
    made: dict[tuple[str, str], ActivationCache] = {}

    def get(encoding: str = "float16", normalization: str = "unit") -> ActivationCache:
        key = (encoding, normalization)
        if key not in made:
            path = tmp_path_factory.mktemp("caches") / "cache"
            made[key] = write(path, normalization=normalization, **ENCODINGS[encoding])
        return made[key]

    return get


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make the CPU a device with transfers; in the end no thread of the feed is left."""

    def make(seconds: float = 0.0) -> type[PretendTransfers]:
        kind = pretend(seconds)
        monkeypatch.setitem(TRANSFERS, "cpu", kind)
        return kind

    yield make
    assert not feeding()


def feeding() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "saecache-feed"]


def same(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    """Bit for bit."""
    pairs = zip(got, wanted, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


@pytest.mark.parametrize("normalization", ["unit", "none"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", [*KINDS, "of each row"])
def test_the_bits_are_those_of_the_cpu(
    caches: Callable[..., ActivationCache],
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    normalization: str,
    kind: str,
) -> None:
    monkeypatch.setitem(KINDS, "of each row", ROW_FACTOR)
    cache = caches(encoding, normalization)
    ways: list[dict[str, Any]] = [
        {"epoch": 0},
        {"epoch": 2, "drop_last": True},
        {"epoch": 1, "start_batch": 3, "sink_ratio": 8.0},
        {"split": "heldout", "dtype": torch.float16},
        {"epoch": 1, "dtype": torch.bfloat16, "num_rows": 900},
        {"dtype": torch.float64},
    ]
    wanted = [list(cache.batches(HOOK, 200, 5, normalization=kind, **way)) for way in ways]
    install()
    got = [list(cache.batches(HOOK, 200, 5, normalization=kind, **way)) for way in ways]
    assert all(same(*pair) for pair in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("encoding", "kind", "row_bytes"),
    [
        ("float16", "unit", 2 * WIDTH),
        ("float16", "scale", 2 * WIDTH + 8),
        ("bfloat16", "layer_norm", 2 * WIDTH),
        ("int8", "unit", WIDTH + 4),
        ("int8-zstd", "none", WIDTH + 12),
        ("float32", "unit", 4 * WIDTH),
    ],
)
def test_what_goes_over_is_what_is_stored(
    caches: Callable[..., ActivationCache], install: Install, encoding: str, kind: str, row_bytes: int
) -> None:
    made = install().made
    batches = list(caches(encoding).batches(HOOK, 256, normalization=kind, drop_last=True))
    assert made[0].bytes == len(batches) * 256 * row_bytes


def test_batches_wait_there_before_they_are_asked_for_and_no_more_than_planned(
    caches: Callable[..., ActivationCache], install: Install
) -> None:
    made = install(0.001).made
    stream = caches().batches(HOOK, 100, epoch=1, batches_ahead=4)
    first = next(stream).clone()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while made[0].done < 6 and time.monotonic() < deadline:  # the first, four ahead, and one being filled
        time.sleep(0.002)
    time.sleep(0.05)
    assert made[0].asked == made[0].done == 6
    assert made[0].pinned_bytes == 5 * 100 * 2 * WIDTH
    stream.close()
    assert torch.equal(first, next(caches().batches(HOOK, 100, epoch=1)))


def test_slots_are_bounded_by_memory(
    caches: Callable[..., ActivationCache], install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = install()
    for most, slots in ((1, 3), (5 * 100 * 2 * WIDTH, 5)):
        monkeypatch.setattr(device_batches, "MOST_BYTES", most)
        stream = caches().batches(HOOK, 100, batches_ahead=50)
        next(stream)
        assert kind.made[-1].pinned_bytes == slots * 100 * 2 * WIDTH
        stream.close()


@pytest.mark.parametrize("slow", ["reader", "copies", "consumer"])
def test_whoever_is_slow_the_batches_are_the_same(
    caches: Callable[..., ActivationCache], install: Install, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    cache = caches("int8")
    wanted = list(cache.batches(HOOK, 150, epoch=3, normalization="none"))
    install(0.004 if slow == "copies" else 0.0)
    fill = Load.fill
    random = np.random.default_rng(1)

    def fill_slowly(self: Load, *arguments: Any) -> None:
        if slow == "reader":
            time.sleep(random.uniform(0, 0.004))
        fill(self, *arguments)

    monkeypatch.setattr(Load, "fill", fill_slowly)
    got = []
    for batch in cache.batches(HOOK, 150, epoch=3, normalization="none"):
        if slow == "consumer":
            time.sleep(random.uniform(0, 0.004))
        got.append(batch)  # stays as it is, though the slots are used again
    assert same(got, wanted)


def test_damage_is_reported_after_the_batches_before_it(tmp_path: Path, install: Install) -> None:
    write(tmp_path / "cache")
    shard = tmp_path / "cache" / "rows" / HOOK / "activations" / "c" / "0" / "0"
    damaged = bytearray(shard.read_bytes())
    damaged[10 * 64 * 2 * WIDTH] ^= 1  # somewhere in chunk 10
    shard.write_bytes(damaged)
    install()
    good = 0
    with pytest.raises(CorruptCacheError, match="chunk"):
        for _ in open_cache(tmp_path / "cache").batches(HOOK, 64):
            good += 1
    assert 5 <= good <= 10


def test_an_iterator_may_be_closed_forgotten_or_never_begun(
    caches: Callable[..., ActivationCache], install: Install
) -> None:
    install(0.002)
    caches().batches(HOOK, 100)
    for taken in (1, 3):
        stream = caches().batches(HOOK, 100, epoch=1)
        assert len(list(islice(stream, taken))) == taken and feeding()
        stream.close()
        assert not feeding() and list(stream) == []
    stream = caches().batches(HOOK, 100)
    next(stream)
    del stream
    gc.collect()


def test_an_error_of_the_consumer_ends_the_thread(
    caches: Callable[..., ActivationCache], install: Install
) -> None:
    install()
    with pytest.raises(KeyError):
        for _ in caches().batches(HOOK, 100):
            raise KeyError
    gc.collect()


def test_python_ends_though_an_iterator_is_left_over(caches: Callable[..., ActivationCache]) -> None:
    code = (
        "import sys; from saecache.common.transfers import TRANSFERS; from saecache.store import open_cache;"
        "from tests.pretend_transfers import pretend; TRANSFERS['cpu'] = pretend(0.001);"
        "stream = open_cache(sys.argv[1]).batches('h', 50, epoch=1); next(stream); print('begun')"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code, str(caches().path)],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=DEADLINE_SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\n", "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", ["float16", "bfloat16", "int8", "float32"])
@pytest.mark.parametrize("normalization", ["unit", "none"])
def test_no_tensor_of_main_memory_meets_one_of_the_device(
    caches: Callable[..., ActivationCache], encoding: str, normalization: str, kind: str
) -> None:
    """The device 'meta' refuses both in one operation."""
    load = Load(caches(encoding, normalization)._row_reader(HOOK, "train", kind), torch.float32)
    memory = torch.empty(load.num_bytes(70), dtype=torch.uint8, device="meta")
    rows = load.make_rows(memory, 70)
    assert (rows.device.type, rows.shape, rows.dtype) == ("meta", (70, WIDTH), torch.float32)
