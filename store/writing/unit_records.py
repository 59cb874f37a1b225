"""Units of work that are done once: each is recorded when its files are durable, and not done again."""

import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...common.regular_files import read_regular
from ...distributed.group import Group
from ..durable import make_folders, write_bytes
from ..layout import ArraySpec, Layout
from ..manifest import MAX_MANIFEST_BYTES, FileInfo
from ..untrusted_json import parse_json
from .journal import WORK_FOLDER
from .pieces import PieceStore

_UNITS_UNDER_WAY = 2  # being synced and recorded while the next is made

Written = tuple[str, Future[tuple[int, str]]]  # a file's path, and its size and sha256 once it is durable
Unit = tuple[list[Written], Any]  # the files, and what else the record keeps (plain JSON)


class Delivery(Protocol):
    """Moves finished shards from the folder where they were written to the place of the cache."""

    def has(self, file: FileInfo, *, keep: bool) -> bool:
        """Whether a shard of a former run is still in the folder or, without ``keep``, at its place."""

    def take(self, file: FileInfo, *, keep: bool) -> None:
        """Copy a shard to its place; without ``keep`` it is then removed from the folder."""

    def bring_back(self, file: FileInfo) -> None:
        """Copy a shard from its place into the folder."""

    def meet(self, group: Group) -> None:
        """Wait for the copies of all processes of ``group``, and notice what is at the place then."""

    def finish(self) -> None:
        """Called once the manifest is written: wait for the copies, and copy what is left in the folder."""


class UnitRecords:
    """Does each unit once, and knows the files of those that are done; of one process.

    Args:
        cache: the folder of the cache.
        layout: of the cache.
        on_progress: called with (bytes done, bytes in all).
        delivery: takes the files that are finished.
        shared: has the records of all processes, where they share no folder.
    """

    def __init__(
        self,
        cache: Path,
        layout: Layout,
        on_progress: Callable[[int, int], None] | None,
        delivery: Delivery | None,
        shared: PieceStore | None = None,
    ) -> None:
        self.files: list[FileInfo] = []
        self.done_bytes = 0
        self.total_bytes = layout.total_bytes()
        self.on_progress = on_progress
        self._cache = cache
        self.folder = cache / WORK_FOLDER / "done"
        self._delivery, self._shared = delivery, shared
        self._read_again = tuple(f"{layout.norm('train', hook).path}/" for hook in layout.hooks)
        self._paths = frozenset(
            spec.shard_path(shard) for spec in layout.arrays() for shard in range(spec.num_shards)
        )
        self._threads = ThreadPoolExecutor(1, "saecache-record")
        self._under_way: deque[Future[list[FileInfo]]] = deque()

    def prepare(self) -> None:
        """Create the folders of all files that the cache will have, and copy the records of others."""
        make_folders(sorted({(self._cache / path).parent for path in self._paths}))
        if self._shared is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            known = frozenset(path.name for path in self.folder.glob("*.json"))
            for name, content in self._shared.read_records(known):
                (self.folder / name).write_bytes(content)

    def has(self, name: str) -> bool:
        """Whether a former run did a unit, so that :meth:`once` will not do it."""
        return self._read(self._record_of(name)) is not None

    def once(self, name: str, write: Callable[[], Unit]) -> Any:
        """Call ``write`` unless a former run did, and record its result once its files are durable.

        Returns:
            What else the record keeps.
        """
        record = self._record_of(name)
        done = self._read(record)
        if done is None:
            written, extra = write()
            self._under_way.append(self._threads.submit(self._record, record, written, extra))
        else:
            files, extra = done
            self._under_way.append(self._threads.submit(lambda: files))
        self.settle(_UNITS_UNDER_WAY)
        return extra

    def settle(self, most: int = 0) -> None:
        """Wait until at most so many units are under way."""
        while len(self._under_way) > most:
            files = self._under_way.popleft().result()
            self.files += files
            if self._delivery is not None:
                for file in files:
                    self._delivery.take(file, keep=self._keeps(file))
            self.done_bytes += sum(file.size for file in files)
            if self.on_progress:
                self.on_progress(self.done_bytes, self.total_bytes)

    def bring_back(self, spec: ArraySpec) -> None:
        """Make sure that the files of an array are here, where other processes may have written some."""
        for file in self.files if self._delivery is not None else ():
            if file.path.startswith(f"{spec.path}/") and not (self._cache / file.path).is_file():
                assert self._delivery is not None
                self._delivery.bring_back(file)

    def close(self) -> None:
        self._threads.shutdown()

    def _record_of(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read(self, record: Path) -> tuple[list[FileInfo], Any] | None:
        """The record of a former run; None if its files have to be written again."""
        if not record.is_file():
            return None
        try:
            saved = parse_json(read_regular(record, MAX_MANIFEST_BYTES))
            files = [FileInfo.model_validate(values) for values in saved["files"]]
            extra = None if saved["extra"] is None else np.array(saved["extra"], np.float64).tolist()
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            return None
        return (files, extra) if all(file.path in self._paths and self._has(file) for file in files) else None

    def _has(self, file: FileInfo) -> bool:
        if self._delivery is not None:
            return self._delivery.has(file, keep=self._keeps(file))
        path = self._cache / file.path
        return path.is_file() and path.stat().st_size == file.size

    def _keeps(self, file: FileInfo) -> bool:
        """Whether a file stays in the folder until the end, because it is read again for the statistics."""
        return file.path.startswith(self._read_again)

    def _record(self, record: Path, written: list[Written], extra: Any) -> list[FileInfo]:
        """Record the files of a unit durably, once the files themselves are durable."""
        files = []
        for path, finished in written:
            size, digest = finished.result()
            files.append(FileInfo(path=path, size=size, sha256=digest))
        saved = json.dumps({"files": [file.model_dump() for file in files], "extra": extra}).encode()
        write_bytes(record, saved)
        if self._shared is not None:
            self._shared.put_record(record.name, saved)
        return files
