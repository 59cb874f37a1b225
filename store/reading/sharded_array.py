"""One array of a cache, read through memory maps of its shard files."""

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError
from ..encoding.stored_rows import copy_rows, widen_rows
from ..layout import ArraySpec, index_size
from ..shard_file import CRC_BYTES, crc32c, parse_index
from .decoding import DecodedChunks

MAX_OPEN_SHARDS = 32

_SLICE_ROWS = 1 << 16  # row numbers made at once for a slice

RowNumbers = NDArray[np.int64] | range  # a range has step 1


class HeldFile(Protocol):
    """A file that stays where it is while this object lives.

    ``verified``: all its bytes were compared with the manifest's sha256 when this process brought it.
    """

    path: Path
    verified: bool


class ShardFiles(Protocol):
    """Where the files of a cache are, when not below its folder: they are brought to this machine."""

    def hold(self, path: str, let_go: Callable[[], None]) -> HeldFile:
        """The file ``path`` of the cache; ``let_go`` asks for the end of what is returned."""

    def discard(self, path: str) -> bool:
        """The bytes of ``path`` here are damaged: whether bringing it again can mend that."""


@dataclass
class _Shard:
    where: str  # for messages
    mapped: mmap.mmap
    offsets: NDArray[np.int64]  # of each inner chunk, -1 = absent
    sizes: NDArray[np.int64]  # stored bytes of each, crc32c included
    held: HeldFile | None = None


@dataclass(frozen=True)
class Piece:
    """The part of a request that lies in one inner chunk: ``out[target] = source[picks]``."""

    target: slice | NDArray[np.int64]
    source: NDArray[Any]  # a view of the file: copy it, never write to it
    picks: NDArray[np.int64] | None  # None: all of ``source``


