"""Comparing a cache in object storage with its manifest, without a copy."""

import tempfile
from functools import partial
from pathlib import Path

from ...common.errors import CorruptCacheError
from ..manifest import FileInfo, Manifest
from ..reading.sharded_array import ShardedArray
from ..verify import VerifyReport, check_rows_in_place
from .cache_objects import PROVENANCE, ROOT, CacheObject, read_metadata, read_root
from .downloads.cache import DownloadCache
from .opening import fetch_from
from .places.by_url import open_remote_folder
from .places.failures import MissingObjectError
from .places.object_requests import OnBytes, ignore_bytes
from .places.remote_folder import RemoteFolder
from .places.retries import Patience
from .shard_stream import open_shard_stream
from .shards import RemoteShards
from .transfer import Traffic

_TEMPORARY_BYTES = 256 << 20


def verify_remote(
    url: str, traffic: Traffic | None = None, *, quick: bool = False, patience: Patience | None = None
) -> VerifyReport:
    """Read every object of the cache at ``url`` and check what :func:`verify_cache` checks of a folder.

    Shards stream past, and one chunk for each of them is in memory. The arrays that say where rows come from
    are read a second time, through a temporary folder of at most 256 MB, or two shards if those are larger.

    Args:
        quick: compare sizes, and the sha256 that was recorded beside each object when it was written;
            the bytes are not read.

    Raises:
        UsageError, IncompleteCacheError, CorruptCacheError: there is no sound manifest to compare with.
    """
    location = open_remote_folder(url, patience)
    traffic = traffic or Traffic()
    root = read_root(location)
    report = VerifyReport()
    there = {info.key: info for info in location.objects(must_show=ROOT)}
    if (foreign := root.foreign(there)) is not None:
        report.problems.append(f"{foreign}: no part of the cache")

    places = {
        spec.shard_path(shard): (spec, shard)
        for spec in root.manifest.layout.arrays()
        for shard in range(spec.num_shards)
    }

    def check(wanted: CacheObject) -> None:
        listed = there.get(wanted.key)
        if listed is None:
            problems = [f"{wanted.key}: missing"]
        elif listed.size != wanted.size:
            problems = [f"{wanted.key}: {listed.size} bytes, expected {wanted.size}"]
        elif quick:
            info = listed if listed.sha256 else location.head(wanted.key)
            problems = []
            if info is not None and info.sha256 not in (None, wanted.sha256):
                problems = [f"{wanted.key}: recorded sha256 is {info.sha256}, expected {wanted.sha256}"]
        else:
            problems = read(wanted, traffic.moved) and read(wanted)  # twice: it may be damaged on the way
        report.problems += problems
        report.files += 1
        report.bytes += 0 if problems else wanted.size

    def read(wanted: CacheObject, on_bytes: OnBytes = ignore_bytes) -> list[str]:
        def once() -> list[str]:
            shard = open_shard_stream(location, *places[wanted.key], wanted.size)
            got = location.stream_once(wanted.key, wanted.size, shard.take, on_bytes)
            if got == wanted.sha256:
                return shard.problems
            where = "".join(f" ({problem})" for problem in shard.problems[:1])
            return [f"{wanted.key}: sha256 is {got}, expected {wanted.sha256}{where}"]

        try:
            return location.repeat(once)
        except (MissingObjectError, CorruptCacheError) as error:
            return [str(error).removeprefix(f"{location.url}/")]

    def check_small(key: str) -> None:
        try:
            read_metadata(location, root, key)
        except MissingObjectError:
            report.problems += [f"{key}: missing"] if key != PROVENANCE else []
        except CorruptCacheError as error:
            report.problems.append(str(error).removeprefix(f"{location.url}/"))

    traffic.run(
        [
            *(partial(check_small, key) for key in [*root.metadata, PROVENANCE]),
            *(partial(check, wanted) for wanted in root.shards()),
        ]
    )
    report.problems.sort()
    if report.ok and not quick:  # numbers from damaged files prove nothing
        report.problems += _check_rows_in_place(location, root.manifest, traffic)
    return report


def _check_rows_in_place(location: RemoteFolder, manifest: Manifest, traffic: Traffic) -> list[str]:
    """As :func:`check_rows_in_place`; the arrays come through a download cache of their own, which goes."""
    fetch = fetch_from(location, manifest)

    def count(file: FileInfo, target: Path, on_bytes: OnBytes) -> None:
        def moved(number: int) -> None:
            on_bytes(number)
            traffic.moved(number, again=True)

        fetch(file, target, moved)

    with tempfile.TemporaryDirectory(prefix="saecache-verify-", ignore_cleanup_errors=True) as folder:
        largest = max((file.size for file in manifest.files), default=0)
        local = DownloadCache(Path(folder), max(_TEMPORARY_BYTES, 2 * largest))
        files = RemoteShards(count, manifest, local)
        return check_rows_in_place(manifest, lambda spec: ShardedArray(location.url, spec, files=files))
