"""The codes of all rows that latents are looked at on, on disk while they are looked at.

The rows of the cache are read and encoded once. What a latent does in the contexts that are chosen in the end
is known only in the end; so the codes, which are few, are kept in a temporary file without a name.
Legend: B rows of a block, N rows, P pairs of a row and an active latent, F latents, L tokens of the text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...distributed.group import Group
from ...store.durable import make_folder
from ...train import Pairs

Ints = NDArray[np.int64]
Number = TypeVar("Number", np.int32, np.float32)

PAIRS_AT_ONCE = 1 << 20


class RowCodes(NamedTuple):
    """The codes of some rows that are not 0: the number of pairs of each row and its token, int64 [n]; the
    latent of each pair, ascending within a row, int32, and its value, float32.
    """

    counts: Ints
    offset: Ints
    latent: NDArray[np.int32]
    value: NDArray[np.float32]


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

    def blocks(self, pairs: int = PAIRS_AT_ONCE) -> Iterator["RowCodes"]:
        """The codes of whole rows, about ``pairs`` of them at a time."""
        first = 0
        while first < self.num_rows:
            end = int(np.searchsorted(self.row_ptr, self.row_ptr[first] + pairs, side="right")) - 1
            end = min(max(end, first + 1), self.num_rows)
            own = slice(int(self.row_ptr[first]), int(self.row_ptr[end]))
            yield RowCodes(
                np.diff(self.row_ptr[first : end + 1]),
                self.offset[first:end],
                np.asarray(self.latent[own]),
                np.asarray(self.value[own]),
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
        self.close()

    def close(self) -> None:
        """Let go of the codes; those that :meth:`finish` returned must not be used any more."""
        self._latent.close()
        self._value.close()

    def emptied(self) -> "CodeSpill":
        """Another one of the same sizes in the same folder, open and empty."""
        return CodeSpill(self._folder, self._num_latents, self._num_tokens, self._max_pairs).__enter__()

    def update(self, codes: Pairs, offset_B: Ints) -> None:
        """Add the codes of rows whose tokens have the offsets ``offset_B``."""
        active = (codes.value != 0).cpu().numpy()
        row_P, latent_P = codes.rows().cpu().numpy()[active], codes.latent.cpu().numpy()[active]
        count_B = np.bincount(row_P, minlength=codes.num_rows)
        value_P = codes.value.float().cpu().numpy()[active]
        self.append(RowCodes(count_B, offset_B, latent_P.astype(np.int32), value_P))

    def append(self, codes: RowCodes) -> None:
        """Add the codes of rows."""
        rows = 0 if self._full else len(codes.counts)
        if self._pairs + int(codes.counts.sum()) > self._max_pairs:
            room = self._max_pairs - self._pairs
            rows = min(rows, int(np.searchsorted(np.cumsum(codes.counts), room, "right")))
            self._full = True
        kept = int(codes.counts[:rows].sum())
        self._latent.write(codes.latent[:kept].tobytes())
        self._value.write(codes.value[:kept].tobytes())
        self._counts.append(codes.counts[:rows])
        self._offsets.append(codes.offset[:rows])
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


def collect_codes(spill: CodeSpill, group: Group, owner: int) -> CodeSpill:
    """Bring the codes of all processes of ``group`` to process ``owner``, in the order of their ranks.

    Returns:
        With one process ``spill``. Else a new one, with the codes of all in process ``owner``; the caller
        closes it.

    Raises:
        OSError: they do not fit on the disk.
    """
    if group.size == 1:
        return spill
    whole = spill.emptied()
    failure: OSError | None = None
    for rank in range(group.size):
        own = spill.finish().blocks() if rank == group.rank else iter(())
        for codes in _travelling(own, group, rank, owner):
            try:
                if failure is None:
                    whole.append(codes)
            except OSError as error:  # the others wait until they have sent all
                failure = error
    with group.together():
        if failure is not None:
            raise failure
    return whole


def _travelling(blocks: Iterator[RowCodes], group: Group, rank: int, owner: int) -> Iterator[RowCodes]:
    """The blocks of process ``rank``, as they come to process ``owner``; none elsewhere."""
    if rank == owner == group.rank:
        yield from blocks
    elif rank == group.rank:
        for block in blocks:
            sizes = torch.tensor([len(block.counts), len(block.latent)])
            arrays = (torch.from_numpy(np.array(array)) for array in block)
            group.wait([group.send(tensor, owner) for tensor in (sizes, *arrays)])
        group.wait([group.send(torch.zeros(2, dtype=torch.int64), owner)])
    elif group.rank == owner:
        while True:
            rows, pairs = group.receive(torch.zeros(2, dtype=torch.int64), rank).tolist()
            if not rows:
                return
            shapes = ((rows, torch.int64), (rows, torch.int64), (pairs, torch.int32), (pairs, torch.float32))
            received = (group.receive(torch.empty(n, dtype=dtype), rank) for n, dtype in shapes)
            yield RowCodes(*(tensor.numpy() for tensor in received))
