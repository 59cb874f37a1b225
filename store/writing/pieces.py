"""The spill in object storage, for processes that share no folder: pieces that every process can read.

With each commit a process puts what it has spilled into the bucket, as one piece, and begins anew on its own
disk. So the harvest can go on from any machine. A piece has the files of a spill folder (see ``spill.py``),
and beside them

    index     uint32 [blocks, 2 + hooks, buckets + 1]

the rows per bucket of each block, and then the crc32c of the bucket's rows in ``token`` and in each
``hook.<i>``. The rows of neighbouring buckets lie side by side in a block, so that a range of buckets is read
in few requests, and checked.
"""

import math
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ...common.errors import CorruptCacheError
from ...common.frozen import FrozenModel
from ..encoding.records import RecordLayout

TOKEN_BYTES = 8
_REQUEST_BYTES = 8 << 20  # of one request for rows, unless one bucket of a block has more


class Piece(FrozenModel):
    """What one process had spilled when it committed; ``digests`` are those of files that are read whole."""

    name: Annotated[str, Field(pattern=r"^[0-9a-z][0-9a-z.-]{0,99}$")]
    blocks: Annotated[int, Field(ge=0, le=2**48)]
    rows: Annotated[int, Field(ge=0, le=2**48)]
    sequences: Annotated[int, Field(ge=0, le=2**48)]
    digests: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]

    @model_validator(mode="after")
    def _rows_are_in_blocks(self) -> Self:
        if self.rows and not self.blocks:
            raise ValueError("rows in no block")
        return self

    def digest(self, file: str) -> str:
        """The sha256 of a file that is read whole.

        Raises:
            CorruptCacheError: the journal does not say it.
        """
        if file not in self.digests:
            raise CorruptCacheError(
                f"the journal has no sha256 of the {file} of piece {self.name}: it is damaged; remove the "
                "unfinished cache to start again"
            )
        return self.digests[file]


class Extent(NamedTuple):
    """The rows ``start:start + sum of counts`` of a file of a piece: of neighbouring buckets of one block.

    ``counts`` int64 [buckets], ``sums`` uint32 [buckets]: rows and crc32c of each.
    """

    start: int
    counts: NDArray[np.int64]
    sums: NDArray[np.uint32]


