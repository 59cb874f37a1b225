"""Writing a cache: rows in reading order in, one finished shuffled cache out, whatever happens in between."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import numpy as np
from numpy.typing import NDArray

from .config import StorageConfig
from .disk import inspect_output
from .durable import fsync_folder, write_bytes
from .errors import BadActivationError, UsageError
from .finalize import Finalizer
from .identity import canonical_json, differences, fingerprint
from .journal import WORK_FOLDER, Journal, journal_path, read_journal, write_journal
from .keys import is_heldout, row_keys
from .layout import (
    PROVENANCE_GROUP,
    Layout,
    check_hook_name,
    choose_sequence_cut,
    choose_shard_rows,
    group_metadata,
    metadata_bytes,
)
from .manifest import MANIFEST_ATTRIBUTE, Cut, Manifest, load_manifest
from .rows import as_float32, encode_rows
from .shuffle import bucket_of
from .spill import RecordLayout, Spill


class CacheWriter:
    """Writes one cache. As a context manager it finalizes on a normal exit, and closes resumably on an exception."""

    def __init__(
        self,
        path: Path | str,
        *,
        hooks: Mapping[str, int],
        context: int = 1,
        identity: Mapping[str, Any],
        seed: int = 0,
        heldout_fraction: float = 0.0,
        storage: StorageConfig = StorageConfig(),
        provenance: Mapping[str, Any] = {},
        planned_sequences: int | None = None,
    ) -> None:
        """Start a cache in a new folder, or continue the unfinished one that is there.

        Args:
            path: the cache's folder.
            hooks: hook name -> row width D.
            context: positions of a sequence; 1 for rows that are not from sequences.
            identity: facts about the source (model, data, ...), plain JSON. With hooks, context, seed, held-out
                fraction and storage added it is the cache's identity, and its hash the fingerprint.
            seed: of the shuffle and the held-out split.
            heldout_fraction: share of documents kept out of training, in [0, 1).
            storage: number type, normalization, sizes.
            provenance: further facts that do not make it another cache (who, when, where), plain JSON.
            planned_sequences: how many will be written, to choose the number of shuffle buckets.

        Raises:
            UsageError: bad arguments, a folder that holds something else or another identity, or a lock held.
        """
        self.path = Path(path)
        self.hooks = dict(hooks)
        self.context = context
        self.seed = seed
        self.heldout_fraction = heldout_fraction
        self.storage = storage
        self._provenance = dict(provenance)
        self._check_arguments()
        self.identity = self._whole_identity(identity)
        self._records = {name: RecordLayout(d_model, storage.dtype) for name, d_model in self.hooks.items()}
        self._lock = self._acquire_lock()
        try:
            self._journal = self._load_or_start(planned_sequences)
            self._spill: Spill | None = None
            self._pending = self._journal
        except BaseException:
            self._lock.release()
            raise

    @property
    def sequences_done(self) -> int:
        """Sequences that are durable: where the caller continues."""
        return self._journal.sequences

    @property
    def progress(self) -> dict[str, Any]:
        """What the caller gave to the last commit."""
        return self._journal.progress

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    def write_sequences(
        self,
        *,
        ids: Any,
        documents: Any,
        keep: Any,
        activations: Mapping[str, Any],
    ) -> None:
        """Append consecutive sequences.

        Args:
            ids: int [n, context], token ids, -1 = padding.
            documents: int [n, context], document of each position, -1 = padding.
            keep: bool [n, context], which positions become rows.
            activations: hook -> [keep.sum(), D] raw rows (torch or numpy), in C order of ``keep``.

        Raises:
            UsageError: wrong shapes, types or hooks.
            BadActivationError: NaN, Inf, or overflow of the stored type.
        """
        ids, documents = _int32(ids, "ids"), _int32(documents, "documents")
        keep = np.asarray(keep)
        for name, array in (("ids", ids), ("documents", documents), ("keep", keep)):
            if array.shape != (len(ids), self.context):
                raise UsageError(f"{name}: expected shape ({len(ids)}, {self.context}), got {array.shape}")
        if keep.dtype != np.bool_:
            raise UsageError(f"keep: expected bool, got {keep.dtype}")
        self._append(
            "ids and documents", len(ids), documents, keep, activations, {"ids": ids, "document": documents}
        )

    def write_rows(self, activations: Mapping[str, Any], documents: Any = None) -> None:
        """Append rows that do not come from token sequences; the cache then has context 1 and no token ids.

        Args:
            activations: hook -> [n, D] raw rows.
            documents: int [n], what is held out together; the row's number unless given.
        """
        if self.context != 1:
            raise UsageError(f"write_rows needs context=1, this writer has context={self.context}")
        n = len(next(iter(activations.values())))
        if documents is None:
            kind, arrays = "none", {}
            documents = np.arange(self._pending.sequences, self._pending.sequences + n)
        else:
            documents = _int32(documents, "documents")
            kind, arrays = "documents", {"document": documents.reshape(-1, 1)}
        documents = np.asarray(documents).reshape(-1, 1)
        if len(documents) != n:
            raise UsageError(f"documents: expected {n} of them, got {len(documents)}")
        self._append(kind, n, documents, np.ones((n, 1), dtype=np.bool_), activations, arrays)

    def commit(self, progress: Mapping[str, Any] | None = None) -> None:
        """Make everything written so far durable, together with ``progress`` (plain JSON)."""
        pending = self._pending
        if progress is not None:
            pending = pending.model_copy(update={"progress": json.loads(canonical_json(progress))})
        if self._spill is not None:
            self._spill.sync()
        write_journal(self.path, pending)
        self._journal = self._pending = pending

    def finalize(
        self,
        *,
        counts: Mapping[str, int] = {},
        provenance: Mapping[str, Any] = {},
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Manifest:
        """Shuffle, write the arrays, then the manifest; the writer is closed.

        Args:
            counts: further counts for the manifest (documents, skipped tokens, ...).
            provenance: further volatile facts (throughput, ...).
            on_progress: called with (bytes done, bytes in all).
        """
        self.commit()
        if not (self.path / "zarr.json").is_file():
            journal = self._journal
            if not journal.train_rows + journal.heldout_rows:
                raise UsageError("nothing to finalize: no rows were written")
            layout = self._layout(journal)
            work = self.path / WORK_FOLDER
            finalizer = Finalizer(
                self.path,
                work,
                layout,
                self.seed,
                journal.num_buckets,
                on_progress,
                unit=self.storage.normalization == "unit",
            )
            files, hooks = finalizer.run()
            manifest = Manifest(
                fingerprint=self.fingerprint,
                identity=self.identity,
                hooks=hooks,
                context=self.context,
                sequences=journal.sequences,
                train_rows=journal.train_rows,
                heldout_rows=journal.heldout_rows,
                counts=dict(counts),
                tokens=layout.tokens,
                storage=self.storage,
                cut=Cut(
                    chunk_rows=layout.chunk_rows,
                    shard_rows=layout.shard_rows,
                    chunk_sequences=layout.chunk_sequences,
                    shard_sequences=layout.shard_sequences,
                ),
                files=files,
            )
            self._write_metadata(manifest, {**self._provenance, **provenance})
        manifest = load_manifest(self.path)
        self._remove_work()
        return manifest

    def close(self) -> None:
        """Let go of the lock; what was committed can be continued later."""
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

    def _check_arguments(self) -> None:
        if not self.hooks:
            raise UsageError("hooks: expected at least one hook name with its width")
        for name, d_model in self.hooks.items():
            check_hook_name(name)
            if d_model < 1:
                raise UsageError(f"hooks: {name} has width {d_model}, expected at least 1")
        if self.context < 1:
            raise UsageError(f"context must be at least 1, got {self.context}")
        if not 0 <= self.heldout_fraction < 1:
            raise UsageError(f"heldout_fraction must be in [0, 1), got {self.heldout_fraction}")

    def _whole_identity(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        own = {
            "hooks": self.hooks,
            "context": self.context,
            "seed": self.seed,
            "heldout_fraction": self.heldout_fraction,
            "storage": self.storage.model_dump(mode="json", exclude={"memory_bytes"}),
        }
        if clash := sorted(own.keys() & identity.keys()):
            raise UsageError(f"identity: {', '.join(clash)} are added by the writer, leave them out")
        whole: dict[str, Any] = json.loads(canonical_json({**identity, **own}))
        return whole

    def _acquire_lock(self) -> filelock.BaseFileLock:
        state = inspect_output(self.path)
        if state == "complete":
            raise UsageError(
                f"{self.path} already holds a finished cache; open it with open_cache, or choose another folder"
            )
        if state == "foreign":
            raise UsageError(f"{self.path} holds something else than a cache; choose a new or empty folder")
        work = self.path / WORK_FOLDER
        work.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(work / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UsageError(
                f"{self.path} is being written by another process; wait for it, or choose another folder"
            ) from None
        return lock

    def _load_or_start(self, planned_sequences: int | None) -> Journal:
        journal = read_journal(self.path)
        if journal is None:
            journal = Journal(identity=self.identity, num_buckets=self._choose_buckets(planned_sequences))
            write_journal(self.path, journal)
        elif journal.identity != self.identity:
            listed = "\n".join(f"  - {line}" for line in differences(journal.identity, self.identity))
            raise UsageError(
                f"{self.path} holds an unfinished cache of another identity; remove it or choose another folder:\n{listed}"
            )
        return journal

    def _choose_buckets(self, planned_sequences: int | None) -> int:
        """A power of two such that one bucket of the widest hook fits in a quarter of the memory."""
        if planned_sequences is None:
            return 256
        widest = max(record.record_bytes for record in self._records.values())
        planned = planned_sequences * self.context * widest
        wanted = -(-planned // (self.storage.memory_bytes // 4))
        return min(1 << max(0, (wanted - 1).bit_length()), 1 << 14)

    def _open_spill(self, tokens: str) -> Spill:
        if self._spill is None:
            journal = self._journal
            if journal.tokens not in (None, tokens):
                raise UsageError(
                    f"this cache was begun with {journal.tokens!r} for its tokens; it cannot go on with {tokens!r}"
                )
            per_sequence = 4 * self.context
            names = {"ids and documents": ("ids", "document"), "documents": ("document",), "none": ()}[tokens]
            self._spill = Spill(
                self.path / WORK_FOLDER / "spill",
                list(self._records.values()),
                journal.num_buckets,
                dict.fromkeys(names, per_sequence),
            )
            self._spill.truncate(journal.lengths)
            shutil.rmtree(self.path / WORK_FOLDER / "done", ignore_errors=True)
            self._pending = self._pending.model_copy(update={"tokens": tokens})
        if self._pending.tokens != tokens:
            raise UsageError(
                f"this cache was begun with {self._pending.tokens!r} for its tokens; it cannot go on with {tokens!r}"
            )
        return self._spill

    def _append(
        self,
        tokens: str,
        n: int,
        documents: NDArray[np.integer],
        keep: NDArray[np.bool_],
        activations: Mapping[str, Any],
        token_arrays: dict[str, NDArray[np.int32]],
    ) -> None:
        if set(activations) != set(self.hooks):
            raise UsageError(f"activations: expected hooks {sorted(self.hooks)}, got {sorted(activations)}")
        spill = self._open_spill(tokens)
        first = self._pending.sequences
        where = np.flatnonzero(keep)
        token_index = where.astype(np.uint64) + np.uint64(first * self.context)
        records = []
        for hook, record in self._records.items():
            x = as_float32(activations[hook], len(where), record.d_model, hook)
            encoded, bad = encode_rows(x, record, self.storage.normalization == "unit")
            if bad.any():
                self._raise_bad(hook, x, int(np.flatnonzero(bad)[0]), where, documents, first)
            records.append(encoded)
        bucket = bucket_of(row_keys(self.seed, token_index), self._journal.num_buckets)
        heldout = is_heldout(self.seed, documents.reshape(-1)[where], self.heldout_fraction)
        bucket[heldout] = self._journal.num_buckets
        spill.append_block(token_index, records, bucket)
        spill.append_sequences(token_arrays)
        pending = self._pending
        self._pending = pending.model_copy(
            update={
                "sequences": first + n,
                "blocks": pending.blocks + 1,
                "train_rows": pending.train_rows + int((~heldout).sum()),
                "heldout_rows": pending.heldout_rows + int(heldout.sum()),
            }
        )

    def _raise_bad(
        self,
        hook: str,
        x: Any,
        row: int,
        where: NDArray[np.int64],
        documents: NDArray[np.integer],
        first: int,
    ) -> None:
        sequence, position = divmod(int(where[row]), self.context)
        document = int(documents[sequence, position])
        values = x[row].numpy()
        finite = values[np.isfinite(values)]
        what = (
            f"{np.isnan(values).sum()} NaN and {np.isinf(values).sum()} Inf"
            if len(finite) < len(values)
            else f"values up to {np.abs(values).max():.4g}, which overflow {self.storage.dtype}"
        )
        raise BadActivationError(
            f"hook {hook}, document {document}, sequence {first + sequence}, position {position}: {what}; "
            "use a wider dtype for the model, or storage.dtype=float32"
        )

    def _layout(self, journal: Journal) -> Layout:
        widest = max(self.hooks.values()) * self.storage.itemsize
        chunk_sequences, shard_sequences = choose_sequence_cut(self.context, self.storage.shard_bytes)
        return Layout(
            hooks=self.hooks,
            context=self.context,
            train_rows=journal.train_rows,
            heldout_rows=journal.heldout_rows,
            sequences=journal.sequences,
            tokens=journal.tokens or "none",  # type: ignore[arg-type]
            dtype=self.storage.dtype,
            chunk_rows=self.storage.chunk_rows,
            shard_rows=choose_shard_rows(widest, self.storage.chunk_rows, self.storage.shard_bytes),
            chunk_sequences=chunk_sequences,
            shard_sequences=shard_sequences,
        )

    def _write_metadata(self, manifest: Manifest, provenance: Mapping[str, Any]) -> None:
        """Array and group metadata, provenance, and last the root with the manifest."""
        layout = manifest.layout
        nodes: dict[str, Any] = {path: group_metadata() for path in layout.groups()}
        nodes |= {spec.path: spec.metadata() for spec in layout.arrays()}
        for path, node in nodes.items():
            write_bytes(self.path / path / "zarr.json", metadata_bytes(node))
        facts = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **provenance}
        write_bytes(self.path / PROVENANCE_GROUP / "zarr.json", metadata_bytes(group_metadata(facts)))
        # Zarr-python rebuilds the tree from this flat listing and needs it by depth, siblings together.
        listed = {path: nodes[path] for path in sorted(nodes, key=lambda path: (path.count("/"), path))}
        root = group_metadata({MANIFEST_ATTRIBUTE: manifest.to_attribute()})
        root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": listed}
        fsync_folder(self.path)
        write_bytes(self.path / "zarr.json", metadata_bytes(root))

    def _remove_work(self) -> None:
        """The journal goes last: while it is there the folder counts as unfinished."""
        work = self.path / WORK_FOLDER
        for entry in work.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
        self._lock.release()
        (work / "lock").unlink(missing_ok=True)
        journal_path(self.path).unlink()
        os.rmdir(work)  # noqa: PTH106
        fsync_folder(self.path)


def _int32(values: Any, name: str) -> NDArray[np.int32]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" and array.size:
        raise UsageError(f"{name}: expected integers, got {array.dtype}")
    if array.size and (array.min() < -1 or array.max() >= 2**31):
        raise UsageError(
            f"{name}: expected values from -1 to {2**31 - 1}, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int32)
