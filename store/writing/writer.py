"""Writing a cache: rows arrive in reading order and become one shuffled cache, despite interruptions."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ...common.errors import UsageError
from ...distributed.group import Group
from ..config import StorageConfig
from ..disk_space import disk_explained
from ..encoding.records import RecordLayout
from ..identity import canonical_json, differences, fingerprint, whole_identity
from ..layout import TokensKind
from ..manifest import Manifest, load_manifest
from ..untrusted import describe_invalid
from .arguments import (
    SequenceArrays,
    check_activations,
    check_counts,
    check_hooks,
    check_settings,
    row_arguments,
    sequence_arguments,
)
from .blocks import choose_buckets
from .finalize import Delivery, Finalizer
from .journal import (
    WORK_FOLDER,
    Journal,
    PartLengths,
    damaged_journal,
    journal_path,
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
from .planned_size import plan_layout
from .publish import publish

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class CacheWriter:
    """Writes one cache: ``write_sequences`` or ``write_rows`` over and over, ``commit``, then ``finalize``.

    As a context manager it finalizes on a normal exit; on an exception it closes, and the next writer with
    the same arguments continues from the last commit. The finished bytes depend on the rows and the arguments
    only: not on how rows were batched, when commits happened, or how often writing was interrupted.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        hooks: Mapping[str, int],
        context: int = 1,
        identity: Mapping[str, Any],
        seed: int = 0,
        heldout_fraction: float = 0.0,
        storage: StorageConfig | None = None,
        provenance: Mapping[str, Any] = _NOTHING,
        planned_sequences: int | None = None,
        delivery: Delivery | None = None,
        shared: bool = False,
    ) -> None:
        """Start a cache in a new folder, or continue the unfinished one that is there.

        Args:
            path: the cache's folder.
            hooks: hook name -> row width D.
            context: positions of a sequence; 1 for rows that are not from sequences.
            identity: facts about the source (model, data, ...), plain JSON. Hooks, context, seed, held-out
                fraction and storage are added; the whole is the identity, its hash the fingerprint.
            seed: of the shuffle and of the held-out split.
            heldout_fraction: share of documents kept out of training, in [0, 1).
            storage: number type, normalization, sizes; the defaults when None.
            provenance: facts that are not part of the identity (who, where, ...), plain JSON.
            planned_sequences: how many will be written; chooses the number of shuffle buckets, so that each
                fits in memory. The finished bytes do not depend on it.
            delivery: moves shards elsewhere as they are finished; ``path`` then only holds unfinished work.
            shared: other processes write into ``path`` too (see ``helper.py``), perhaps still when this one
                is closed: so nothing is removed before the first commit.

        Raises:
            UsageError: bad arguments; a folder that holds something else, or an unfinished cache of another
                identity; another process is writing there.
        """
        self.path = Path(path)
        self.hooks = dict(sorted(hooks.items()))  # their order is not part of the identity
        self.context = context
        self.seed = seed
        self.heldout_fraction = heldout_fraction
        self.storage = storage or StorageConfig()
        self._delivery, self._shared = delivery, shared
        self._planned_rows = None if planned_sequences is None else planned_sequences * context
        self._provenance = json.loads(canonical_json(dict(provenance)))
        check_settings(self.hooks, context, heldout_fraction, self.storage)
        self.identity = whole_identity(identity, self.hooks, context, seed, heldout_fraction, self.storage)
        self._part: SpillPart | None = None
        self._others = SpillMark()  # what other processes wrote in this run, as far as it is recorded
        self._failed = False  # an error left rows half written: nothing more may be written or committed
        self._created = not self.path.exists()
        self._lock = claim_output(self.path)
        try:
            with disk_explained(self.path):
                self._journal = self._load_or_start()
        except BaseException:
            if self._created:
                discard_work(self.path, self._lock, remove_folder=True)
            self._lock.release()
            raise
        self._pending = self._journal  # what the next commit will make durable

    @property
    def journal(self) -> Journal:
        """The last commit."""
        return self._journal

    @property
    def sequences_done(self) -> int:
        """Sequences that are durable: where the caller continues."""
        return self._journal.sequences

    @property
    def progress(self) -> dict[str, Any]:
        """The caller's ``progress`` of the last commit, {} before the first."""
        return dict(self._journal.progress)

    @property
    def fingerprint(self) -> str:
        """sha256 of the whole identity."""
        return fingerprint(self.identity)

    def write_sequences(self, *, ids: Any, documents: Any, keep: Any, activations: Mapping[str, Any]) -> None:
        """Append the next sequences.

        Args:
            ids: int [n, context], token ids, -1 = padding.
            documents: int [n, context], document of each position, -1 = padding.
            keep: bool [n, context], which positions become rows.
            activations: hook -> [keep.sum(), D] raw rows (torch or numpy), in C order of ``keep``. They are
                read before this returns, so their memory may be used again.

        Raises:
            UsageError: wrong shapes, types or hooks.
            BadActivationError: NaN, Inf, or overflow of the stored type.
            DiskFullError: the disk is full; what was committed is kept.
        """
        ids, documents, keep = sequence_arguments(ids, documents, keep, self.context)
        self._append("ids and documents", documents, keep, activations, {"ids": ids, "document": documents})

    def add_rows(
        self,
        first: int,
        documents: NDArray[np.int32],
        keep: NDArray[np.bool_],
        activations: Mapping[str, Any],
    ) -> None:
        """Append the rows of the sequences from number ``first`` on; :meth:`write_token_arrays` has them.

        Where several processes write one cache, each adds the rows of some sequences, in ascending order.
        Arguments and errors as in :meth:`write_sequences`.
        """
        self._check_usable()
        check_activations(activations, self.hooks, int(keep.sum()))
        self._check_goes_on("ids and documents")
        with self._working():
            self._add_rows(self._begin_writing("ids and documents"), first, documents, keep, activations)

    def write_rows(self, activations: Mapping[str, Any], documents: Any = None) -> None:
        """Append rows that do not come from token sequences; such a cache has context 1 and no token ids.

        Args:
            activations: hook -> [n, D] raw rows (torch or numpy).
            documents: int [n], rows that are held out together; unless given, each row is its own document.

        Raises:
            as :meth:`write_sequences`.
        """
        if self.context != 1:
            raise UsageError(f"write_rows needs context=1, this writer has context={self.context}")
        check_hooks(activations, self.hooks)
        n = len(next(iter(activations.values())))
        kind, numbers, arrays = row_arguments(documents, n, self._pending.sequences)
        self._append(kind, numbers, np.ones((n, 1), dtype=np.bool_), activations, arrays)

    def write_records(
        self, split: str, token: NDArray[np.uint64], records: Mapping[str, NDArray[np.uint8]]
    ) -> None:
        """Append rows of a finished cache as they are stored: nothing is encoded, no document is looked at.

        Their sequences come before them, by :meth:`write_token_arrays`.

        Args:
            split: ``train`` or ``heldout``, which they stay in; held-out rows come in reading order.
            token: uint64 [n], sequence * context + position in this cache.
            records: hook -> uint8 [n, record_bytes], see ``records.py``.
        """
        self._check_usable()
        check_hooks(records, self.hooks)
        assert self._pending.tokens is not None and int(token.max(initial=0)) < self._written_tokens
        with self._working():
            self._begin_writing(self._pending.tokens).add_records(split, token, records)
            count = f"{split}_rows"
            self._advance(**{count: getattr(self._pending, count) + len(token)})

    def write_token_arrays(
        self, tokens: TokensKind, sequences: int, arrays: Mapping[str, NDArray[np.int32]]
    ) -> None:
        """Append token arrays int32 [sequences, context].

        Their rows come by :meth:`write_records`, afterwards, or by :meth:`add_rows`.
        """
        self._check_usable()
        self._check_goes_on(tokens)
        with self._working():
            self._begin_writing(tokens).add_sequences(dict(arrays))
            self._advance(sequences=self._pending.sequences + sequences)

    def commit(self, progress: Mapping[str, Any] | None = None) -> None:
        """Make everything written so far durable, together with ``progress`` (plain JSON; None keeps the
        last).

        Raises:
            DiskFullError: the disk is full; the commit before this one still stands.
        """
        self._check_usable()
        with self._working():
            if progress is not None:
                self._set_progress(progress)
            self._make_durable()

    def spill_durably(self) -> Journal:
        """The first half of a commit that other processes take part in: what this one wrote is durable.

        Errors as in :meth:`commit`.
        """
        self._check_usable()
        with self._working():
            return self._spill_durably()

    def record(self, durable: Journal, others: Sequence[SpillMark], progress: Mapping[str, Any]) -> None:
        """The second half: what all processes made durable at the same point becomes the last commit.

        Args:
            durable: what :meth:`spill_durably` returned here.
            others: what it returned in the other processes, in the order of their numbers.
            progress: that of all together.
        """
        self._check_usable()
        with self._working():
            parts = tuple(PartLengths(blocks=mark.blocks, rows=mark.rows) for mark in others)
            parts += durable.parts[len(parts) :]
            sums = SpillMark(
                train_rows=sum(mark.train_rows for mark in others),
                heldout_rows=sum(mark.heldout_rows for mark in others),
            )
            new = {
                "train_rows": sums.train_rows - self._others.train_rows,
                "heldout_rows": sums.heldout_rows - self._others.heldout_rows,
            }

            def with_others(journal: Journal) -> Journal:
                counts = {name: getattr(journal, name) + count for name, count in new.items()}
                return journal.model_copy(update={"parts": parts, **counts})

            self._pending, self._others = with_others(self._pending), sums
            self._set_progress(progress)
            self._record(with_others(durable).model_copy(update={"progress": self._pending.progress}))

    def run_share(
        self,
        group: Group,
        stop_asked: Callable[[], bool],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write shards together with other processes, before :meth:`finalize`; all rows are committed.

        Raises:
            KeyboardInterrupt: ``stop_asked()`` in any process; what was finished is kept.
        """
        with self._working():
            with group.together():
                self._check_rows_were_written()
                finalizer = open_finalizer(
                    self.path,
                    self._journal,
                    self.storage,
                    on_progress=on_progress,
                    delivery=self._delivery,
                    drop_pages=False,
                )
            finalizer.run_share(group, stop_asked)

    @property
    def is_published(self) -> bool:
        """Whether a former run has written the manifest already, and only cleaning up is left."""
        return self._is_published()

    def finalize(
        self,
        *,
        counts: Mapping[str, int] = _NOTHING,
        provenance: Mapping[str, Any] = _NOTHING,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Manifest:
        """Shuffle, write the arrays and last the manifest; then close.

        Rows that are in memory since the last commit go into the arrays from there. A process that is killed
        meanwhile loses them, as it does at any other time before a commit; after an error they are committed.
        With a ``delivery`` they are committed first.

        Args:
            counts: further counts for the manifest (documents, tokens left out, ...).
            provenance: further facts that are not part of the identity (throughput, ...).
            on_progress: called with (bytes done, bytes in all).

        Raises:
            UsageError: no training rows were written.
            DiskFullError: the disk is full; finalizing again continues.
        """
        facts = json.loads(canonical_json({**self._provenance, **provenance}))
        check_counts(counts)
        self._check_usable()
        if self._delivery is not None:
            self.commit()  # rows that are delivered may have to be written once more
        with self._working():
            if not self._is_published():
                try:
                    publish(self.path, self._build(counts, on_progress), facts)
                except BaseException:
                    self._make_durable()
                    raise
            manifest = load_manifest(self.path)
            if self._delivery is not None:
                self._delivery.finish()
                journal_path(self.path).unlink()  # first: the cache is elsewhere, nothing here goes on
            self._close_threads()
            remove_work(self.path, self._lock)
        return manifest

    def close(self) -> None:
        """Stop. The next writer continues from the last commit; before the first, nothing is left behind."""
        self._close_threads()
        if self._lock.is_locked:
            nothing = not self._journal.sequences and not (self.path / "zarr.json").is_file()
            if nothing and not self._shared:
                discard_work(self.path, self._lock, remove_folder=self._created)
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._lock.is_locked:
                self.finalize()
        finally:
            self.close()

    def _make_durable(self) -> None:
        """Spill and sync what is staged, and then replace the journal."""
        self._record(self._spill_durably())

    def _spill_durably(self) -> Journal:
        if self._part is not None:
            self._part.make_durable()
            self._advance(blocks=self._part.blocks)
        return self._pending

    def _record(self, journal: Journal) -> None:
        write_journal(self.path, journal)
        self._journal = journal
        unmark_uncommitted(self.path)

    def _set_progress(self, progress: Mapping[str, Any]) -> None:
        self._advance(progress=json.loads(canonical_json(dict(progress))))

    def _is_published(self) -> bool:
        """Whether a former run, killed just before its end, wrote the manifest, and its shards still exist.

        Shards that were delivered may be gone: somebody removed the cache from its place meanwhile.
        """
        if not (self.path / "zarr.json").is_file():
            return False
        files = load_manifest(self.path).files
        return self._delivery is None or all(self._delivery.has(file, keep=False) for file in files)

    def _load_or_start(self) -> Journal:
        journal = read_journal(self.path)
        if journal is None:
            widest = RecordLayout(max(self.hooks.values()), self.storage.dtype).record_bytes
            journal = Journal(
                identity=self.identity, num_buckets=choose_buckets(self._planned_rows, widest, self.storage)
            )
            write_journal(self.path, journal)
        elif journal.identity != self.identity:
            listed = "\n".join(f"  - {line}" for line in differences(journal.identity, self.identity))
            raise UsageError(
                f"{self.path} holds an unfinished cache of another identity: remove it, or choose another "
                f"folder. They differ in\n{listed}"
            )
        if (self.path / "zarr.json").is_file():  # all rows are in it, also those that were never spilled
            manifest = load_manifest(self.path)
            journal = journal.model_copy(update={"sequences": manifest.sequences, "tokens": manifest.tokens})
        else:
            discard_uncommitted_results(self.path)
            for number in range(1, 1 + len(journal.parts)):  # cut back to the last commit
                SpillPart(self.path, number, journal, self.storage).close()
        return journal

    def _open_spill(self, tokens: TokensKind) -> SpillPart:
        """The spill, cut back to the last commit when it is opened."""
        if self._part is None:
            names = {"ids and documents": ("ids", "document"), "documents": ("document",), "none": ()}[tokens]
            self._part = SpillPart(
                self.path,
                0,
                self._journal,
                self.storage,
                sequence_arrays=names,
                planned_rows=self._planned_rows,
            )
            self._advance(tokens=tokens)
        return self._part

    @property
    def _written_tokens(self) -> int:
        return self._pending.sequences * self.context

    def _check_goes_on(self, tokens: TokensKind) -> None:
        begun = self._pending.tokens or tokens
        if begun != tokens:
            raise UsageError(f"this cache was begun with tokens: {begun}; it cannot go on with: {tokens}")
        if (self.path / "zarr.json").is_file():
            raise UsageError(f"{self.path} is finished but for cleaning up: finalize, or close")

    def _begin_writing(self, tokens: TokensKind) -> SpillPart:
        """The spill. The results of a former finalize are removed, because more rows follow."""
        if self._part is None:
            discard_results(self.path)
        return self._open_spill(tokens)

    def _append(
        self,
        tokens: TokensKind,
        documents: NDArray[np.integer],
        keep: NDArray[np.bool_],
        activations: Mapping[str, Any],
        sequence_arrays: SequenceArrays,
    ) -> None:
        self._check_usable()
        check_activations(activations, self.hooks, int(keep.sum()))
        self._check_goes_on(tokens)
        with self._working():
            part, first = self._begin_writing(tokens), self._pending.sequences
            self._add_rows(part, first, documents, keep, activations)
            part.add_sequences(sequence_arrays)
            self._advance(sequences=first + len(keep))

    def _add_rows(
        self,
        part: SpillPart,
        first: int,
        documents: NDArray[np.integer],
        keep: NDArray[np.bool_],
        activations: Mapping[str, Any],
    ) -> None:
        added = part.add_rows(first, documents, keep, activations)
        self._advance(
            train_rows=self._pending.train_rows + added.train,
            heldout_rows=self._pending.heldout_rows + added.heldout,
        )

    def _check_rows_were_written(self) -> TokensKind:
        journal = self._pending
        if not journal.train_rows or journal.tokens is None:
            raise UsageError(
                f"nothing to train on: {journal.sequences} sequences were written, with "
                f"{journal.heldout_rows} held-out rows and no training rows"
            )
        return journal.tokens

    def _build(self, counts: Mapping[str, int], on_progress: Callable[[int, int], None] | None) -> Manifest:
        """Write every shard; the manifest of them."""
        journal, tokens = self._pending, self._check_rows_were_written()
        part = self._open_spill(tokens)  # cuts off what a killed run left after its last commit
        in_memory, committed = part.keep_in_memory(), journal == self._journal
        if not committed:
            mark_uncommitted(self.path)
        finalizer = open_finalizer(
            self.path,
            journal,
            self.storage,
            on_progress=on_progress,
            delivery=self._delivery,
            in_memory=in_memory,
            drop_pages=committed,
        )
        files, hooks = finalizer.run()
        try:
            return Manifest.from_layout(
                finalizer.layout, self.identity, hooks, self.storage.normalization, counts=counts, files=files
            )
        except ValidationError as error:  # its numbers are not those of what was written
            raise damaged_journal(self.path, describe_invalid(error)) from None

    def _advance(self, **changed: Any) -> None:
        """Note what the next commit will make durable."""
        self._pending = self._pending.model_copy(update=changed)

    def _check_usable(self) -> None:
        if self._failed or not self._lock.is_locked:
            why = "an error stopped it" if self._failed else "it is closed"
            raise UsageError(f"this writer cannot go on, {why}; a new one with the same arguments continues")

    @contextmanager
    def _working(self) -> Iterator[None]:
        """After an error inside, rows may be half written: the writer then refuses all but ``close``."""
        try:
            with disk_explained(self.path):
                yield
        except BaseException:
            self._failed = True
            raise

    def _close_threads(self) -> None:
        if self._part is not None:
            self._part.close()
        self._part = None


def open_finalizer(path: Path, journal: Journal, storage: StorageConfig, **how: Any) -> Finalizer:
    """What makes the shards of the rows that ``journal`` counts; ``how`` is as in :class:`.Finalizer`."""
    identity = journal.identity
    assert journal.tokens is not None
    layout = plan_layout(
        identity["hooks"],
        identity["context"],
        storage,
        train_rows=journal.train_rows,
        heldout_rows=journal.heldout_rows,
        sequences=journal.sequences,
        tokens=journal.tokens,
    )
    return Finalizer(
        path,
        path / WORK_FOLDER,
        layout,
        journal.spills(path),
        seed=identity["seed"],
        num_buckets=journal.num_buckets,
        unit=storage.normalization == "unit",
        memory_bytes=storage.memory_bytes,
        **how,
    )
