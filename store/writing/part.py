"""Rows on their way to the spill of one process, and how far it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import BadActivationError
from ..config import StorageConfig
from ..encoding.records import RecordLayout
from ..keys import is_heldout, row_keys
from .arguments import SequenceArrays
from .blocks import Block, bucket_of
from .journal import Journal, PartLengths, spill_folder
from .pieces import Piece, PieceStore, put_piece
from .spill import SpillLengths, SpillWriter
from .staging import Staging


class SpillMark(PartLengths):
    """How far the spill of a process goes, and what this run has added: rows, and pieces if it makes some."""

    train_rows: int = 0
    heldout_rows: int = 0
    pieces: tuple[Piece, ...] = ()


class SpillPart:
    """The spill that process ``number`` writes. What came after the journal's lengths is cut off.

    Args:
        cache: the folder of the cache.
        number: of the process.
        journal: of the unfinished cache.
        storage: how rows are stored, and the memory for them.
        sequence_arrays: the token arrays, "ids" and "document"; only the first process has any.
        planned_rows: how many this process may write, if it is known.
        store: takes what is spilled, where processes share no folder.
    """

    def __init__(
        self,
        cache: Path,
        number: int,
        journal: Journal,
        storage: StorageConfig,
        *,
        sequence_arrays: tuple[str, ...] = (),
        planned_rows: int | None = None,
        store: PieceStore | None = None,
    ) -> None:
        identity = journal.identity
        self._hooks = list(identity["hooks"])
        self._context: int = identity["context"]
        self._seed: int = identity["seed"]
        self._heldout_fraction: float = identity["heldout_fraction"]
        self._dtype = storage.dtype
        self._num_buckets = journal.num_buckets
        self._lengths = journal.lengths(number)
        records = {hook: RecordLayout(width, storage.dtype) for hook, width in identity["hooks"].items()}
        self._store, self._records = store, list(records.values())
        self._folder = spill_folder(cache, number)
        self._spill = SpillWriter(
            self._folder,
            self._records,
            journal.num_buckets,
            sequence_arrays,
            self._context,
        )
        self._spill.begin(self._lengths)
        self._staging = Staging(
            self._spill,
            records,
            unit=storage.normalization == "unit",
            block_bytes=storage.memory_bytes // 4,
            planned_rows=planned_rows,
        )

    @property
    def blocks(self) -> int:
        """Blocks in the spill, of all runs."""
        return self._lengths.blocks + self._staging.blocks_submitted

    def add_rows(
        self,
        first: int,
        documents: NDArray[np.integer],
        keep: NDArray[np.bool_],
        activations: Mapping[str, Any],
    ) -> dict[str, int]:
        """Add the rows of the sequences from number ``first`` on.

        Args:
            first: number of the first sequence in the cache.
            documents: int [n, context].
            keep: bool [n, context], which positions are rows.
            activations: hook -> [keep.sum(), D].

        Returns:
            How many there are: ``train_rows`` and ``heldout_rows``.

        Raises:
            BadActivationError: a row that cannot be stored.
        """
        where = np.flatnonzero(keep)
        token = where.astype(np.uint64) + np.uint64(first * self._context)
        heldout = is_heldout(self._seed, documents.reshape(-1)[where], self._heldout_fraction)
        bucket = bucket_of(row_keys(self._seed, token), self._num_buckets)
        bucket[heldout] = self._num_buckets
        bad = self._staging.add_rows(activations, token, bucket)
        if bad is not None:
            sequence, position = divmod(int(where[bad.row]), self._context)
            document = int(documents[sequence, position])
            place = f"document {document}, sequence {first + sequence}, position {position}"
            raise BadActivationError(f"hook {bad.hook}, {place}: {bad.reason(self._dtype)}")
        num_heldout = int(heldout.sum())
        return {"train_rows": len(where) - num_heldout, "heldout_rows": num_heldout}

    def add_records(
        self, split: str, token: NDArray[np.uint64], records: Mapping[str, NDArray[np.uint8]]
    ) -> None:
        """Add rows as they are stored: token uint64 [n], hook -> uint8 [n, record_bytes]."""
        bucket = bucket_of(row_keys(self._seed, token), self._num_buckets)
        if split == "heldout":
            bucket[:] = self._num_buckets
        self._staging.add_records([records[hook] for hook in self._hooks], token, bucket)

    def add_sequences(self, arrays: SequenceArrays) -> None:
        """Add token arrays int32 [n, context], by name."""
        self._staging.add_sequences(arrays)

    def make_durable(self) -> Piece | None:
        """Spill and sync what is staged; a store then gets all that is spilled, as one piece."""
        self._staging.flush()
        self._spill.sync()
        if self._store is None:
            return None
        piece = put_piece(self._folder, self._records, self._num_buckets, self._context, self._store)
        self._lengths = SpillLengths()
        self._spill.begin(self._lengths)
        self._staging.blocks_submitted = 0
        return piece

    def keep_in_memory(self) -> list[Block]:
        """The blocks that the spill does not have; see :meth:`.staging.Staging.keep_in_memory`."""
        return self._staging.keep_in_memory()

    def close(self) -> None:
        self._staging.close()
        self._spill.close()
