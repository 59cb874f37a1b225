"""Checking every byte of a cache against its manifest and checksums."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import CorruptCacheError
from .info import read_manifest
from .sharded_array import ShardedArray


@dataclass
class VerifyReport:
    """What was read, and what is wrong with it: one line per problem, each naming its file."""

    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_cache(path: Path | str, *, on_progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read every shard of the cache and compare with the manifest.

    Args:
        path: the cache.
        on_progress: called with (bytes read, bytes in all).
    """
    path = Path(path)
    manifest = read_manifest(path)
    report = VerifyReport()
    total = sum(file.size for file in manifest.files)
    for file in manifest.files:
        where = path / file.path
        if not where.is_file():
            report.problems.append(f"{file.path}: missing")
            continue
        size = where.stat().st_size
        if size != file.size:
            report.problems.append(f"{file.path}: {size} bytes, expected {file.size}")
            continue
        with where.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        report.files += 1
        report.bytes += size
        if digest != file.sha256:
            report.problems.append(f"{file.path}: sha256 {digest}, expected {file.sha256}")
        if on_progress:
            on_progress(report.bytes, total)
    for spec in manifest.layout.arrays():
        array = ShardedArray(path, spec)
        for number in range(-(-spec.shape[0] // spec.chunk_rows)):
            try:
                array.chunk(number)
            except CorruptCacheError as error:
                report.problems.append(str(error))
    return report
