"""Damages files of caches, one at a time, and reads them: run in a process of its own, with little memory.

``python fuzzing.py FOLDER SEED ROUNDS``: FOLDER holds finished caches (``finished/*``), an unfinished one
(``unfinished``), and room for work. Prints every outcome that is neither right nor an error that names the
file, and exits with 1 if there is one. A case is found again by its seed.
"""

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from saecache.common.errors import SaecacheError
from saecache.harvest.job.row_writer import Progress
from saecache.store import CacheWriter, StorageConfig, inspect_output, open_cache, verify_cache
from saecache.store.info import describe, largest_rows, read_provenance
from saecache.store.manifest_file import load_manifest
from saecache.store.remote.cache_objects import read_local
from saecache.store.shard_file import crc32c

CPU_SECONDS, WALL_SECONDS, MORE_BYTES, MORE_ADDRESSES = 2.0, 900.0, 200 << 20, 2 << 30
NASTY: list[Any] = [
    *(0, -1, 1, 2**31, 2**48, 2**63, 2**64, -(2**70), 10**400, 0.5, 1e308, "NaN", "", "x" * 70_000),
    *(None, True, [], {}, [[]], {"": {}}, "\x00", "\ud800", "../../x", "/etc/passwd", "\x1b[2J"),
]
RAW_NUMBERS = [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"-0", b"0x10", b"1.5", b"null", b'"1"']


# Damage


