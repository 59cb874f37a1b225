"""How large a cache will be, and whether it fits, before any work."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...common.counts import format_bytes
from ...common.errors import UsageError
from ..config import StorageConfig
from ..disk_space import check_room
from ..encoding.records import RecordLayout
from ..layout import MAX_CHUNK_BYTES, Layout, TokensKind, choose_sequence_cut, choose_shard_rows
from ..manifest import MAX_MANIFEST_BYTES

_FILE_ENTRY_BYTES = 256  # of a file in the manifest, its hook's name not counted; a little too many


@dataclass(frozen=True)
class PlannedSize:
    """Bytes of the finished cache, and bytes on disk at the worst moment while it is written."""

    final_bytes: int
    peak_bytes: int

    @classmethod
    def of_layout(cls, layout: Layout) -> "PlannedSize":
        """While it is written a cache is there twice: spilled, and as finished shards."""
        records = sum(RecordLayout(width, layout.dtype).record_bytes for width in layout.hooks.values())
        spill = (layout.train_rows + layout.heldout_rows) * (records + 8)
        spill += layout.sequences * layout.context * 4 * len(layout.sequence_arrays())
        return cls(layout.total_bytes(), layout.total_bytes() + spill)


def plan_size(
    hooks: Mapping[str, int],
    context: int,
    sequences: int,
    storage: StorageConfig,
    *,
    tokens: bool = True,
) -> PlannedSize:
    """What a cache will take if every position of every sequence is kept; fewer rows take less.

    Args:
        hooks: name -> d_model.
        context: positions of a sequence.
        sequences: how many sequences will be written.
        storage: how they are stored.
        tokens: whether token ids and documents are stored too.

    Raises:
        UsageError: so many shards that the manifest would be larger than readers accept.
    """
    rows = sequences * context
    kind: TokensKind = "ids and documents" if tokens else "none"
    layout = plan_layout(
        hooks, context, storage, train_rows=rows, heldout_rows=1, sequences=sequences, tokens=kind
    )
    check_manifest_fits(layout, storage)
    return PlannedSize.of_layout(layout)


def plan_layout(
    hooks: Mapping[str, int],
    context: int,
    storage: StorageConfig,
    *,
    train_rows: int,
    heldout_rows: int = 0,
    sequences: int = 0,
    tokens: TokensKind = "none",
) -> Layout:
    """The arrays of a cache with the settings ``storage``.

    Raises:
        UsageError: one chunk would be larger than the format allows.
    """
    widest = max(hooks.values()) * storage.itemsize
    if storage.chunk_rows * widest > MAX_CHUNK_BYTES:
        raise UsageError(
            f"chunk_rows={storage.chunk_rows} rows of {widest} bytes make chunks of more than "
            f"{MAX_CHUNK_BYTES} bytes; expected chunk_rows of at most {max(1, MAX_CHUNK_BYTES // widest)}"
        )
    chunk_sequences, shard_sequences = choose_sequence_cut(context, storage.shard_bytes)
    return Layout(
        hooks=hooks,
        context=context,
        train_rows=train_rows,
        heldout_rows=heldout_rows,
        sequences=sequences,
        tokens=tokens,
        dtype=storage.dtype,
        chunk_rows=storage.chunk_rows,
        shard_rows=choose_shard_rows(widest, storage.chunk_rows, storage.shard_bytes),
        chunk_sequences=chunk_sequences,
        shard_sequences=shard_sequences,
        codec=storage.codec,
    )


def check_manifest_fits(layout: Layout, storage: StorageConfig) -> None:
    """Refuse a cache of so many shards that nobody would read its manifest, before it is harvested.

    Raises:
        UsageError: with the size of shards that makes few enough of them.
    """
    longest = max(len(hook) for hook in layout.hooks)
    num_shards = sum(spec.num_shards for spec in layout.arrays())
    needed = num_shards * (_FILE_ENTRY_BYTES + longest)
    if needed > MAX_MANIFEST_BYTES:
        wanted = -(-storage.shard_bytes * needed // MAX_MANIFEST_BYTES)
        raise UsageError(
            f"the cache would have {num_shards:,} shards, more than a manifest can list; "
            f"set storage.shard_bytes to {wanted:,} or more (it is {storage.shard_bytes:,})"
        )


def check_disk_space(path: Path | str, planned: PlannedSize, *, already_bytes: int = 0) -> None:
    """Refuse before the work when the disk cannot hold it.

    Raises:
        UsageError: the file system of ``path`` has less than ``planned.peak_bytes - already_bytes`` free.
    """
    finished = format_bytes(planned.final_bytes)
    check_room(
        path,
        planned.peak_bytes - already_bytes,
        needed=f"the cache needs {{}} while it is written ({finished} when finished)",
        otherwise="harvest fewer tokens or hooks, or choose another output folder",
    )
