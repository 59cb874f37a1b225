"""From object storage to a folder: what is missing or different moves, the manifest comes last.

While a pull is under way, or after it stopped, the folder has ``.pulling/`` with a lock and the manifest, and
no root zarr.json: it is no cache yet. Each file is checked before it gets its name, so that a pull that was
killed goes on with the files that have none.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ...common.errors import CorruptCacheError, UsageError
from ...common.outputs import take_lock
from ...common.regular_files import read_regular
from ..disk_space import check_room, disk_explained
from ..durable import TEMPORARY_SUFFIX, fsync_folder, make_folder, write_bytes
from ..manifest import MAX_MANIFEST_BYTES
from ..manifest_file import PULL_FOLDER
from ..untrusted_json import MAX_METADATA_BYTES, check_no_links
from ..writing.output import inspect_output
from .cache_objects import (
    PROVENANCE,
    ROOT,
    CacheObject,
    Root,
    changes_explained,
    find_root,
    read_metadata,
    read_root,
)
from .places.by_url import open_remote_folder
from .places.failures import MissingObjectError
from .places.retries import Patience
from .transfer import Traffic, Transfer, TransferResult


class Pull(Transfer):
    """One pull.

    Args:
        url: a finished cache in object storage. Its manifest may come from anybody.
        path: a new or empty folder, one that a pull of this cache was stopped in, or a copy of this cache.
        traffic: concurrency, bandwidth, progress.
        verify: read what is already on the disk, instead of trusting files of the right size.

    ``plan`` and ``run`` raise:
        UsageError: the folder holds something else, or its disk has too little space.
        CorruptCacheError: a file on the way is a link, or objects differ from the manifest each time they are
            read; nothing of them is kept.
        DiskFullError: the same pull continues once there is room.
        RemoteError: the store kept failing; the same pull continues.
        RemoteChangedError: the cache was removed or replaced while it was pulled.
    """

    counts_root = False

    def __init__(
        self,
        url: str,
        path: Path,
        traffic: Traffic | None = None,
        *,
        verify: bool = False,
        patience: Patience | None = None,
    ) -> None:
        folder = open_remote_folder(url, patience)
        root = read_root(folder)
        super().__init__(folder, path, root, root.shards(), traffic, verify)
        self._trusted: dict[str, str] = {}  # sha256 of files that an earlier pull checked, by path

    def plan(self) -> TransferResult:
        """Compare both sides, and the disk with what is missing; nothing is written."""
        result = super().plan()
        check_room(
            self.path,
            result.moved_bytes,
            otherwise="choose another folder, or train from the URL without a copy",
        )
        return result

    def _inspect(self) -> bool:
        finished = self._check_folder()
        check_no_links(self.path, [*self.root.keys, PULL_FOLDER])
        former = self.root if (self.path / ROOT).is_file() else self._former()
        check_no_links(self.path, former.keys if former else ())  # some of which are removed
        self._trusted = {found.key: found.sha256 for found in former.shards()} if former else {}
        return finished and all(map(self._is_sound, self.root.metadata))

    def _move(self, missing: list[CacheObject]) -> None:
        if self._finished and not missing:
            return  # and nothing is left over: the folder of a pull goes before the pull counts as finished
        advice = f"{self.path} holds a part of it and is no cache: remove it, or pull something else into it"
        whole = changes_explained(self.folder, self.root.manifest, "while it was pulled", advice)
        with self._claimed(), disk_explained(self.path), whole:
            self._remove_leftovers()
            write_bytes(self.path / PULL_FOLDER / ROOT, self.root.content)
            self.traffic.run(
                [
                    *(partial(self._download, wanted) for wanted in missing),
                    *(partial(self._download_metadata, key) for key in [*self.root.metadata, PROVENANCE]),
                ]
            )
            fsync_folder(self.path)
            write_bytes(self.path / ROOT, self.root.content)

    def _check_folder(self) -> bool:
        """Whether this cache is there and finished; refuses a folder that holds something else."""
        state = inspect_output(self.path)
        if state in ("absent", "empty") or (self.path / PULL_FOLDER).is_dir():
            return False
        if state == "complete":
            there = Root.parse((self.path / ROOT).read_bytes(), str(self.path / ROOT))
            if there.content == self.root.content:
                return True
            raise UsageError(
                f"{self.path} holds another cache (fingerprint {there.manifest.fingerprint[:12]}, not "
                f"{self.root.manifest.fingerprint[:12]}): choose another folder"
            )
        raise UsageError(
            f"{self.path} holds something else than this cache: choose a new or empty folder, for example "
            f"{self.path / self.folder.url.rsplit('/', 1)[-1]}"
        )

    def _former(self) -> Root | None:
        """What an earlier pull into this folder, which was stopped, was of."""
        try:
            content = read_regular(self.path / PULL_FOLDER / ROOT, MAX_MANIFEST_BYTES)
            return Root.parse(content, "the former pull")
        except (OSError, ValueError, CorruptCacheError):
            return None

    def _remove_leftovers(self) -> None:
        """Files of another cache that was at this URL when an earlier pull began."""
        former = self._former()
        for key in former.keys - self.root.keys if former else ():
            for name in (key, key + TEMPORARY_SUFFIX):
                (self.path / name).unlink(missing_ok=True)

    def _is_there(self, wanted: CacheObject) -> bool:
        path = self.path / wanted.key
        if not path.is_file() or path.stat().st_size != wanted.size:
            return False
        if self._trusted.get(wanted.key) == wanted.sha256 and not self.verify:
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256

    def _is_sound(self, key: str) -> bool:
        try:
            self.root.checked(key, read_regular(self.path / key, MAX_METADATA_BYTES), key)
        except (OSError, ValueError, CorruptCacheError):
            return False
        return True

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Hold the folder's lock; the folder of a pull goes when it ends well."""
        work = self.path / PULL_FOLDER
        make_folder(work)
        lock = take_lock(work / "lock", self.path, "choose another folder")
        try:
            yield
        except BaseException:
            lock.release()
            raise
        lock.release()
        shutil.rmtree(work)
        fsync_folder(self.path)

    def _download(self, wanted: CacheObject) -> None:
        self.folder.download(
            wanted.key,
            self.path / wanted.key,
            size=wanted.size,
            sha256=wanted.sha256,
            on_bytes=self.traffic.moved,
        )

    def _download_metadata(self, key: str) -> None:
        try:
            write_bytes(self.path / key, read_metadata(self.folder, self.root, key))
        except MissingObjectError:
            # A cache may be without; of one that is being removed, the root went before.
            if key != PROVENANCE or find_root(self.folder) is None:
                raise
