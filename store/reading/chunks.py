"""The inner chunks of one array, read through memory maps of its shard files."""

import errno
import mmap
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Executor, Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError, SaecacheError
from ...common.untrusted_files import open_regular
from ..finite import NotFiniteError, check_finite, crc32c_and_finite, is_finite
from ..layout import ArraySpec, index_size
from ..shard_file import CRC_BYTES, check_all_stored, check_crc, decode_chunk, parse_index

MAX_OPEN_SHARDS = 32
# Maps all pages of a chunk at once: with a page fault for every few of them, a later epoch is slower.
_POPULATE_READ = 22 if sys.platform == "linux" else getattr(mmap, "MADV_WILLNEED", None)


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
class _Shard:
    where: str  # for messages
    mapped: mmap.mmap
    offsets: NDArray[np.int64]  # of each inner chunk, -1 = absent
    sizes: NDArray[np.int64]  # stored bytes of each, crc32c included
    held: HeldFile | None = None


class ShardedChunks:
    """Inner chunks by number. Safe to use from several threads.

    In a cache every chunk of every shard is there. Arrays of other Zarr programs may leave out chunks and
    shards that hold nothing but zeros: ``strict=False`` reads those too.

    The first time this object uses a chunk, it compares it with its crc32c and checks that its numbers are
    finite. A shard that is missing, has the wrong size, or has a bad index or chunk raises
    :class:`CorruptCacheError` with its name.
    """

    is_finite = staticmethod(is_finite)

    @staticmethod
    def crc32c_and_finite(payload: NDArray[np.uint8], spec: ArraySpec) -> tuple[int, bool]:
        """The crc32c of a chunk, and whether its numbers are finite."""
        return crc32c_and_finite(payload, spec)

    def __init__(
        self,
        root: Path | str,
        spec: ArraySpec,
        *,
        strict: bool = True,
        files: ShardFiles | None = None,
        rows: int | None = None,
        keep_decoded: bool = True,
    ) -> None:
        """``root`` is the cache's folder; with ``files``, it is only its name in messages.

        With ``rows`` the array has only the first so many rows. Without ``keep_decoded`` compressed chunks
        are decoded each time they are used, and no memory holds several of them.
        """
        self.spec = spec
        self.shape = spec.shape if rows is None else (rows, *spec.shape[1:])
        self.dtype = np.dtype(spec.dtype)
        self._root = root
        self.files = files
        self._strict = strict
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._checked: dict[int, NDArray[np.bool_]] = {}  # shard -> its chunks
        self._discarded: dict[int, int] = {}  # shard -> how many damaged copies of it were thrown away
        self.keep_decoded = keep_decoded or spec.codec is None
        self._decoded = DecodedChunks(self._payload) if spec.codec and keep_decoded else None

    def chunk(self, number: int) -> NDArray[Any]:
        """Inner chunk ``number`` as a view of the file, [chunk_rows, ...] (padding included), checked.

        Of a compressed array it is decoded, and kept until it is released.
        """
        try:
            return self._chunk(number)
        except NotFiniteError:
            raise
        except CorruptCacheError:
            shard = number // self.spec.chunks_per_shard
            if self.files is None or not self.files.discard(self.spec.shard_path(shard)):
                raise
            with self._lock:
                self._discarded[shard] = self._discarded.get(shard, 0) + 1
            self._forget(shard)
            return self._chunk(number)

    def _chunk(self, number: int) -> NDArray[Any]:
        payload = self._payload(number) if self._decoded is None else self._decoded.get(number)
        return payload.view(self.dtype).reshape(self.spec.chunk_rows, *self.spec.shape[1:])

    def _payload(self, number: int) -> NDArray[np.uint8]:
        """The bytes of an inner chunk, uint8 [chunk_bytes]: of the file, or decoded."""
        shard_number, slot = divmod(number, self.spec.chunks_per_shard)
        shard, checked = self._shard(shard_number)
        offset = int(shard.offsets[slot])
        if offset < 0:
            return np.zeros(self.spec.chunk_bytes, np.uint8)
        stored = np.frombuffer(shard.mapped, np.uint8, int(shard.sizes[slot]), offset)
        if checked[slot]:
            return decode_chunk(stored, self.spec, slot, shard.where)
        if shard.held is not None and shard.held.verified:
            payload = decode_chunk(stored, self.spec, slot, shard.where)
            finite = self.is_finite(payload, self.spec)
        elif self.spec.codec is None:
            payload = decode_chunk(stored, self.spec, slot, shard.where)
            value, finite = self.crc32c_and_finite(payload, self.spec)
            check_crc(stored, slot, shard.where, value)
        else:
            check_crc(stored, slot, shard.where)
            payload = decode_chunk(stored, self.spec, slot, shard.where)
            finite = self.is_finite(payload, self.spec)
        if self._strict and not finite:
            check_finite(payload, self.spec, number, shard.where)
        checked[slot] = True
        return payload

    def is_checked(self, number: int) -> bool:
        """Whether this object has checked inner chunk ``number``, and would not decode it ahead either."""
        if self._decoded is not None:
            return False
        shard_number, slot = divmod(number, self.spec.chunks_per_shard)
        checked = self._checked.get(shard_number)
        return checked is not None and bool(checked[slot])

    def prepare(self, number: int, *, read_ahead: bool = True, threads: Executor | None = None) -> None:
        """Check inner chunk ``number``, which reads it; of a compressed array let ``threads`` decode it.

        With ``read_ahead`` a chunk that was checked before is read and mapped too.
        """
        if self._decoded is not None and threads is not None:
            self._decoded.start(number, threads)
        elif not self.is_checked(number):
            self.chunk(number)
        elif read_ahead:
            self._advise(number, _POPULATE_READ)

    def release(self, numbers: Iterable[int]) -> None:
        """Free the memory behind inner chunks; the system's file cache keeps them while it has room."""
        for number in numbers:
            if self._decoded is not None:
                self._decoded.drop([number])
            self._advise(number, getattr(mmap, "MADV_DONTNEED", None))

    def will_need(self, number: int) -> None:
        """Ask the system to read inner chunk ``number``, if it was checked before, without waiting for it."""
        if self.is_checked(number):
            self._advise(number, getattr(mmap, "MADV_WILLNEED", None))

    def _advise(self, number: int, advice: int | None) -> None:
        """Advise the system about the memory of an inner chunk, if its shard is open."""
        shard_number, slot = divmod(number, self.spec.chunks_per_shard)
        with self._lock:
            shard = self._open.get(shard_number)
        offset = -1 if shard is None else int(shard.offsets[slot])
        if shard is not None and offset >= 0 and advice is not None:
            start = offset - offset % mmap.PAGESIZE
            end = offset + int(shard.sizes[slot]) - CRC_BYTES
            with suppress(OSError):  # an older system does not know it
                shard.mapped.madvise(advice, start, end - start)

    def _shard(self, number: int) -> tuple[_Shard, NDArray[np.bool_]]:
        """Open a shard, or find it among those that are; and which of its chunks were checked."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number], self._checked[number]
            discarded = self._discarded.get(number, 0)
        mapped = self._map(number)  # without the lock: it may have to come over a network first
        with self._lock:
            if self._discarded.get(number, 0) == discarded:
                shard = self._open.setdefault(number, mapped)
                checked = self._checked.setdefault(number, np.zeros(self.spec.chunks_per_shard, np.bool_))
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)  # views of it that are still in use keep their memory
                return shard, checked
        return self._shard(number)  # another thread threw this copy away meanwhile

    def _forget(self, number: int) -> None:
        """Close a shard, if it is open."""
        with self._lock:
            self._open.pop(number, None)

    def _map(self, number: int) -> _Shard:
        """Map a shard file and read its index."""
        name, expected = self.spec.shard_path(number), self.spec.shard_size(number)
        held = None if self.files is None else self.files.hold(name, partial(_let_go, ref(self), number))
        path = Path(self._root) / name if held is None else held.path
        where = f"{self._root}/{name}"
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                if not size or (self._strict and not self.spec.may_have_size(number, size)):
                    raise CorruptCacheError(
                        f"{where}: {size} bytes, expected {expected}: truncated or altered"
                    )
                # A private map: torch wants memory that looks writable; nothing written would reach the file.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            if self._strict:
                raise CorruptCacheError(f"{where}: the shard is missing") from None
            nothing = np.full(self.spec.chunks_per_shard, -1)
            return _Shard(where, mmap.mmap(-1, 1), nothing, nothing)
        except OSError as error:  # of the bytes only if they are none: the disk, or rights, may be mended
            kind = CorruptCacheError if error.errno == errno.EINVAL else SaecacheError
            raise kind(f"{where} cannot be read: {error.strerror}") from None
        tail = mapped[max(0, size - index_size(self.spec.chunks_per_shard)) :]
        offsets, sizes = parse_index(tail, self.spec, where, size).T
        if self._strict:
            check_all_stored(offsets[: self.spec.chunks_of_shard(number)], where)
        return _Shard(where, mapped, offsets, sizes, held)


def _let_go(array: "ref[ShardedChunks]", number: int) -> None:
    """Close a shard of an array that may be gone: a callback that does not keep the array."""
    still = array()
    if still is not None:
        still._forget(number)


class DecodedChunks:
    """Loads each chunk once and keeps it until it is dropped. Safe to use from several threads."""

    def __init__(self, load: Callable[[int], NDArray[np.uint8]]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._chunks: dict[int, Future[NDArray[np.uint8]]] = {}

    def start(self, number: int, threads: Executor) -> None:
        """Let ``threads`` load a chunk, unless that was started before."""
        with self._lock:
            if number not in self._chunks:
                self._chunks[number] = threads.submit(self._load, number)

    def get(self, number: int) -> NDArray[np.uint8]:
        """A chunk, waited for or loaded here. After an error of ``load`` the next call tries again."""
        with self._lock:
            future = self._chunks.get(number)
            mine = future is None
            if future is None:
                future = self._chunks[number] = Future()
        try:
            if mine:
                try:
                    future.set_result(self._load(number))
                except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
                    future.set_exception(error)
            return future.result()
        except CancelledError:  # the threads were stopped before its turn came
            self.drop([number])
            return self._load(number)
        except BaseException:
            self.drop([number])
            raise

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget chunks; views of them that are in use keep their memory."""
        with self._lock:
            for number in numbers:
                self._chunks.pop(number, None)
