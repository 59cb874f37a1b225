"""Comparing a cache in object storage with its manifest, without a copy."""

from functools import partial

from ...common.errors import CorruptCacheError
from ..verify import VerifyReport
from .cache_objects import (
    PROVENANCE,
    ROOT,
    CacheObject,
    foreign_key,
    read_metadata,
    read_provenance,
    read_root,
)
from .failures import MissingObjectError
from .object_requests import ObjectInfo
from .remote_folder import open_remote_folder
from .retries import Patience
from .transfer import Traffic


def verify_remote(
    url: str, traffic: Traffic | None = None, *, quick: bool = False, patience: Patience | None = None
) -> VerifyReport:
    """Read every object of the cache at ``url`` and compare it with the manifest.

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
    if (foreign := foreign_key(there, root)) is not None:
        report.problems.append(f"{foreign}: no part of the cache")

    def check(wanted: CacheObject) -> None:
        problem = _size_problem(wanted, there.get(wanted.key))
        if problem is None and quick:
            info = location.head(wanted.key)
            recorded = info.sha256 if info else None
            if recorded not in (None, wanted.sha256):
                problem = f"{wanted.key}: recorded sha256 is {recorded}, expected {wanted.sha256}"
        elif problem is None:
            problem = read(wanted)
        report.problems += [problem] if problem else []
        report.files += 1
        report.bytes += wanted.size if problem is None else 0

    def read(wanted: CacheObject) -> str | None:
        try:
            got = location.checksum(wanted.key, size=wanted.size, on_bytes=traffic.moved)
            if got != wanted.sha256:  # once more: it may have been damaged on the way
                got = location.checksum(wanted.key, size=wanted.size)
        except (MissingObjectError, CorruptCacheError) as error:
            return str(error).removeprefix(f"{location.url}/")
        return None if got == wanted.sha256 else f"{wanted.key}: sha256 is {got}, expected {wanted.sha256}"

    def check_small(key: str) -> None:
        try:
            read_provenance(location) if key == PROVENANCE else read_metadata(location, root, key)
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
    return report


def _size_problem(wanted: CacheObject, info: ObjectInfo | None) -> str | None:
    if info is None:
        return f"{wanted.key}: missing"
    return None if info.size == wanted.size else f"{wanted.key}: {info.size} bytes, expected {wanted.size}"
