"""Writing a cache: rows arrive in reading order and become one shuffled cache, despite interruptions."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from ..config import StorageConfig
from ..identity import canonical_json, fingerprint, whole_identity
from ..layout import TokensKind
from ..manifest import Manifest
from ..manifest_file import load_manifest
from ..reading.arguments import check_whole_numbers
from .arguments import (
    SequenceArrays,
    check_activations,
    check_counts,
    check_hooks,
    check_settings,
    check_types,
    row_arguments,
    sequence_arguments,
)
from .journal import Journal, journal_path
from .pieces import PieceStore
from .publish import publish
from .unfinished import UnfinishedCache
from .unit_records import Delivery

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
        pieces: PieceStore | None = None,
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
            pieces: takes all rows and the journal with each commit, so that other processes need not see
                ``path``, and the next writer may be on another machine.

        Raises:
            UsageError: bad arguments; a folder that holds something else, or an unfinished cache of another
                identity; another process is writing there.
        """
        self.path = Path(path)
        check_types(hooks, heldout_fraction, storage, identity)
        widths = check_whole_numbers(**{f"hooks: width of {hook}": width for hook, width in hooks.items()})
        self.hooks = dict(sorted(zip(hooks, widths, strict=True)))  # their order is not part of the identity
        self.context, self.seed = context, seed = check_whole_numbers(context=context, seed=seed)
        self.heldout_fraction = heldout_fraction
        self.storage = storage or StorageConfig()
        self._delivery, self._shared, self._pieces = delivery, shared, pieces
        self._provenance = json.loads(canonical_json(dict(provenance)))
        check_settings(self.hooks, context, heldout_fraction, self.storage)
        self.identity = whole_identity(identity, self.hooks, context, seed, heldout_fraction, self.storage)
        planned_rows = None if planned_sequences is None else planned_sequences * context
        self._unfinished = UnfinishedCache(self.path, self.identity, self.storage, planned_rows, pieces)

    @property
    def journal(self) -> Journal:
        """The last commit."""
        return self._unfinished.journal

    @property
    def sequences_done(self) -> int:
        """Sequences that are durable: where the caller continues."""
        return self.journal.sequences

    @property
    def progress(self) -> dict[str, Any]:
        """The caller's ``progress`` of the last commit, {} before the first."""
        return dict(self.journal.progress)

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

    def write_rows(self, activations: Mapping[str, Any], documents: Any = None) -> None:
        """Append rows that do not come from token sequences; such a cache has context 1 and no token ids.

        Args:
            activations: hook -> [n, D] raw rows (torch or numpy) of a floating point type.
            documents: int [n], rows that are held out together; unless given, each row is its own document.
                None is held out where ``heldout_fraction`` is 0.

        Raises:
            as :meth:`write_sequences`.
        """
        if self.context != 1:
            raise UsageError(f"write_rows needs context=1, this writer has context={self.context}")
        check_hooks(activations, self.hooks)
        n = len(next(iter(activations.values())))
        kind, numbers, arrays = row_arguments(documents, n, self._unfinished.pending.sequences)
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
        check_hooks(records, self.hooks)
        pending = self._unfinished.pending
        assert pending.tokens is not None and int(token.max(initial=0)) < pending.sequences * self.context
        with self._unfinished.appending(pending.tokens) as part:
            part.add_records(split, token, records)
            self._unfinished.count(**{f"{split}_rows": len(token)})

    def write_token_arrays(
        self, tokens: TokensKind, sequences: int, arrays: Mapping[str, NDArray[np.int32]]
    ) -> None:
        """Append token arrays int32 [sequences, context].

        Their rows come by :meth:`write_records`, afterwards, or by :meth:`.SharedCacheWriter.add_rows`.
        """
        with self._unfinished.appending(tokens) as part:
            part.add_sequences(dict(arrays))
            self._unfinished.count(sequences=sequences)

    def commit(self, progress: Mapping[str, Any] | None = None) -> None:
        """Make everything written so far durable, together with ``progress`` (plain JSON; None keeps the
        last).

        Raises:
            DiskFullError: the disk is full; the commit before this one still stands.
        """
        with self._unfinished.working():
            if progress is not None:
                self._unfinished.set_progress(progress)
            self._unfinished.make_durable()

    @property
    def is_published(self) -> bool:
        """Whether a former run, killed just before its end, wrote the manifest, and its shards still exist.

        Shards that were delivered may be gone: somebody removed the cache from its place meanwhile.
        """
        if not self._unfinished.has_manifest:
            return False
        files = load_manifest(self.path).files
        return self._delivery is None or all(self._delivery.has(file, keep=False) for file in files)

    def finalize(
        self,
        *,
        counts: Mapping[str, int] = _NOTHING,
        provenance: Mapping[str, Any] = _NOTHING,
        on_progress: Callable[[int, int], None] | None = None,
        commit_first: bool = True,
    ) -> Manifest:
        """Commit, shuffle, write the arrays and last the manifest; then close.

        From the commit on no row can be lost: if the process is killed, the next writer finalizes the same
        cache. With ``commit_first=False`` the last rows go from memory into the arrays, which saves writing
        and syncing them once more. If the process is killed meanwhile they are lost, so that is for rows that
        can be made again; after an error they are committed. With a ``delivery`` or ``pieces`` they always
        are, first.

        Args:
            counts: further counts for the manifest (documents, tokens left out, ...).
            provenance: further facts that are not part of the identity (throughput, ...).
            on_progress: called with (bytes done, bytes in all).
            commit_first: whether to make the rows durable that came since the last commit.

        Raises:
            UsageError: no training rows were written.
            DiskFullError: the disk is full; finalizing again continues.
        """
        facts = json.loads(canonical_json({**self._provenance, **provenance}))
        check_counts(counts)
        unfinished = self._unfinished
        with unfinished.working():
            elsewhere = self._delivery is not None or self._pieces is not None
            if not unfinished.is_committed and (commit_first or elsewhere):
                unfinished.make_durable()
            if not self.is_published:
                try:
                    finalizer = unfinished.finalizer(on_progress=on_progress, delivery=self._delivery)
                    publish(self.path, finalizer.run(counts), facts)
                except BaseException:
                    unfinished.make_durable()
                    raise
            manifest = load_manifest(self.path)
            if self._delivery is not None:
                self._delivery.finish()
                journal_path(self.path).unlink()  # first: the cache is elsewhere, nothing here goes on
            unfinished.remove_work()
        return manifest

    def close(self) -> None:
        """Stop. The next writer continues from the last commit; before the first, nothing is left behind."""
        self._unfinished.close(keep_empty=self._shared)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._unfinished.is_open:
                self.finalize()
        finally:
            self.close()

    def _append(
        self,
        tokens: TokensKind,
        documents: NDArray[np.integer],
        keep: NDArray[np.bool_],
        activations: Mapping[str, Any],
        sequence_arrays: SequenceArrays,
    ) -> None:
        check_activations(activations, self.hooks, int(keep.sum()))
        with self._unfinished.appending(tokens) as part:
            first = self._unfinished.pending.sequences
            self._unfinished.count(**part.add_rows(first, documents, keep, activations), sequences=len(keep))
            part.add_sequences(sequence_arrays)
