"""Where a harvest goes, a folder or a bucket by way of a folder, and how much room it needs there."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...common.counts import format_bytes
from ...store import PlannedSize, UsageError, inspect_output, plan_size
from ...store.config import StorageConfig
from ...store.identity import canonical_json
from ...store.remote import is_url
from ...store.remote.bucket_pieces import BucketPieces
from ...store.remote.delivery import UPLOADS_AT_ONCE, WAITING_AT_MOST, BucketDelivery
from ...store.untrusted_json import describe_invalid
from ...store.writing.journal import WORK_FOLDER, damaged_journal, journal_path, parse_journal
from ...store.writing.spills import WINDOW_BYTES
from ..config import HarvestConfig
from ..identity import Existing
from ..plan import HarvestPlan
from ..text.packing import Cursor
from .row_writer import COMMIT_BYTES
from .stream import token_batches

_SAMPLE_SEQUENCES = 256
_OPERATIONAL = {
    "batch_size",
    "device",
    "device_map",
    "commit_seconds",
    "team",
}  # settings that do not change the cache


@dataclass(frozen=True)
class Destination:
    """``folder`` is where the harvest writes; with ``delivery`` the cache itself goes elsewhere.

    With ``pieces`` all that a harvest needs to go on is there too, and ``folder`` is this process's own.
    """

    folder: Path
    delivery: BucketDelivery | None = None
    pieces: BucketPieces | None = None

    @property
    def name(self) -> Path | str:
        """The folder or URL of the cache."""
        return self.folder if self.delivery is None else self.delivery.url

    def in_bucket(self) -> tuple[str, Existing] | None:
        """The cache in the bucket, if there is one, and its URL: finished, or with pieces of its rows.

        Raises:
            CorruptCacheError: what is there is damaged.
        """
        if self.delivery is None:
            return None
        root = self.delivery.finished()
        if root is not None:
            return self.delivery.url, Existing(root.manifest.identity, root.manifest)
        content = self.delivery.pieces().read_journal()
        if content is not None:
            try:
                journal = parse_journal(content)
            except ValueError as error:
                where = f"the journal at {self.delivery.pieces()}"
                raise damaged_journal(where, describe_invalid(error)) from None
            return self.delivery.url, Existing(journal.identity, None, journal.progress)
        if inspect_output(self.folder) == "complete":  # of a former harvest, whose cache was removed there
            _remove_scratch(self.folder)
        return None

    def needed_here(self, planned: PlannedSize, storage: StorageConfig, processes: int = 1) -> PlannedSize:
        """What this machine's disk has to hold of ``planned`` while so many processes write."""
        if self.delivery is None:
            return planned
        spilled = planned.peak_bytes - planned.final_bytes
        if self.pieces is not None:
            spilled = min(spilled, processes * max(WINDOW_BYTES, COMMIT_BYTES + storage.memory_bytes))
        shards = min(
            planned.final_bytes, processes * (WAITING_AT_MOST + UPLOADS_AT_ONCE) * storage.shard_bytes
        )
        return PlannedSize(planned.final_bytes, spilled + shards)

    def apart(self, folder: Path) -> "Destination":
        """The same, where this process shares no folder with the others and works in ``folder``."""
        assert self.delivery is not None
        return replace(self, folder=folder, pieces=self.delivery.work_apart(folder))

    def describe(self, planned: PlannedSize, here: PlannedSize) -> str:
        """Say how many bytes will be written to which place."""
        sizes, peak = f"{format_bytes(planned.final_bytes)} ({planned.final_bytes:,} bytes)", here.peak_bytes
        if self.delivery is None:
            return f"planned: {sizes} in {self.folder}, {format_bytes(peak)} while it is written"
        if self.pieces is not None:
            return (
                f"planned: {sizes} at {self.name}. The processes share no scratch folder, so until the cache "
                f"is finished its rows are kept at {self.pieces}, from where any machine can go on; the "
                f"processes of each machine take up to {format_bytes(peak)} of scratch"
            )
        return (
            f"planned: {sizes} at {self.name}; until it is there, up to {format_bytes(peak)} of "
            f"scratch in {self.folder}. An interrupted harvest goes on from this folder only: for another "
            "machine to continue it, --scratch must name a disk that both share"
        )

    def close(self) -> None:
        """Stop bringing shards away."""
        if self.delivery is not None:
            self.delivery.close()

    def clean(self) -> None:
        """The cache is where it belongs: what was written on the way goes."""
        if self.delivery is not None and self.folder.is_dir():
            _remove_scratch(self.folder)


