"""Rows from the caller into blocks of records, and full blocks to the spill."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoding.device import DeviceEncoder
from ..encoding.encode import encode_rows
from ..encoding.records import RecordLayout
from .arguments import as_float32
from .spill import Block, SpillWriter

_FIRST_BLOCK_BYTES = 32 << 20
_STAGED_SEQUENCE_BYTES = 32 << 20
_ENCODE_ROWS = 8192  # rows converted to float32 at once, when the caller's are not


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
    """Collects rows in two blocks: one is filled while the other is written."""

    def __init__(
        self, spill: SpillWriter, records: Mapping[str, RecordLayout], *, unit: bool, block_bytes: int
    ) -> None:
        self._spill = spill
        self._records = dict(records)
        self._unit = unit
        self._device_encoder = DeviceEncoder(records, unit=unit)
        record_bytes = sum(record.record_bytes for record in records.values())
        row_bytes = record_bytes + 12  # token and bucket beside them
        capacity = max(64, block_bytes // row_bytes)
        self._first_block_rows = max(64, min(capacity, _FIRST_BLOCK_BYTES // row_bytes))
        self._rows_added = 0
        self._block, self._other = (Block(capacity, list(records.values())) for _ in range(2))
        self._sequence_bytes = 0
        self.blocks_submitted = 0

    def add_rows(
        self, activations: Mapping[str, Any], token: NDArray[np.uint64], bucket: NDArray[np.integer]
    ) -> BadRow | None:
        """Add rows: hook -> [n, D], token [n], bucket [n]. Stops at the first bad row and returns it."""
        if self._device_encoder.serves(activations):
            return self._add_encoded_there(activations, token, bucket)
        for given, room in self._places(token, bucket, _ENCODE_ROWS):
            for i, (hook, record) in enumerate(self._records.items()):
                x = as_float32(activations[hook][given])
                bad = encode_rows(x, self._block.records[i][room], record, self._unit)
                if bad.any():
                    first = int(np.argmax(bad))
                    return BadRow(hook, given.start + first, x[first])
        return None

    def _add_encoded_there(
        self, activations: Mapping[str, Any], token: NDArray[np.uint64], bucket: NDArray[np.integer]
    ) -> BadRow | None:
        """As :meth:`add_rows`, of rows that are encoded on the device where they are."""
        for piece in self._device_encoder.pieces(activations):
            for hook, bad in zip(self._records, piece.bad, strict=True):
                if bad.any():
                    row = piece.rows.start + int(np.argmax(bad))
                    return BadRow(hook, row, as_float32(activations[hook][row : row + 1])[0])
            self.add_records(piece.records, token[piece.rows], bucket[piece.rows])
        return None

    def add_records(
        self, records: Sequence[NDArray[np.uint8]], token: NDArray[np.uint64], bucket: NDArray[np.integer]
    ) -> None:
        """Add encoded rows: [n, record_bytes] of each hook in turn, token [n], bucket [n]."""
        for given, room in self._places(token, bucket, len(token)):
            for target, source in zip(self._block.records, records, strict=True):
                target[room] = source[given]

    def _places(
        self, token: NDArray[np.uint64], bucket: NDArray[np.integer], most: int
    ) -> Iterator[tuple[slice, slice]]:
        """Pairs (slice of the given rows, slice of the block) of at most ``most`` rows.

        When the next pair is requested, the rows of this one count as added, and a full block goes to the
        spill.
        """
        start = 0
        while start < len(token):
            block = self._block
            full = self._rows_of_block()
            count = min(len(token) - start, full - block.used, most)
            given, room = slice(start, start + count), slice(block.used, block.used + count)
            yield given, room
            block.token[room], block.bucket[room] = token[given], bucket[given]
            block.used += count
            start += count
            self._rows_added += count
            if block.used == full:
                self.flush()

    def _rows_of_block(self) -> int:
        """Small blocks at first, so that writing begins early; later large ones, for large segments."""
        wanted = max(self._first_block_rows, self._rows_added // 8, self._block.used + 1)
        return min(self._block.capacity, wanted)

    def add_sequences(self, arrays: dict[str, NDArray[np.int32]]) -> None:
        """Add token arrays int32 [n, context], by name."""
        if arrays:
            self._block.sequences.append(arrays)
            self._sequence_bytes += sum(array.nbytes for array in arrays.values())
            if self._sequence_bytes > _STAGED_SEQUENCE_BYTES:
                self.flush()

    def flush(self) -> None:
        """Hand what is staged to the spill."""
        if self._block.used or self._block.sequences:
            self._spill.submit(self._block)
            self.blocks_submitted += 1
            self._block, self._other = self._other, self._block
            self._block.clear()
            self._sequence_bytes = 0
