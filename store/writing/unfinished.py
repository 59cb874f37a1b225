"""A cache that is being written: its folder and lock, the last commit, and what the next one will add."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ..config import StorageConfig
from ..disk_space import disk_explained
from ..encoding.records import RecordLayout
from ..identity import canonical_json, differences
from ..layout import TokensKind
from ..manifest_file import load_manifest
from ..untrusted_json import describe_invalid
from .blocks import Block, choose_buckets
from .finalize import Finalizer
from .journal import (
    Journal,
    PartLengths,
    damaged_journal,
    journal_bytes,
    parse_journal,
    read_journal,
    write_journal,
)
from .output import (
    claim_output,
    discard_results,
    discard_uncommitted_results,
    discard_work,
    mark_uncommitted,
    remove_work,
    unmark_uncommitted,
)
from .part import SpillMark, SpillPart
from .pieces import Piece, PieceStore
from .unit_records import Delivery


class UnfinishedCache:
    """The state of one writer, which holds the lock of the folder until it is closed.

    Args:
        path: the cache's folder.
        identity: the whole identity.
        storage: how rows are stored.
        planned_rows: how many will be written, if it is known.
        pieces: has the rows and the journal, where processes share no folder.

    Raises:
        UsageError: the folder holds something else, or an unfinished cache of another identity; another
            process is writing there.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        storage: StorageConfig,
        planned_rows: int | None,
        pieces: PieceStore | None = None,
    ) -> None:
        self._path, self._storage, self._planned_rows = path, storage, planned_rows
        self._store = pieces
        self._pieces_of_others: tuple[Piece, ...] = ()  # that this run has recorded
        self._part: SpillPart | None = None
        self._rows_of_others: dict[str, int] = {}  # that this run has recorded, by the journal's names
        self._failed = False  # an error left rows half written: nothing more may be written or committed
        self._created = not path.exists()
        self._lock = claim_output(path)
        try:
            with disk_explained(path):
                self.journal = self._load_or_start(identity)
        except BaseException:
            if self._created:
                discard_work(path, self._lock, remove_folder=True)
            self._lock.release()
            raise
        self.pending = self.journal
        """What the next commit will make durable; ``journal`` is the last commit."""

    @property
    def is_open(self) -> bool:
        return self._lock.is_locked

    @property
    def is_committed(self) -> bool:
        """Whether everything that was written is durable."""
        return self.pending == self.journal

    @property
    def has_manifest(self) -> bool:
        """Whether a former run wrote all of the cache, and only cleaning up is left."""
        return (self._path / "zarr.json").is_file()

    @contextmanager
    def working(self) -> Iterator[None]:
        """After an error inside, rows may be half written: the writer then refuses all but to be closed.

        Raises:
            UsageError: there was such an error, or the writer is closed.
            DiskFullError: the disk is full; what was committed is kept.
        """
        self._check_usable()
        try:
            with disk_explained(self._path):
                yield
        except BaseException:
            self._failed = True
            raise

    @contextmanager
    def appending(self, tokens: TokensKind) -> Iterator[SpillPart]:
        """As :meth:`working`, with the spill for more rows or token arrays.

        The results of a former finalize are removed, because more rows follow.

        Raises:
            UsageError: the cache was begun with other token arrays, or it is finished but for cleaning up.
        """
        self._check_usable()
        begun = self.pending.tokens or tokens
        if begun != tokens:
            raise UsageError(f"this cache was begun with tokens: {begun}; it cannot go on with: {tokens}")
        if self.has_manifest:
            raise UsageError(f"{self._path} is finished but for cleaning up: finalize, or close")
        with self.working():
            if self._part is None:
                discard_results(self._path)
            yield self.open_spill(tokens)

    def open_spill(self, tokens: TokensKind) -> SpillPart:
        """The spill, cut back to the last commit when it is opened."""
        if self._part is None:
            names = {"ids and documents": ("ids", "document"), "documents": ("document",), "none": ()}[tokens]
            self._part = SpillPart(
                self._path,
                0,
                self.journal,
                self._storage,
                sequence_arrays=names,
                planned_rows=self._planned_rows,
                store=self._store,
            )
            self._change(tokens=tokens)
        return self._part

    def count(self, **more: int) -> None:
        """Count ``sequences``, ``train_rows`` or ``heldout_rows`` that were given to the spill."""
        self.pending = self.pending.with_more(**more)

    def set_progress(self, progress: Mapping[str, Any]) -> None:
        """Replace the caller's ``progress``, plain JSON, which the next commit makes durable."""
        self._change(progress=json.loads(canonical_json(dict(progress))))

    def make_durable(self) -> None:
        """Commit: spill and sync what is staged, and then replace the journal."""
        self._replace_journal(self.spill_durably())

    def spill_durably(self) -> Journal:
        """The first half of a commit."""
        if self._part is not None:
            piece = self._part.make_durable()
            more = () if piece is None else (piece,)
            self._change(blocks=self._part.blocks, pieces=self.pending.pieces + more)
        return self.pending

    def record(self, durable: Journal, others: Sequence[SpillMark], progress: Mapping[str, Any]) -> None:
        """The second half of a commit of several processes; see :meth:`.CacheWriter.record`."""
        parts = tuple(PartLengths(blocks=mark.blocks, rows=mark.rows) for mark in others)
        parts += durable.parts[len(parts) :]
        parts = parts if self._store is None else ()
        known = {piece.name for piece in self._pieces_of_others}
        pieces = tuple(piece for mark in others for piece in mark.pieces)
        names = ("train_rows", "heldout_rows")
        rows = {name: sum(getattr(mark, name) for mark in others) for name in names}
        more = {name: rows[name] - self._rows_of_others.get(name, 0) for name in names}

        def with_others(journal: Journal) -> Journal:
            own = tuple(piece for piece in journal.pieces if piece.name not in known)
            return journal.with_more(**more).model_copy(update={"parts": parts, "pieces": own + pieces})

        self.pending, self._rows_of_others = with_others(self.pending), rows
        self._pieces_of_others = pieces
        self.set_progress(progress)
        self._replace_journal(with_others(durable).model_copy(update={"progress": self.pending.progress}))

    def finalizer(
        self,
        *,
        on_progress: Callable[[int, int], None] | None,
        delivery: Delivery | None,
        shared: bool = False,
    ) -> Finalizer:
        """Writes the arrays from the spill, and from the memory of rows that were not committed.

        It is ``shared`` with other processes where all rows are committed.

        Raises:
            UsageError: no training rows were written.
        """
        pending = self.pending
        if not pending.train_rows or pending.tokens is None:
            raise UsageError(
                f"nothing to train on: {pending.sequences} sequences were written, with "
                f"{pending.heldout_rows} held-out rows and no training rows"
            )
        in_memory: list[Block] = []
        if not shared:
            # Opening the spill cuts off what a killed run left after its last commit.
            in_memory = self.open_spill(pending.tokens).keep_in_memory()
            if not self.is_committed:
                mark_uncommitted(self._path)
        return Finalizer(
            self._path,
            self.pending,
            self._storage,
            on_progress=on_progress,
            delivery=delivery,
            pieces=self._store,
            in_memory=in_memory,
            drop_pages=self.is_committed and not shared,
        )

    def remove_work(self) -> None:
        """Leave nothing but the finished cache, and close."""
        self._close_spill()
        remove_work(self._path, self._lock)

    def close(self, *, keep_empty: bool) -> None:
        """Close. Unless ``keep_empty``, before the first commit nothing is left behind."""
        self._close_spill()
        if self.is_open:
            if not (keep_empty or self.journal.sequences or self.has_manifest):
                discard_work(self._path, self._lock, remove_folder=self._created)
            self._lock.release()

    def _close_spill(self) -> None:
        if self._part is not None:
            self._part.close()
        self._part = None

    def _load_or_start(self, identity: dict[str, Any]) -> Journal:
        if self._store is None:
            journal = read_journal(self._path)
        else:
            self._store.take_over()  # first, so that nobody replaces the journal that is read now
            journal = self._fetch_journal(self._store)
        if journal is None:
            widest = RecordLayout(max(identity["hooks"].values()), self._storage.dtype).record_bytes
            buckets = choose_buckets(self._planned_rows, widest, self._storage)
            journal = Journal(identity=identity, num_buckets=buckets)
            self._write_journal(journal)
        elif journal.identity != identity:
            listed = "\n".join(f"  - {line}" for line in differences(journal.identity, identity))
            place = self._path if self._store is None else self._store
            raise UsageError(
                f"{place} holds an unfinished cache of another identity: remove it, or choose another "
                f"folder. They differ in\n{listed}"
            )
        if self.has_manifest:  # all rows are in it, also those that were never spilled
            manifest = load_manifest(self._path)
            if manifest.identity != identity:
                raise damaged_journal(self._path, "the manifest beside it is of another cache")
            return journal.model_copy(update={"sequences": manifest.sequences, "tokens": manifest.tokens})
        if self._store is not None:
            write_journal(self._path, journal)
            self._store.keep_only([piece.name for piece in journal.pieces])
        discard_uncommitted_results(self._path)
        for number in range(1, 1 + len(journal.parts)):  # cut back to the last commit
            SpillPart(self._path, number, journal, self._storage).close()
        return journal

    @staticmethod
    def _fetch_journal(store: PieceStore) -> Journal | None:
        content = store.read_journal()
        try:
            return None if content is None else parse_journal(content)
        except ValueError as error:
            raise damaged_journal(f"the journal at {store}", describe_invalid(error)) from None

    def _write_journal(self, journal: Journal) -> None:
        if self._store is not None:
            self._store.write_journal(journal_bytes(journal))
        write_journal(self._path, journal)

    def _change(self, **changed: Any) -> None:
        self.pending = self.pending.model_copy(update=changed)

    def _replace_journal(self, journal: Journal) -> None:
        self._write_journal(journal)
        self.journal = journal
        unmark_uncommitted(self._path)

    def _check_usable(self) -> None:
        if self._failed or not self.is_open:
            why = "an error stopped it" if self._failed else "it is closed"
            raise UsageError(f"this writer cannot go on, {why}; a new one with the same arguments continues")
