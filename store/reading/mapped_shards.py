"""The shard files of one array, mapped into memory when they are needed; the last few stay open."""

import errno
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError, SaecacheError
from ...common.regular_files import open_regular
from ..layout import ArraySpec, index_size
from ..shard_file import CRC_BYTES, check_all_stored, parse_index

MAX_OPEN_SHARDS = 32
_DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)


class HeldFile(Protocol):
    """A file that stays where it is while this object lives.

    ``verified``: all its bytes were compared with the manifest's sha256 when this process downloaded it.
    """

    path: Path
    verified: bool


class ShardFiles(Protocol):
    """Downloads the files of a cache that is not in a folder of this machine."""

    def hold(self, path: str, let_go: Callable[[], None]) -> HeldFile:
        """The file ``path`` of the cache; ``let_go`` is called when the reader should release it."""

    def discard(self, path: str) -> bool:
        """Drop the damaged copy of ``path``; return whether downloading it again can help."""

    def ahead(self, paths: Iterable[str]) -> AbstractContextManager[None]:
        """Within it files are downloaded ahead, in the order in which they will be needed."""


@dataclass
class MappedShard:
    """One shard in the memory map, with the index of its inner chunks, numpy [chunks]."""

    where: str  # for messages
    mapped: mmap.mmap
    offsets: NDArray[np.int64]  # of each inner chunk, -1 = absent
    sizes: NDArray[np.int64]  # stored bytes of each, crc32c included
    checked: NDArray[np.bool_]  # of each, whether it was: the shard may have been closed in between
    held: HeldFile | None = None

    @property
    def num_chunks(self) -> int:
        return len(self.offsets)

    def chunk_bytes(self, slot: int) -> int:
        return int(self.sizes[slot])

    def unmap(self, slot: int) -> None:
        """Let go of the pages of a chunk; whoever reads it again maps them again."""
        self.advise(slot, _DONT_NEED)

    def advise(self, slot: int, advice: int | None) -> None:
        """Advise the system about the memory of a chunk, if it knows the advice."""
        offset = int(self.offsets[slot])
        if offset >= 0 and advice is not None:
            start = offset - offset % mmap.PAGESIZE
            end = offset + int(self.sizes[slot]) - CRC_BYTES
            with suppress(OSError):  # an older system does not know it
                self.mapped.madvise(advice, start, end - start)


class MappedShards:
    """Shards by number, see :class:`.ShardedChunks` for the arguments. Safe to use from several threads."""

    def __init__(self, root: Path | str, spec: ArraySpec, files: ShardFiles | None, strict: bool) -> None:
        self._root, self._spec, self._files, self._strict = root, spec, files, strict
        self._lock = threading.Lock()
        self._open: OrderedDict[int, MappedShard] = OrderedDict()
        self._checked: dict[int, NDArray[np.bool_]] = {}  # shard -> its chunks
        self._discarded: dict[int, int] = {}  # shard -> how many damaged copies of it were thrown away

    def get(self, number: int) -> MappedShard:
        """Open a shard, or find it among those that are.

        Raises:
            CorruptCacheError: it is missing, or its size or its index is wrong.
        """
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            discarded = self._discarded.get(number, 0)
        mapped = self._map(number)  # without the lock: it may have to come over a network first
        with self._lock:
            if self._discarded.get(number, 0) == discarded:
                shard = self._open.setdefault(number, mapped)
                shard.checked = self._checked.setdefault(number, shard.checked)
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)  # views of it that are still in use keep their memory
                return shard
        return self.get(number)  # another thread threw this copy away meanwhile

    def is_checked(self, number: int, slot: int) -> bool:
        """Whether chunk ``slot`` of a shard was checked, which need not be open any more."""
        checked = self._checked.get(number)
        return checked is not None and bool(checked[slot])

    def discard(self, number: int) -> bool:
        """Throw a damaged copy away; return whether opening the shard again can help."""
        if self._files is None or not self._files.discard(self._spec.shard_path(number)):
            return False
        with self._lock:
            self._discarded[number] = self._discarded.get(number, 0) + 1
        self.forget(number)
        return True

    def forget(self, number: int) -> None:
        """Close a shard, if it is open."""
        with self._lock:
            self._open.pop(number, None)

    def opened(self, number: int) -> MappedShard | None:
        """A shard, if it is open."""
        with self._lock:
            return self._open.get(number)

    def _map(self, number: int) -> MappedShard:
        """Map a shard file and read its index."""
        spec = self._spec
        name, chunks = spec.shard_path(number), spec.chunks_per_shard
        held = None if self._files is None else self._files.hold(name, partial(_let_go, ref(self), number))
        path = Path(self._root) / name if held is None else held.path
        where = f"{self._root}/{name}"
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                if not size or (self._strict and not spec.may_have_size(number, size)):
                    expected = spec.shard_size(number)
                    raise CorruptCacheError(
                        f"{where}: {size} bytes, expected {expected}: truncated or altered"
                    )
                # A private map: torch wants memory that looks writable; nothing written would reach the file.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            if self._strict:
                raise CorruptCacheError(f"{where}: the shard is missing") from None
            nothing = np.full(chunks, -1)
            return MappedShard(where, mmap.mmap(-1, 1), nothing, nothing, np.zeros(chunks, np.bool_))
        except OSError as error:  # of the bytes only if they are none: the disk, or rights, may be mended
            kind = CorruptCacheError if error.errno == errno.EINVAL else SaecacheError
            raise kind(f"{where} cannot be read: {error.strerror}") from None
        tail = mapped[max(0, size - index_size(chunks)) :]
        offsets, sizes = parse_index(tail, spec, where, size).T
        if self._strict:
            check_all_stored(offsets[: spec.chunks_of_shard(number)], where)
        return MappedShard(where, mapped, offsets, sizes, np.zeros(chunks, np.bool_), held)


def _let_go(shards: "ref[MappedShards]", number: int) -> None:
    """Close a shard of an array that may be gone: a callback that does not keep the array."""
    still = shards()
    if still is not None:
        still.forget(number)
