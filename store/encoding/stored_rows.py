"""Rows as the arrays of a cache hold them: the numbers, and beside them norm, mean and scale."""

from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
from numpy.typing import NDArray

from .records import RecordLayout

_jit = numba.njit(nogil=True, cache=True)


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
        """Room for n rows."""
        words = np.empty((n, layout.d_model), layout.word)
        norm, mean = np.empty(n, np.float32), np.empty(n, np.float32)
        return cls(layout, words, norm, mean, np.empty(n if layout.has_scale else 0, np.float32))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, rows: slice) -> "StoredRows":
        return StoredRows(self.layout, self.words[rows], self.norm[rows], self.mean[rows], self.scale[rows])

    def place(self, records: NDArray[np.uint8], ranks: NDArray[np.int64]) -> None:
        """Take records apart: row ``ranks[i]`` becomes ``records[i]``, where there is such a row.

        Args:
            records: uint8 [m, record_bytes], C-contiguous.
            ranks: int64 [m], any.
        """
        assert records.shape == (len(ranks), self.layout.record_bytes)
        numbers, columns = self.layout.words(records), records.view(np.float32)
        _place(numbers, columns, ranks, self.words, self.norm, self.mean, self.scale)


@_jit
def _place(numbers, columns, ranks, words, norm, mean, scale):  # type: ignore[no-untyped-def]
    (size, width), last = words.shape, columns.shape[1]
    for i in range(ranks.shape[0]):
        rank = ranks[i]
        if 0 <= rank < size:
            source, target = numbers[i], words[rank]
            for j in range(width):
                target[j] = source[j]
            norm[rank], mean[rank] = columns[i, last - 2], columns[i, last - 1]
            if scale.shape[0]:
                scale[rank] = columns[i, last - 3]