def damage_bytes(random: random.Random, content: bytes) -> bytes:
    """Flip, cut, extend, or put something in."""
    at, kind = random.randrange(max(1, len(content))), random.randrange(9)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content + random.randbytes(random.choice([1, 20, 5000]))
    if kind == 2:
        return content[:at] + random.choice(RAW_NUMBERS) + content[at + random.randrange(9) :]
    if kind == 3:
        return content[:at] + b"[" * random.choice([3, 500, 100_000]) + content[at:]
    if kind == 4:
        return (
            content[:at] + random.choice([b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800"]) + content[at:]
        )
    if kind == 5:
        return random.choice(
            [b"", b"[]", b"null", b"\x00" * len(content), b"{" + b'"a":1,' * 50_000 + b'"a":1}']
        )
    if kind == 6:  # another part of it
        other = random.randrange(max(1, len(content)))
        return content[:at] + content[other : other + 40] + content[at + 40 :]
    flipped = bytearray(content)
    for _ in range(random.choice([1, 1, 4])):
        if flipped:
            flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    return bytes(flipped)


def damage_value(random: random.Random, value: Any) -> None:
    """Put something else in place of one to three parts of a JSON value."""
    for _ in range(random.choice([1, 1, 2, 3])):
        target = value
        while True:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            if not keys:
                break
            key = random.choice(keys)
            if isinstance(target[key], dict | list) and target[key] and random.random() < 0.8:
                target = target[key]
                continue
            kind, old = random.randrange(5), target[key]
            if kind == 0 and isinstance(target, dict):
                target.pop(key)
            elif kind == 1 and isinstance(old, int | float):
                target[key] = random.choice([old + 1, old - 1, -old, old * 2**20, float(old), str(old)])
            elif kind == 2 and isinstance(target, dict):
                target[random.choice(["", "x", "\x1b[2J", "k" * 5000])] = old
            else:
                target[key] = random.choice(NASTY)
            break


def reseal(document: dict[str, Any]) -> bytes:
    """A root zarr.json whose checksum and fingerprint are right again."""
    values = document["attributes"]["saecache"]
    values.pop("checksum", None)

    def digest(value: Any) -> str:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    if "identity" in values:
        values["fingerprint"] = digest(values["identity"])
    values["checksum"] = digest(values)
    return json.dumps(document).encode()


def damage_shard(random: random.Random, content: bytes, slots: int) -> bytes:
    """Chunks or index entries that are wrong on purpose: their crc32c are right again."""
    changed, table = bytearray(content), len(content) - 16 * slots - 4
    if random.random() < 0.5:
        offset, size = struct.unpack_from("<2Q", changed, table)
        if 4 < size <= table:
            for _ in range(random.choice([1, 3, 30])):
                changed[offset + random.randrange(min(size - 4, random.choice([16, size])))] = (
                    random.randrange(256)
                )
            changed[offset + size - 4 : offset + size] = crc32c(bytes(changed[offset : offset + size - 4]))
    else:
        old = struct.unpack_from("<Q", changed, table)[0]
        number = random.choice(
            [0, 1, old + 1, 2**63, 2**64 - 1, 2**64 - 4, len(content), random.getrandbits(64)]
        )
        struct.pack_into("<Q", changed, table + 8 * random.randrange(2 * slots), number)
        changed[-4:] = crc32c(bytes(changed[table:-4]))
    return bytes(changed)


def put_in_place(random: random.Random, path: Path, elsewhere: Path) -> bool:
    """Something else than a file; False where it cannot be made here."""
    path.unlink()
    kind = random.choice(["fifo", "folder", "link", "loop", "device", "nothing"])
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("link", "loop"):
        path.symlink_to(elsewhere if kind == "link" else path)
    elif kind == "device":
        try:
            os.mknod(path, 0o20644, os.makedev(1, 5))
        except PermissionError:
            return False
    return True


# What is read


def read_rows(path: Path | str) -> dict[str, np.ndarray]:
    """Everything that a cache hands out."""
    cache = open_cache(path)
    found: dict[str, np.ndarray] = {}
    for split in ("train", "heldout"):
        count = cache.num_rows(split)
        found[f"token/{split}"] = cache.token_index(split)[:]
        for hook in cache.hooks:
            found[f"{split}/{hook}"] = cache.rows(hook, range(count), split, normalization="none").numpy()
        found[f"place/{split}"] = np.stack(cache.locate(range(count), split))
    for hook in cache.hooks:
        found[f"epoch/{hook}"] = np.concatenate([b.numpy() for b in cache.batches(hook, 16, epoch=1)])
        found[f"mean/{hook}"] = cache.statistics(hook).mean
    return found


def look_at(path: Path) -> None:
    """The other readers of a finished cache."""
    for reader in (verify_cache, read_local):
        with contextlib.suppress(SaecacheError):
            reader(path)
    try:
        manifest = load_manifest(path)
    except SaecacheError:
        manifest = None
    if manifest is not None:
        describe(manifest, read_provenance(path), largest_rows(path, manifest))
    inspect_output(path)


def go_on(path: Path) -> None:
    """Continue the writing of a cache."""
    inspect_output(path)
    storage = StorageConfig(chunk_rows=32, shard_bytes=4096, memory_bytes=1 << 20)
    with CacheWriter(path, hooks={"h": 8}, context=4, identity={"source": "fuzz"}, storage=storage) as writer:
        writer.finalize()


# Cases


class Fuzz:
    """Runs cases, each in bounds; ``failures`` are those that ended wrongly."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.outside = folder / "outside"
        self.outside.write_bytes(b"{}")
        self.failures: list[str] = []
        self.cases = self.right = 0
        self._rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def case(self, name: str, place: str, act: Callable[[], Any], *, names: bool = True) -> None:
        """``act`` succeeds, or raises an error of ours that names ``place``, in bounded time and memory."""
        self.cases += 1
        problem = None
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        started = time.process_time()
        try:
            act()
            self.right += 1
        except SaecacheError as error:
            if names and place not in str(error):
                problem = f"an error that does not name {place}: {error!r:.400}"
        except BaseException:  # noqa: BLE001 - whatever it is, it is reported
            problem = traceback.format_exc()[-1500:]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.process_time() - started
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self._rss
        if seconds > CPU_SECONDS:
            problem = problem or f"it took {seconds:.1f} s of a processor"
        if grown > MORE_BYTES:
            problem = problem or f"it took {grown >> 20} MiB"
            self._rss += grown
        if problem:
            self.failures.append(f"{name} (seed {self.seed}): {problem}")


def finished_cases(fuzz: Fuzz, cache: Path, rounds: int) -> None:
    """Every kind of file of a finished cache, damaged in every way."""
    pristine = fuzz.folder / "pristine"
    shutil.rmtree(pristine, ignore_errors=True)
    shutil.copytree(cache, pristine)
    expected = read_rows(cache)
    look_at(cache)
    files = sorted(str(file.relative_to(cache)) for file in cache.rglob("*") if file.is_file())
    shards = {}
    for spec in load_manifest(cache).layout.arrays():
        shards |= {spec.shard_path(number): spec.chunks_per_shard for number in range(spec.num_shards)}
    small = [file for file in files if file not in shards]

    def check_rows(exact: bool) -> None:
        look_at(cache)
        got = read_rows(cache)
        if exact:
            assert got.keys() == expected.keys()
            for key, value in got.items():
                assert np.array_equal(value, expected[key], equal_nan=True), f"{key} differs"

    for number in range(rounds):
        draw = random.Random(f"{fuzz.seed} {cache.name} {number}")
        kind = draw.choice(["bytes", "sealed", "sealed", "shard", "shard", "value", "place"])
        name = "zarr.json" if kind == "sealed" else draw.choice(sorted(shards) if kind == "shard" else files)
        if kind in ("bytes", "value"):
            name = draw.choice([draw.choice(small), name] if kind == "bytes" else small)
        path, content, exact = cache / name, (pristine / name).read_bytes(), True
        if kind == "place":
            if not put_in_place(draw, path, fuzz.outside):
                continue
        else:
            path.unlink()
            if kind in ("sealed", "value"):
                document = json.loads(content)
                part = document["attributes"]["saecache"] if kind == "sealed" else document
                damage_value(draw, part)
                content = json.dumps(document).encode("utf-8", "surrogatepass")
                if kind == "sealed":
                    content, exact = reseal(document), False
            elif kind == "shard" and draw.random() < 0.8:
                content, exact = damage_shard(draw, content, shards[name]), False
            else:
                content = damage_bytes(draw, content)
            path.write_bytes(content)
        where = "" if kind == "sealed" else name.partition("/c/")[0]  # of a shard, its array
        fuzz.case(f"{cache.name} {number} {kind} {name}", where, lambda exact=exact: check_rows(exact))
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        shutil.copyfile(pristine / name, path)


def unfinished_cases(fuzz: Fuzz, unfinished: Path, rounds: int) -> None:
    """Journal, records and spill of a cache that is being written."""
    work = fuzz.folder / "work"
    files = sorted(str(file.relative_to(unfinished)) for file in unfinished.rglob("*") if file.is_file())
    files = [name for name in files if name.startswith(".writing") and not name.endswith("lock")]
    for number in range(rounds):
        draw = random.Random(f"{fuzz.seed} unfinished {number}")
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(unfinished, work)
        name = draw.choice([".writing/journal.json", draw.choice(files)])
        path, kind = work / name, draw.choice(["bytes", "value", "value", "place"])
        if kind == "place":
            if not put_in_place(draw, path, fuzz.outside):
                continue
        elif kind == "value" and name.endswith(".json"):
            document = json.loads(path.read_bytes())
            damage_value(draw, document)
            path.write_bytes(json.dumps(document).encode("utf-8", "surrogatepass"))
        else:
            path.write_bytes(damage_bytes(draw, path.read_bytes()))
        fuzz.case(f"unfinished {number} {kind} {name}", str(work), lambda: go_on(work), names=False)


def progress_cases(fuzz: Fuzz, rounds: int) -> None:
    """What a harvest notes in the journal."""
    noted = Progress(batch_size=4, median_norms={"h": 1.5}, conditions={"torch": "2"}).to_json()
    for number in range(rounds):
        draw = random.Random(f"{fuzz.seed} progress {number}")
        values = json.loads(json.dumps(noted))
        damage_value(draw, values)

        def read(values: dict[str, Any] = values) -> None:
            try:
                progress = Progress.from_json(values)
            except ValueError:
                return
            assert progress.tokens >= 0 and min(progress.cursor) >= 0
            progress.counts(10)

        fuzz.case(f"progress {number} {str(values)[:300]}", "", read)


def downloaded_cases(fuzz: Fuzz, cache: Path, rounds: int) -> None:
    """Files in the folder of downloads: what is damaged there is downloaded again."""
    downloads = fuzz.folder / "downloads"
    os.environ["SAECACHE_CACHE_DIR"] = str(downloads)
    expected = read_rows(f"file://{cache}")
    entries = sorted(path for path in (downloads / "shards").rglob("*") if path.is_file())

    def check_rows() -> None:
        got = read_rows(f"file://{cache}")
        for key, value in got.items():
            assert np.array_equal(value, expected[key]), f"{key} differs"

    for number in range(rounds):
        draw = random.Random(f"{fuzz.seed} downloads {number}")
        path = draw.choice(entries)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(damage_bytes(draw, content))
        fuzz.case(f"downloads {number} {path.name[:12]}", "", check_rows)
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def main(folder: Path, seed: int, rounds: int) -> int:
    def too_long(*_: object) -> None:
        raise TimeoutError("it waits for ever")

    signal.signal(signal.SIGALRM, too_long)
    caches = sorted((folder / "finished").iterdir())
    for cache in caches:  # what every case needs is in memory before it is limited
        read_rows(cache)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_ADDRESSES, resource.RLIM_INFINITY))
    fuzz = Fuzz(folder, seed)
    for part in parts(fuzz, caches, rounds):
        part()
    for failure in fuzz.failures[:20]:
        print(failure, end="\n\n")
    print(f"seed {seed}: {fuzz.cases} cases, {fuzz.right} read, {len(fuzz.failures)} failures")
    return min(1, len(fuzz.failures))


def parts(fuzz: Fuzz, caches: list[Path], rounds: int) -> Iterator[Callable[[], None]]:
    for cache in caches:
        yield lambda cache=cache: finished_cases(fuzz, cache, rounds)
    yield lambda: unfinished_cases(fuzz, fuzz.folder / "unfinished", rounds)
    yield lambda: progress_cases(fuzz, 4 * rounds)
    yield lambda: downloaded_cases(fuzz, caches[0], rounds // 2)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