class PieceStore(Protocol):
    """Where pieces, the journal and the records of finished units are, for all processes of a harvest.

    Every method raises SaecacheError where the place does not answer or gives other bytes.
    """

    def put(self, piece: str, name: str, path: Path) -> str:
        """Write the file ``name`` of a piece; returns its sha256."""

    def fetch(self, piece: str, name: str, path: Path, size: int, sha256: str) -> None:
        """Copy the file ``name`` of a piece, which has this size and sha256, to ``path``."""

    def read(self, piece: str, name: str, row_bytes: int, extent: Extent) -> NDArray[np.uint8]:
        """The rows of an extent, uint8 [rows * row_bytes], compared with their checksums."""

    def read_journal(self) -> bytes | None:
        """The last journal; None before the first."""

    def take_over(self) -> None:
        """From now on this run writes the journal, and another one that still lives cannot."""

    def write_journal(self, content: bytes) -> None:
        """Replace the journal.

        Raises:
            RemoteChangedError: another run has taken over.
        """

    def keep_only(self, pieces: Sequence[str]) -> None:
        """Remove all other pieces."""

    def put_record(self, name: str, content: bytes) -> None:
        """Keep the record of a finished unit."""

    def read_records(self, known: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        """The names and contents of all records but those that are ``known``."""


def put_piece(
    spill: Path, hooks: Sequence[RecordLayout], num_buckets: int, context: int, store: PieceStore
) -> Piece | None:
    """Put all that a spill folder holds into ``store``, as one piece; None if it holds nothing."""
    counts = np.fromfile(spill / "segments", "<u4").reshape(-1, num_buckets + 1)
    arrays = [path.name for path in (spill / "ids", spill / "document") if path.is_file()]
    sequences = (spill / arrays[0]).stat().st_size // (4 * context) if arrays else 0
    if not len(counts) and not sequences:
        return None
    name = secrets.token_hex(8)
    files = _files_of_rows(hooks) if len(counts) else {}
    if files:
        sums = [_sum_segments(spill / file, counts, row_bytes) for file, row_bytes in files.items()]
        np.stack([counts, *sums], axis=1).astype("<u4").tofile(spill / "index")
    whole = (["index"] if files else []) + (arrays if sequences else [])
    for file in files:
        store.put(name, file, spill / file)
    return Piece(
        name=name,
        blocks=len(counts),
        rows=int(counts.sum(dtype=np.int64)),
        sequences=sequences,
        digests={file: store.put(name, file, spill / file) for file in whole},
    )


class PieceIndex:
    """Where in a piece the rows of each bucket are. Its file is mapped, not read.

    Args:
        piece: with rows.
        num_hooks: of the cache.
        num_buckets: of the spill.
        path: where the index is copied to.
        store: has the piece.
    """

    def __init__(self, piece: Piece, num_hooks: int, num_buckets: int, path: Path, store: PieceStore) -> None:
        shape = (piece.blocks, 2 + num_hooks, num_buckets + 1)
        store.fetch(piece.name, "index", path, 4 * math.prod(shape), piece.digest("index"))
        self.piece = piece
        self._table = np.memmap(path, "<u4", "r", shape=shape)
        self.bucket_rows = self._table[:, 0].sum(axis=0, dtype=np.int64)
        """Rows of each bucket, int64 [buckets + 1]."""
        if int(self.bucket_rows.sum()) != piece.rows:
            raise CorruptCacheError(f"the index of piece {piece.name} counts other rows than the journal")

    def blocks(self, first: int, last: int, file: int, row_bytes: int) -> Iterator["BlockRange"]:
        """The rows of the buckets ``first:last`` in each block that has some, in a file: 0 is ``token``, 1
        the first hook.
        """
        block_start = 0
        for block in range(self.piece.blocks):
            counts = self._table[block, 0].astype(np.int64)
            start = block_start + int(counts[:first].sum())
            block_start += int(counts.sum())
            wanted = counts[first:last]
            if wanted.any():
                sums = np.asarray(self._table[block, 1 + file, first:last])
                yield BlockRange(wanted, list(_cut(Extent(start, wanted, sums), row_bytes)))


class BlockRange(NamedTuple):
    """Rows of neighbouring buckets of a block: ``counts`` of each bucket, and the requests that read them."""

    counts: NDArray[np.int64]
    extents: list[Extent]


def _cut(extent: Extent, row_bytes: int) -> Iterator[Extent]:
    """Parts of an extent that are small enough for one request each, of whole buckets."""
    most = max(1, _REQUEST_BYTES // row_bytes)
    ends = np.cumsum(extent.counts)
    first, before = 0, 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        if ends[last - 1] > before:
            yield Extent(extent.start + before, extent.counts[first:last], extent.sums[first:last])
        first, before = last, int(ends[last - 1])


def is_right(rows: NDArray[np.uint8], row_bytes: int, extent: Extent) -> bool:
    """Whether the rows of an extent are those of its checksums."""
    from ..encoding.checksum import crc32c  # which needs the compiler; reading a journal does not

    start = 0
    for count, expected in zip(extent.counts.tolist(), extent.sums.tolist(), strict=True):
        stop = start + count * row_bytes
        if count and crc32c(rows[start:stop]) != expected:
            return False
        start = stop
    return start == len(rows)


def _files_of_rows(hooks: Sequence[RecordLayout]) -> dict[str, int]:
    """The files that have one record for each row, and its bytes."""
    return {"token": TOKEN_BYTES} | {f"hook.{i}": record.record_bytes for i, record in enumerate(hooks)}


def _sum_segments(path: Path, counts: NDArray[Any], row_bytes: int) -> NDArray[np.uint32]:
    """The crc32c of the rows of each bucket of each block, [blocks, buckets + 1]; 0 for none."""
    from ..encoding.checksum import crc32c

    sums = np.zeros(counts.shape, np.uint32)
    with path.open("rb", buffering=0) as file:
        for block, row in enumerate(counts.astype(np.int64)):
            rows = np.fromfile(file, np.uint8, int(row.sum()) * row_bytes)
            ends = np.cumsum(row) * row_bytes
            for bucket in np.flatnonzero(row).tolist():
                sums[block, bucket] = crc32c(rows[ends[bucket] - row[bucket] * row_bytes : ends[bucket]])
    return sums
