"""One array of a cache: its rows by number."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.cores import usable_cores
from ..encoding import checksum
from ..encoding.stored_rows import copy_rows, widen_rows
from .chunks import ShardedChunks

_SHARES = 4  # of the pieces of a request, for each core: a thread that is slow takes fewer of them
_SLICE_ROWS = 1 << 16  # row numbers made at once for a slice

RowNumbers = NDArray[np.int64] | range  # a range has step 1


@dataclass(frozen=True)
class ChunkPart:
    """The part of a request that lies in one inner chunk: ``out[target] = source[picks]``."""

    target: slice | NDArray[np.int64]
    source: NDArray[Any]  # a view of the file: copy it, never write to it
    picks: NDArray[np.int64] | None  # None: all of ``source``


class ShardedArray(ShardedChunks):
    """Rows by slice, number, array of numbers or mask -> ``np.ndarray``. Safe to use from several threads."""

    is_finite = staticmethod(checksum.is_finite)
    crc32c_and_finite = staticmethod(checksum.crc32c_and_finite)

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

        ``out`` has the array's type, or is float32 for an array of float16. ``threads`` share the chunks.
        """
        pieces = self.pieces(numbers, release=release)
        if threads is None or not self.keep_decoded:
            _copy(pieces, out)
            return
        found, shares = list(pieces), _SHARES * len(usable_cores())
        list(threads.map(lambda share: _copy(found[share::shares], out), range(shares)))

    def check_rows(self, rows: Any) -> NDArray[np.int64]:
        """Row numbers, or a bool for each row, as int64 [n], all from 0 to N - 1.

        Raises:
            IndexError: a number outside the array.
            TypeError: neither a list of whole numbers nor such a mask.
        """
        given = np.asarray(rows)
        if given.dtype == bool and given.shape == (len(self),):
            return np.flatnonzero(given)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise TypeError(
                f"{self.spec.path}: rows are addressed by a slice, a number, a list of numbers, or a bool "
                f"for each of the {len(self)} rows; got {given.dtype} {list(given.shape)}"
            )
        numbers = given.astype(np.int64)
        numbers[numbers < 0] += len(self)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(
                f"{self.spec.path} has {len(self)} rows, got row numbers {numbers.min()} to {numbers.max()}"
            )
        return numbers

    def pieces(self, rows: RowNumbers, *, release: bool = True) -> Iterator[ChunkPart]:
        """Cut a request by inner chunk; with ``release`` a chunk's memory is let go after its piece."""
        for number, target, picks in (
            self._cut_range(rows) if isinstance(rows, range) else self._cut_numbers(rows)
        ):
            chunk = self.chunk(number)
            yield (
                ChunkPart(target, chunk[picks], None)
                if isinstance(picks, slice)
                else ChunkPart(target, chunk, picks)
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
        picks, order = rows - numbers * self.spec.chunk_rows, None
        if np.any(numbers[1:] < numbers[:-1]):
            few = self.spec.shape[0] <= self.spec.chunk_rows << 16  # 16 bits are sorted by radix
            order = np.argsort(numbers.astype(np.uint16) if few else numbers, kind="stable")
            numbers, picks = numbers[order], picks[order]
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(numbers)]])
        for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            if start < stop:
                target = slice(start, stop) if order is None else order[start:stop]
                yield int(numbers[start]), target, picks[start:stop]


def _copy(pieces: Iterable[ChunkPart], out: NDArray[Any]) -> None:
    for piece in pieces:
        if piece.picks is None or out.ndim != 2:
            out[piece.target] = piece.source if piece.picks is None else piece.source[piece.picks]
            continue
        places = piece.target
        if isinstance(places, slice):
            places = np.arange(places.start, places.stop)
        copy = copy_rows if out.dtype == piece.source.dtype else widen_rows
        copy(piece.source, piece.picks, out, places)
