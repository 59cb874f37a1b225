"""Rows from the caller into blocks of records, and full blocks to the spill."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.cores import usable_cores
from ..encoding.device import DeviceEncoder
from ..encoding.encode import encode_rows
from ..encoding.records import RecordLayout
from .arguments import as_float32
from .blocks import Block
from .spill import SpillWriter

_FIRST_BLOCK_BYTES = 32 << 20
_STAGED_SEQUENCE_BYTES = 32 << 20
_ENCODE_ROWS = 1024  # rows that a thread encodes at once


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be stored: its hook, its number among the rows given, and its values."""

    hook: str
    row: int
    values: NDArray[np.float32]

    def reason(self, dtype: str) -> str:
        """Why it cannot be stored as ``dtype``, and what to do."""
        num_nan, num_inf = int(np.isnan(self.values).sum()), int(np.isinf(self.values).sum())
        what = f"{num_nan} NaN and {num_inf} Inf among {len(self.values)} values"
        if not num_nan + num_inf:
            what = f"values up to {np.abs(self.values).max():.4g} are too large for {dtype}"
        return f"{what}; run the model in a wider dtype (bfloat16 or float32), or store float32"


class Staging:
    """Collects rows in two blocks of memory.

    While all rows may fit into them, nothing is written: a cache that is finalized without a commit may never
    need the spill. Otherwise one is filled while the other is written.
    """

    def __init__(
        self,
        spill: SpillWriter,
        records: Mapping[str, RecordLayout],
        *,
        unit: bool,
        block_bytes: int,
        planned_rows: int | None = None,
    ) -> None:
        self._spill = spill
        self._hooks = list(records.items())
        self._unit = unit
        self._device_encoder = DeviceEncoder(records, unit=unit)
        record_bytes = sum(record.record_bytes for record in records.values())
        row_bytes = record_bytes + 12  # token and bucket beside them
        capacity = max(64, block_bytes // row_bytes)
        self._first_block_rows = max(64, min(capacity, _FIRST_BLOCK_BYTES // row_bytes))
        self._all_may_fit = planned_rows is None or planned_rows <= 2 * capacity
        self._rows_added = 0
        self._layouts = list(records.values())
        self._block, self._other = Block(capacity, self._layouts), Block(capacity, self._layouts)
        self._first: Block | None = None  # full, and not yet given to the spill; then it is ``_other``
        self._encoding = ThreadPoolExecutor(len(usable_cores()), "saecache-encode")
        self._sequence_bytes = 0
        self.blocks_submitted = 0

    def close(self) -> None:
        self._encoding.shutdown(cancel_futures=True)

    def add_rows(
        self, activations: Mapping[str, Any], token: NDArray[np.uint64], bucket: NDArray[np.integer]
    ) -> BadRow | None:
        """Add rows: hook -> [n, D], token [n], bucket [n]. Stops at the first bad row and returns it."""
        if self._device_encoder.serves(activations):
            return self._add_encoded_there(activations, token, bucket)
        for given, room in self._places(token, bucket):
            starts = range(0, given.stop - given.start, _ENCODE_ROWS)
            pieces = [
                (i, given.start + start, min(given.start + start + _ENCODE_ROWS, given.stop))
                for i in range(len(self._hooks))
                for start in starts
            ]
            target = self._block.records
            shift = room.start - given.start

            def encode(
                i: int, first: int, last: int, target: Any = target, shift: int = shift
            ) -> BadRow | None:
                hook, record = self._hooks[i]
                x = as_float32(activations[hook][first:last])
                bad = encode_rows(x, target[i][first + shift : last + shift], record, self._unit)
                where = int(np.argmax(bad)) if len(bad) else 0
                return BadRow(hook, first + where, x[where]) if bad.any() else None

            found = [row for row in self._encoding.map(encode, *zip(*pieces, strict=True)) if row]
            if found:
                return found[0]
        return None

    def _add_encoded_there(
        self, activations: Mapping[str, Any], token: NDArray[np.uint64], bucket: NDArray[np.integer]
    ) -> BadRow | None:
        """As :meth:`add_rows`, of rows that are encoded on the device where they are."""
        for piece in self._device_encoder.pieces(activations):
            for (hook, _), bad in zip(self._hooks, piece.bad, strict=True):
                if bad.any():
                    row = piece.rows.start + int(np.argmax(bad))
                    return BadRow(hook, row, as_float32(activations[hook][row : row + 1])[0])
            self.add_records(piece.records, token[piece.rows], bucket[piece.rows])
        return None

    def add_records(
        self, records: Sequence[NDArray[np.uint8]], token: NDArray[np.uint64], bucket: NDArray[np.integer]
    ) -> None:
        """Add encoded rows: [n, record_bytes] of each hook in turn, token [n], bucket [n]."""
        for given, room in self._places(token, bucket):
            for target, source in zip(self._block.records, records, strict=True):
                target[room] = source[given]

    def _places(
        self, token: NDArray[np.uint64], bucket: NDArray[np.integer]
    ) -> Iterator[tuple[slice, slice]]:
        """Pairs (slice of the given rows, slice of the block).

        When the next pair is requested, the rows of this one count as added.
        """
        start = 0
        while start < len(token):
            if self._block.used >= self._rows_of_block():
                self._make_room()
            block = self._block
            count = min(len(token) - start, self._rows_of_block() - block.used)
            given, room = slice(start, start + count), slice(block.used, block.used + count)
            yield given, room
            block.token[room], block.bucket[room] = token[given], bucket[given]
            block.used += count
            start += count
            self._rows_added += count

    def _rows_of_block(self) -> int:
        """Whole blocks while all rows may fit.

        Of rows that are spilled small blocks at first, which the processor's cache still has when they are
        written, and larger ones later, for large segments.
        """
        if self._all_may_fit:
            return self._block.capacity
        return min(self._block.capacity, max(self._first_block_rows, self._rows_added // 8))

    def _make_room(self) -> None:
        """The block is full: keep it while the other is filled, or give what there is to the spill."""
        if self._all_may_fit and self._first is None:
            self._first = self._block
            self._block, self._other = self._other, self._block
        else:
            self.flush()

    def add_sequences(self, arrays: dict[str, NDArray[np.int32]]) -> None:
        """Add token arrays int32 [n, context], by name."""
        if arrays:
            self._block.sequences.append(arrays)
            self._sequence_bytes += sum(array.nbytes for array in arrays.values())
            if self._sequence_bytes > _STAGED_SEQUENCE_BYTES:
                self.flush()

    def flush(self) -> None:
        """Hand what is staged to the spill."""
        self._all_may_fit = False
        if self._first is not None:
            self._submit(self._first)
            self._first = None
        if self._block.used or self._block.sequences:
            self._submit(self._block)
            self._block, self._other = self._other, self._block
            self._block.clear()
            self._sequence_bytes = 0

    def _submit(self, block: Block) -> None:
        """Give a block to the spill, whose other block may then be filled again."""
        self._spill.submit(block)
        self.blocks_submitted += 1

    def keep_in_memory(self) -> list[Block]:
        """The blocks that the spill does not have, in order; no more rows are added.

        Their token arrays are appended to the spill, and memory that is not needed is freed.
        :meth:`flush` may still spill their rows.
        """
        kept = [] if self._first is None else [self._first]
        kept += [self._block] if self._block.used or self._block.sequences else []
        for block in kept:
            self._spill.append_sequences(block)
        self._spill.wait()
        if self._first is None:
            self._other = Block(0, self._layouts)
        if self._block not in kept:
            self._block = Block(0, self._layouts)
        return kept
