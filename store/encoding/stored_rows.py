"""Rows as the arrays of a cache hold them (numbers, norm, mean, scale), and the loops that copy them."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...common.compile import compile_loop
from .number_types import widen
from .records import RecordLayout


@dataclass(frozen=True)
class StoredRows:
    """n rows of one hook. A slice of it is a view."""

    layout: RecordLayout
    words: NDArray[Any]  # [n, D], the stored numbers, as unsigned integers of their size
    norm: NDArray[np.float32]  # [n]
    mean: NDArray[np.float32]  # [n]
    scale: NDArray[np.float32]  # [n] for int8, else [0]

    @classmethod
    def empty(cls, layout: RecordLayout, n: int) -> Self:
        """Uninitialized memory for n rows."""
        words = np.empty((n, layout.d_model), layout.word)
        norm, mean = np.empty(n, np.float32), np.empty(n, np.float32)
        return cls(layout, words, norm, mean, np.empty(n if layout.has_scale else 0, np.float32))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, rows: slice) -> "StoredRows":
        return StoredRows(self.layout, self.words[rows], self.norm[rows], self.mean[rows], self.scale[rows])

    def place(self, records: NDArray[np.uint8], picks: NDArray[np.int64], ranks: NDArray[np.int64]) -> None:
        """Split records into columns: row ``ranks[i]`` becomes ``records[picks[i]]``.

        Ranks that this does not have are skipped.

        Args:
            records: uint8 [m, record_bytes], C-contiguous.
            picks: int64 [n], rows of ``records``.
            ranks: int64 [n], any.
        """
        assert records.shape[1] == self.layout.record_bytes and len(picks) == len(ranks)
        assert picks.size == 0 or (picks.min() >= 0 and picks.max() < len(records))
        numbers, columns = self.layout.words(records), records.view(np.float32)
        _place(numbers, columns, picks, ranks, self.words, self.norm, self.mean, self.scale)


@compile_loop
def _place(numbers, columns, picks, ranks, words, norm, mean, scale):  # type: ignore[no-untyped-def]
    (size, width), last = words.shape, columns.shape[1]
    for i in range(ranks.shape[0]):
        pick, rank = picks[i], ranks[i]
        if 0 <= rank < size:
            source, target = numbers[pick], words[rank]
            for j in range(width):
                target[j] = source[j]
            norm[rank], mean[rank] = columns[pick, last - 2], columns[pick, last - 1]
            if scale.shape[0]:
                scale[rank] = columns[pick, last - 3]


def copy_rows(
    source: NDArray[Any], picks: NDArray[np.int64], target: NDArray[Any], places: NDArray[np.int64]
) -> None:
    """``target[places[i]] = source[picks[i]]``, without a copy in between.

    Args:
        source: [n, D], C-contiguous.
        picks: int64 [m], rows of the source.
        target: [k, D], C-contiguous, of the same type.
        places: int64 [m], rows of the target.
    """
    assert source.dtype == target.dtype and source.shape[1:] == target.shape[1:]
    word = np.dtype(f"u{source.dtype.itemsize}")  # bits are moved, whatever they mean
    inside = _copy(source.view(word), picks, target.view(word), places)
    assert inside


def widen_rows(
    source: NDArray[np.float16],
    picks: NDArray[np.int64],
    target: NDArray[np.float32],
    places: NDArray[np.int64],
) -> None:
    """``target[places[i]] = source[picks[i]]``, float16 to float32, exactly; rows are read from memory once.

    Args:
        source: [n, D], C-contiguous.
        picks: int64 [m], rows of the source.
        target: [k, D], C-contiguous.
        places: int64 [m], rows of the target.
    """
    assert source.dtype == np.float16 and target.dtype == np.float32 and source.shape[1:] == target.shape[1:]
    inside = _widen(source.view(np.uint16), picks, target.view(np.uint32), places)
    assert inside


@compile_loop
def _copy(source, picks, target, places):  # type: ignore[no-untyped-def]
    """Returns whether all rows were inside; it stops at the first that is not."""
    width = source.shape[1]
    for i in range(picks.shape[0]):
        pick, place = picks[i], places[i]
        if not (0 <= pick < source.shape[0] and 0 <= place < target.shape[0]):
            return False
        row, out = source[pick], target[place]
        for j in range(width):
            out[j] = row[j]
    return True


@compile_loop
def _widen(source, picks, target, places):  # type: ignore[no-untyped-def]
    """As :func:`_copy`."""
    for i in range(picks.shape[0]):
        pick, place = picks[i], places[i]
        if not (0 <= pick < source.shape[0] and 0 <= place < target.shape[0]):
            return False
        widen(source[pick], target[place])
    return True
