"""Before any work: how large a cache will be, whether it fits, and what an output folder already holds."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .config import GIB, StorageConfig
from .errors import UsageError
from .journal import WORK_FOLDER, journal_path
from .layout import Layout, choose_sequence_cut, choose_shard_rows
from .manifest import MANIFEST_ATTRIBUTE
from .spill import RecordLayout

OutputState = Literal["absent", "empty", "incomplete", "complete", "foreign"]


@dataclass(frozen=True)
class PlannedSize:
    """Bytes of the finished cache, and bytes on disk at the worst moment while it is written."""

    final_bytes: int
    peak_bytes: int


def plan_size(
    hooks: Mapping[str, int],
    context: int,
    sequences: int,
    storage: StorageConfig,
    *,
    tokens: bool = True,
) -> PlannedSize:
    """An upper bound: every position of every sequence kept.

    Args:
        hooks: name -> d_model.
        context: positions of a sequence.
        sequences: how many sequences will be written.
        storage: how.
        tokens: whether token ids and documents are stored too.
    """
    widest = max(hooks.values()) * storage.itemsize
    shard_rows = choose_shard_rows(widest, storage.chunk_rows, storage.shard_bytes)
    chunk_sequences, shard_sequences = choose_sequence_cut(context, storage.shard_bytes)
    layout = Layout(
        hooks=hooks,
        context=context,
        train_rows=sequences * context,
        heldout_rows=0,
        sequences=sequences,
        tokens="ids and documents" if tokens else "none",
        dtype=storage.dtype,
        chunk_rows=storage.chunk_rows,
        shard_rows=shard_rows,
        chunk_sequences=chunk_sequences,
        shard_sequences=shard_sequences,
    )
    final = sum(spec.shard_size(i) for spec in layout.arrays() for i in range(spec.num_shards))
    records = sum(RecordLayout(d_model, storage.dtype).record_bytes for d_model in hooks.values())
    spill = sequences * context * (records + 8) + (8 * sequences * context if tokens else 0)
    return PlannedSize(final_bytes=final, peak_bytes=final + spill)


def check_disk_space(path: Path | str, planned: PlannedSize, *, already_bytes: int = 0) -> None:
    """Refuse before the work when the disk cannot hold it.

    Raises:
        UsageError: the file system of ``path`` has less than ``planned.peak_bytes - already_bytes`` free.
    """
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    needed = planned.peak_bytes - already_bytes
    if needed > free:
        raise UsageError(
            f"not enough disk space at {existing}: the cache needs {needed / GIB:.1f} GiB while it is written "
            f"({planned.final_bytes / GIB:.1f} GiB when finished), {free / GIB:.1f} GiB are free; "
            "harvest fewer tokens or hooks, or choose another output folder"
        )


def inspect_output(path: Path | str) -> OutputState:
    """What the folder ``path`` holds.

    ``incomplete``: a cache whose writing stopped, to be continued by the same command. A cache is ``complete`` when
    its manifest is there and nothing of its writing is left.
    """
    path = Path(path)
    if not path.exists():
        return "absent"
    if not path.is_dir():
        return "foreign"
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return "empty"
    if journal_path(path).is_file() or (WORK_FOLDER in names and "zarr.json" not in names):
        return "incomplete"
    root = path / "zarr.json"
    if root.is_file():
        try:
            attributes = json.loads(root.read_bytes()).get("attributes")
        except (ValueError, AttributeError):
            return "foreign"
        if isinstance(attributes, dict) and MANIFEST_ATTRIBUTE in attributes:
            return "complete"
    return "foreign"