def _remove_scratch(folder: Path) -> None:
    """Remove a scratch folder, in an order after which a harvest can begin in what a kill leaves of it.

    The shards go while the manifest or the journal still says what the folder is, and the journal goes before
    the spill that it counts.
    """
    work = folder / WORK_FOLDER
    for entry in folder.iterdir():
        if entry.is_dir() and entry != work:
            shutil.rmtree(entry)
    (folder / "zarr.json").unlink(missing_ok=True)
    journal_path(folder).unlink(missing_ok=True)
    shutil.rmtree(folder)


def open_destination(config: HarvestConfig, out: str | Path | None, scratch: Path | None) -> Destination:
    """The destination that ``out`` names; by default a folder of its own below ``caches/``.

    Raises:
        UsageError: no usable URL, or a scratch folder where nothing needs one.
    """
    if out is None or not is_url(out):
        if scratch is not None:
            raise UsageError("--scratch is for harvests into a bucket; a folder needs none: leave it out")
        return Destination(default_path(config) if out is None else Path(out))
    folder = (
        scratch if scratch is not None else Path(f"{default_path(config)}-{_short_hash(str(out))}-scratch")
    )
    return Destination(folder, BucketDelivery(folder, str(out)))


_NEW_IN_0_3 = (("model", "quantization"), ("model", "adapter"), ("text", "chat"), ("text", "pretokenized"))


def default_path(config: HarvestConfig) -> Path:
    """``caches/<model>-<hash of the settings>``."""
    settings = config.model_dump(mode="json", exclude=_OPERATIONAL)
    if settings["heldout_fraction"] == "auto":
        settings["heldout_fraction"] = 0.0  # the default of version 0.1, whose caches are found again
    for part, name in _NEW_IN_0_3:
        if settings[part].get(name) is None:
            settings[part].pop(name, None)
    digest = _short_hash(canonical_json(settings))
    name = config.model.name.rstrip("/").replace(":", "-").rsplit("/", 1)[-1]
    return Path("caches") / f"{name}-{digest}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def planned_size(plan: HarvestPlan, widths: Mapping[str, int]) -> PlannedSize:
    """Bytes for every token that is asked for; what selection leaves out makes it less.

    With one document per sequence the number of sequences, and so of stored token ids, is estimated from the
    first documents.
    """
    context, storage = plan.rule.context, plan.config.storage
    rows = plan_size(widths, context, plan.full_sequences, storage, tokens=False)
    sequences = planned_sequences(plan)
    with_tokens = plan_size(widths, context, sequences, storage)
    without = plan_size(widths, context, sequences, storage, tokens=False)
    return PlannedSize(
        final_bytes=rows.final_bytes + with_tokens.final_bytes - without.final_bytes,
        peak_bytes=rows.peak_bytes + with_tokens.peak_bytes - without.peak_bytes,
    )


def planned_sequences(plan: HarvestPlan) -> int:
    """Sequences of the whole harvest."""
    if plan.rule.packing == "packed":
        return plan.full_sequences
    sample = next(token_batches(plan, Cursor(), 0, _SAMPLE_SEQUENCES), None)
    if sample is None:
        return 0
    mean_tokens = float(sample.sequences.token_counts().mean())
    return max(1, round(plan.config.num_tokens / mean_tokens))