class ShardedArray:
    """Rows by slice, number or array of numbers -> ``np.ndarray``. Safe to use from several threads.

    In a cache every chunk of every shard is there. Arrays of other Zarr programs may leave out chunks and
    shards that hold nothing but zeros: ``strict=False`` reads those too.

    Every inner chunk is checked against its crc32c the first time this object touches it; a shard that is
    missing, of the wrong size, or has a bad index or chunk raises :class:`CorruptCacheError` with its name.
    """

    def __init__(
        self,
        root: Path | str,
        spec: ArraySpec,
        *,
        strict: bool = True,
        files: ShardFiles | None = None,
        rows: int | None = None,
    ) -> None:
        """``root`` is the cache's folder; with ``files``, only its name in messages. ``rows``: only the
        first of them.
        """
        self.spec = spec
        self._files = files
        self._strict = strict
        self.shape = spec.shape if rows is None else (rows, *spec.shape[1:])
        self.dtype = np.dtype(spec.dtype)
        self._root = root
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._checked: dict[int, NDArray[np.bool_]] = {}  # shard -> its chunks
        self._decoded = None if spec.codec is None else DecodedChunks(self._payload)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        if isinstance(key, slice):
            numbers = range(*key.indices(len(self)))
            out = np.empty((len(numbers), *self.shape[1:]), dtype=self.dtype)
            if numbers.step == 1:
                self.gather_into(out, numbers)
                return out
            for start in range(0, len(numbers), _SLICE_ROWS):
                part = numbers[start : start + _SLICE_ROWS]
                self.gather_into(out[start : start + len(part)], np.array(part, dtype=np.int64))
            return out
        if isinstance(key, int | np.integer):
            row: NDArray[Any] = self.gather(np.array([key]))[0]
            return row
        return self.gather(np.asarray(key))

    def gather(self, rows: Any) -> NDArray[Any]:
        """Rows by number, int [n] (or a range of existing rows) -> [n, ...]; negative numbers count from the
        end.
        """
        numbers = rows if isinstance(rows, range) else self.check_rows(rows)
        out = np.empty((len(numbers), *self.shape[1:]), dtype=self.dtype)
        self.gather_into(out, numbers)
        return out

    def gather_into(
        self,
        out: NDArray[Any],
        numbers: RowNumbers,
        *,
        release: bool = True,
        threads: Executor | None = None,
    ) -> None:
        """Fill ``out`` [n, ...] with rows by number, all of which must exist.

        ``out`` has the array's type, or is float32 for an array of float16. ``threads`` take a chunk each.
        """
        pieces = self.pieces(numbers, release=release)
        if threads is None:
            for piece in pieces:
                _copy(piece, out)
        else:
            list(threads.map(lambda piece: _copy(piece, out), list(pieces)))

    def check_rows(self, rows: Any) -> NDArray[np.int64]:
        """Row numbers as int64 [n], all from 0 to N - 1.

        Raises:
            IndexError: a number outside the array.
            TypeError: not a list of whole numbers.
        """
        given = np.asarray(rows)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise TypeError(
                f"{self.spec.path}: rows are addressed by a slice, a number, or a list of numbers"
            )
        numbers = given.astype(np.int64)
        numbers[numbers < 0] += len(self)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(
                f"{self.spec.path} has {len(self)} rows, got row numbers {numbers.min()} to {numbers.max()}"
            )
        return numbers

    def pieces(self, rows: RowNumbers, *, release: bool = True) -> Iterator[Piece]:
        """Cut a request by inner chunk; with ``release`` a chunk's memory is let go after its piece."""
        for number, target, picks in (
            self._cut_range(rows) if isinstance(rows, range) else self._cut_numbers(rows)
        ):
            chunk = self.chunk(number)
            yield (
                Piece(target, chunk[picks], None) if isinstance(picks, slice) else Piece(target, chunk, picks)
            )
            if release:
                self.release([number])

    def _cut_range(self, rows: range) -> Iterator[tuple[int, slice, slice]]:
        """(chunk, places in the request, places in the chunk), for consecutive rows: no work per row."""
        size = self.spec.chunk_rows
        for number in range(rows.start // size, -(-rows.stop // size) if rows else 0):
            first, last = max(rows.start, number * size), min(rows.stop, (number + 1) * size)
            yield (
                number,
                slice(first - rows.start, last - rows.start),
                slice(first - number * size, last - number * size),
            )

    def _cut_numbers(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, slice | NDArray[np.int64], NDArray[np.int64]]]:
        """(chunk, places in the request, places in the chunk), for any rows."""
        numbers = rows // self.spec.chunk_rows
        order = np.argsort(numbers, kind="stable") if np.any(numbers[1:] < numbers[:-1]) else None
        if order is not None:
            numbers = numbers[order]
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(numbers)]])
        for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            if start == stop:
                continue
            number = int(numbers[start])
            target = slice(start, stop) if order is None else order[start:stop]
            yield number, target, rows[target] - number * self.spec.chunk_rows

    def chunk(self, number: int) -> NDArray[Any]:
        """Inner chunk ``number`` as a view of the file, [chunk_rows, ...] (padding included), checked.

        Of a compressed array it is decoded, and kept until it is released.
        """
        try:
            return self._chunk(number)
        except CorruptCacheError:
            shard = number // self.spec.chunks_per_shard
            if self._files is None or not self._files.discard(self.spec.shard_path(shard)):
                raise
            self._forget(shard)
            return self._chunk(number)

    def _chunk(self, number: int) -> NDArray[Any]:
        payload = self._payload(number) if self._decoded is None else self._decoded.get(number)
        return payload.view(self.dtype).reshape(self.spec.chunk_rows, *self.shape[1:])

    def _payload(self, number: int) -> NDArray[np.uint8]:
        """The bytes of an inner chunk, uint8 [chunk_bytes]: of the file, or decoded."""
        shard_number, slot = divmod(number, self.spec.chunks_per_shard)
        shard, checked = self._shard(shard_number)
        offset = int(shard.offsets[slot])
        if offset < 0:
            return np.zeros(self.spec.chunk_bytes, np.uint8)
        stored = np.frombuffer(shard.mapped, np.uint8, int(shard.sizes[slot]), offset)
        payload = stored[:-CRC_BYTES]
        if not checked[slot]:
            if crc32c(payload) != stored[-CRC_BYTES:].tobytes():
                raise CorruptCacheError(f"{shard.where}: chunk {slot} does not match its crc32c")
            checked[slot] = True
        if self.spec.codec is None:
            return payload
        decoded = np.empty(self.spec.chunk_bytes, np.uint8)
        try:
            self.spec.codec.decode(payload, decoded)
        except ValueError as error:
            raise CorruptCacheError(f"{shard.where}: chunk {slot} cannot be decoded: {error}") from None
        return decoded

    def is_checked(self, number: int) -> bool:
        """Whether inner chunk ``number`` was checked against its crc32c by this object, and can be used as it
        is.
        """
        if self._decoded is not None:
            return False
        shard_number, slot = divmod(number, self.spec.chunks_per_shard)
        checked = self._checked.get(shard_number)
        return checked is not None and bool(checked[slot])

    def prepare(self, number: int, *, read_ahead: bool = True, threads: Executor | None = None) -> None:
        """Have inner chunk ``number`` checked, which reads it; one that was checked before is asked for from
        the disk if ``read_ahead``. Of a compressed array ``threads`` are given it to decode.
        """
        if self._decoded is not None and threads is not None:
            self._decoded.start(number, threads)
        elif not self.is_checked(number):
            self.chunk(number)
        elif read_ahead:
            self._advise(number, "MADV_WILLNEED")

    def release(self, numbers: Iterable[int]) -> None:
        """Let go of the memory behind inner chunks; the system's file cache keeps them while it has room."""
        for number in numbers:
            if self._decoded is not None:
                self._decoded.drop([number])
            self._advise(number, "MADV_DONTNEED")

    def _advise(self, number: int, advice: str) -> None:
        """Tell the system about an inner chunk, if its shard is open and the system listens."""
        shard_number, slot = divmod(number, self.spec.chunks_per_shard)
        with self._lock:
            shard = self._open.get(shard_number)
        offset = -1 if shard is None else int(shard.offsets[slot])
        if shard is not None and offset >= 0 and hasattr(mmap, advice):
            start = offset - offset % mmap.PAGESIZE
            end = offset + int(shard.sizes[slot]) - CRC_BYTES
            shard.mapped.madvise(getattr(mmap, advice), start, end - start)

    def _shard(self, number: int) -> tuple[_Shard, NDArray[np.bool_]]:
        """Open a shard, or find it among those that are; and which of its chunks were checked."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number], self._checked[number]
        mapped = self._map(number)  # without the lock: it may have to come over a network first
        with self._lock:
            shard = self._open.setdefault(number, mapped)
            verified = shard.held is not None and shard.held.verified
            checked = self._checked.setdefault(number, np.full(self.spec.chunks_per_shard, verified))
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)  # views of it that are still in use keep their memory
            return shard, checked

    def _forget(self, number: int) -> None:
        """Close a shard, if it is open."""
        with self._lock:
            self._open.pop(number, None)

    def _map(self, number: int) -> _Shard:
        """Map a shard file and read its index."""
        name, expected = self.spec.shard_path(number), self.spec.shard_size(number)
        held = None if self._files is None else self._files.hold(name, partial(_let_go, ref(self), number))
        path = Path(self._root) / name if held is None else held.path
        where = f"{self._root}/{name}"
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
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
        tail = mapped[max(0, size - index_size(self.spec.chunks_per_shard)) :]
        offsets, sizes = parse_index(tail, self.spec, where, size).T
        present = offsets[: self.spec.chunks_of_shard(number)]
        if self._strict and (present < 0).any():
            slot = int(np.flatnonzero(present < 0)[0])
            raise CorruptCacheError(f"{where}: chunk {slot} is not stored")
        return _Shard(where, mapped, offsets, sizes, held)


def _let_go(array: "ref[ShardedArray]", number: int) -> None:
    """Whoever keeps this for later does not keep the array."""
    still = array()
    if still is not None:
        still._forget(number)


def _copy(piece: Piece, out: NDArray[Any]) -> None:
    if piece.picks is None or out.ndim != 2:
        out[piece.target] = piece.source if piece.picks is None else piece.source[piece.picks]
        return
    places = piece.target
    if isinstance(places, slice):
        places = np.arange(places.start, places.stop)
    copy = copy_rows if out.dtype == piece.source.dtype else widen_rows
    copy(piece.source, piece.picks, out, places)
