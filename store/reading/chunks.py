"""The inner chunks of one array: checked when they are first used, and decoded if they are compressed."""

import mmap
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError
from ..finite import NotFiniteError, check_finite, crc32c_and_finite, is_finite
from ..layout import ArraySpec
from ..shard_file import check_crc, decode_chunk
from .kept_chunks import KEPT
from .mapped_shards import MappedShard, MappedShards, ShardFiles

# Maps all pages of a chunk at once: with a page fault for every few of them, a later epoch is slower.
_POPULATE_READ = 22 if sys.platform == "linux" else getattr(mmap, "MADV_WILLNEED", None)
_WILL_NEED = getattr(mmap, "MADV_WILLNEED", None)


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
        self._strict = strict
        self.files = files
        self._shards = MappedShards(root, spec, files, strict)
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
            if not self._shards.discard(number // self.spec.chunks_per_shard):
                raise
            return self._chunk(number)

    def _chunk(self, number: int) -> NDArray[Any]:
        payload = self._payload(number) if self._decoded is None else self._decoded.get(number)
        return payload.view(self.dtype).reshape(self.spec.chunk_rows, *self.spec.shape[1:])

    def _payload(self, number: int) -> NDArray[np.uint8]:
        """The bytes of an inner chunk, uint8 [chunk_bytes]: of the file, or decoded."""
        shard_number, slot = divmod(number, self.spec.chunks_per_shard)
        shard = self._shards.get(shard_number)
        offset = int(shard.offsets[slot])
        if offset < 0:
            return np.zeros(self.spec.chunk_bytes, np.uint8)
        stored = np.frombuffer(shard.mapped, np.uint8, int(shard.sizes[slot]), offset)
        if shard.checked[slot]:
            return decode_chunk(stored, self.spec, slot, shard.where)
        verified = shard.held is not None and shard.held.verified
        if self.spec.codec is None and not verified:
            payload = decode_chunk(stored, self.spec, slot, shard.where)
            value, finite = self.crc32c_and_finite(payload, self.spec)
            check_crc(stored, slot, shard.where, value)
        else:
            if not verified:
                check_crc(stored, slot, shard.where)
            payload = decode_chunk(stored, self.spec, slot, shard.where)
            finite = self.is_finite(payload, self.spec)
        if self._strict and not finite:
            check_finite(payload, self.spec, number, shard.where)
        shard.checked[slot] = True
        return payload

    def is_checked(self, number: int) -> bool:
        """Whether this object has checked inner chunk ``number``, and would not decode it ahead either."""
        return self._decoded is None and self._shards.is_checked(*divmod(number, self.spec.chunks_per_shard))

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
        """Inner chunks are not needed for now: they stay mapped while :data:`.KEPT` has room for them."""
        for number in numbers:
            if self._decoded is not None:
                self._decoded.drop(number)
            shard, slot = self._mapped(number)
            if shard is not None:
                KEPT.keep(shard, slot)

    def will_need(self, number: int) -> None:
        """Ask the system to read inner chunk ``number``, if it was checked before, without waiting for it."""
        if self.is_checked(number):
            self._advise(number, _WILL_NEED)

    def _mapped(self, number: int) -> tuple[MappedShard | None, int]:
        """The shard of inner chunk ``number``, if it is open, and the chunk's place in it."""
        shard, slot = divmod(number, self.spec.chunks_per_shard)
        return self._shards.opened(shard), slot

    def _advise(self, number: int, advice: int | None) -> None:
        """Advise the system about a chunk, unless its pages are mapped already."""
        shard, slot = self._mapped(number)
        if shard is not None and not KEPT.has(shard, slot):
            shard.advise(slot, advice)


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
            self.drop(number)
            return self._load(number)
        except BaseException:
            self.drop(number)
            raise

    def drop(self, number: int) -> None:
        """Forget a chunk; views of it that are in use keep their memory."""
        with self._lock:
            self._chunks.pop(number, None)
