"""The codes of all rows that latents are looked at on, on disk while they are looked at.

The rows of the cache are read and encoded once. What a latent does in the contexts that are chosen in the end
is known only in the end; so the codes, which are few, are kept in a temporary file without a name.
Legend: B rows of a block, N rows, P pairs of a row and an active latent, F latents, L tokens of the text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...store.durable import make_folder
from ...train import Pairs

Ints = NDArray[np.int64]
Number = TypeVar("Number", np.int32, np.float32)

PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StoredCodes:
    """Codes that are not 0, by rows.

    Attributes:
        row_ptr: int64 [N + 1]; the pairs of row ``n`` are ``row_ptr[n]:row_ptr[n + 1]``.
        latent: int32 [P], ascending within a row.
        value: float32 [P].
        offset: int64 [N], the token of each row in the text.
        num_latents: F.
        num_tokens: L.
    """

    row_ptr: Ints
    latent: NDArray[np.int32]
    value: NDArray[np.float32]
    offset: Ints
    num_latents: int
    num_tokens: int

    @property
    def num_rows(self) -> int:
        return len(self.offset)

    def blocks(self, pairs: int = PAIRS_AT_ONCE) -> Iterator[tuple[Ints, NDArray[np.float32], Ints]]:
        """Latents int64, values and offsets of the pairs of whole rows, about ``pairs`` of them at a time."""
        first = 0
        while first < self.num_rows:
            end = int(np.searchsorted(self.row_ptr, self.row_ptr[first] + pairs, side="right")) - 1
            end = min(max(end, first + 1), self.num_rows)
            own = slice(int(self.row_ptr[first]), int(self.row_ptr[end]))
            counts = np.diff(self.row_ptr[first : end + 1])
            yield (
                self.latent[own].astype(np.int64),
                np.asarray(self.value[own]),
                np.repeat(self.offset[first:end], counts),
            )
            first = end

    def row_of_offset(self) -> NDArray[np.int32]:
        """The row of each token of the text; -1 where there is none: int32 [L]."""
        row_L = np.full(self.num_tokens, -1, dtype=np.int32)
        row_L[self.offset] = np.arange(self.num_rows, dtype=np.int32)
        return row_L

    def at(self, row: NDArray[np.integer], latent: NDArray[np.integer]) -> NDArray[np.float32]:
        """The value of each latent on each row, by bisection; 0 where it is not active. The row may be -1."""
        there = row >= 0
        low, high = self.row_ptr[np.where(there, row, 0)], self.row_ptr[np.where(there, row, 0) + 1]
        end = high.copy()
        last = max(len(self.latent) - 1, 0)
        while len(low) and bool((low < high).any()):
            middle = (low + high) // 2
            less = (low < high) & (self._latents(middle.clip(max=last)) < latent)
            high = np.where((low < high) & ~less, middle, high)
            low = np.where(less, middle + 1, low)
        place = low.clip(max=last)
        found = there & (low < end) & (self._latents(place) == latent)
        return np.where(found, self.value[place] if len(self.value) else 0, 0).astype(np.float32)

    def _latents(self, place: Ints) -> NDArray[np.int32]:
        return self.latent[place] if len(self.latent) else np.full(len(place), -1, dtype=np.int32)


class CodeSpill:
    """Writes codes to disk as they come. Use it in a ``with`` block, in which :meth:`finish` may be used.

    From the row with which there would be more than ``max_pairs`` pairs on, rows are left out.
    """

    def __init__(self, folder: Path, num_latents: int, num_tokens: int, max_pairs: int) -> None:
        self._folder, self._num_latents, self._num_tokens = folder, num_latents, num_tokens
        self._max_pairs = max_pairs
        self._counts: list[Ints] = []
        self._offsets: list[Ints] = []
        self._pairs = 0
        self._full = False

    def __enter__(self) -> Self:
        make_folder(self._folder)
        self._latent, self._value = TemporaryFile(dir=self._folder), TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._latent.close()
        self._value.close()

    def update(self, codes: Pairs, offset_B: Ints) -> None:
        """Add the codes of rows whose tokens have the offsets ``offset_B``."""
        active = (codes.value != 0).cpu().numpy()
        count_B = np.bincount(codes.rows().cpu().numpy()[active], minlength=codes.num_rows)
        rows = 0 if self._full else codes.num_rows
        if self._pairs + int(count_B.sum()) > self._max_pairs:
            rows = min(rows, int(np.searchsorted(np.cumsum(count_B), self._max_pairs - self._pairs, "right")))
            self._full = True
        kept = int(count_B[:rows].sum())
        self._latent.write(codes.latent.cpu().numpy()[active][:kept].astype(np.int32).tobytes())
        self._value.write(codes.value.float().cpu().numpy()[active][:kept].tobytes())
        self._counts.append(count_B[:rows])
        self._offsets.append(offset_B[:rows])
        self._pairs += kept

    def finish(self) -> StoredCodes:
        """The codes so far; they can be read until the ``with`` block ends."""
        counts = np.concatenate([np.zeros(1, dtype=np.int64), *self._counts])
        return StoredCodes(
            row_ptr=np.cumsum(counts),
            latent=self._map(self._latent, np.zeros(0, dtype=np.int32)),
            value=self._map(self._value, np.zeros(0, dtype=np.float32)),
            offset=np.concatenate([np.zeros(0, dtype=np.int64), *self._offsets]),
            num_latents=self._num_latents,
            num_tokens=self._num_tokens,
        )

    def _map(self, file: IO[bytes], empty: NDArray[Number]) -> NDArray[Number]:
        """The numbers in ``file``, of the type of ``empty``; no file without bytes can be mapped."""
        file.flush()
        if self._pairs == 0:
            return empty
        return np.memmap(file, dtype=empty.dtype, mode="r", shape=(self._pairs,))
