"""Where a harvest goes: a folder, or a bucket by way of a folder for what is under way."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..store import UsageError, inspect_output
from ..store.config import GIB, StorageConfig
from ..store.identity import canonical_json
from ..store.remote import is_url
from ..store.remote.delivery import UPLOADS_AT_ONCE, WAITING_AT_MOST, BucketDelivery
from ..store.writing.planned_size import PlannedSize
from .config import HarvestConfig
from .identity import Existing

_OPERATIONAL = {"batch_size", "device", "commit_seconds", "team"}  # settings that do not change the cache


@dataclass(frozen=True)
class Target:
    """``folder`` is where the harvest writes; with ``delivery`` the cache itself goes elsewhere."""

    folder: Path
    delivery: BucketDelivery | None = None

    @property
    def name(self) -> Path | str:
        """The folder or URL of the cache."""
        return self.folder if self.delivery is None else self.delivery.url

    def finished(self) -> tuple[str, Existing] | None:
        """The finished cache in the bucket, if there is one, and its URL."""
        if self.delivery is None:
            return None
        root = self.delivery.finished()
        if root is not None:
            return self.delivery.url, Existing(root.manifest.identity, root.manifest, started=True)
        if inspect_output(self.folder) == "complete":  # of a former harvest, whose cache was removed there
            shutil.rmtree(self.folder)
        return None

    def needed_here(self, planned: PlannedSize, storage: StorageConfig) -> PlannedSize:
        """What this machine's disk has to hold of ``planned``."""
        if self.delivery is None:
            return planned
        shards = min(planned.final_bytes, (WAITING_AT_MOST + UPLOADS_AT_ONCE) * storage.shard_bytes)
        return PlannedSize(planned.final_bytes, planned.peak_bytes - planned.final_bytes + shards)

    def describe(self, planned: PlannedSize, here: PlannedSize) -> str:
        """What goes where."""
        sizes = f"{planned.final_bytes / GIB:.2f} GiB ({planned.final_bytes:,} bytes)"
        if self.delivery is None:
            return f"planned: {sizes} in {self.folder}, {here.peak_bytes / GIB:.2f} GiB while it is written"
        return (
            f"planned: {sizes} at {self.name}; until it is there, up to {here.peak_bytes / GIB:.2f} GiB of "
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
            shutil.rmtree(self.folder)


def open_target(config: HarvestConfig, out: str | Path | None, scratch: Path | None) -> Target:
    """The target that ``out`` names; by default a folder of its own below ``caches/``.

    Raises:
        UsageError: no usable URL, or a scratch folder where nothing needs one.
    """
    if out is None or not is_url(out):
        if scratch is not None:
            raise UsageError("--scratch is for harvests into a bucket; a folder needs none: leave it out")
        return Target(default_path(config) if out is None else Path(out))
    folder = (
        scratch if scratch is not None else Path(f"{default_path(config)}-{_short_hash(str(out))}-scratch")
    )
    return Target(folder, BucketDelivery(folder, str(out)))


def default_path(config: HarvestConfig) -> Path:
    """``caches/<model>-<hash of the settings>``."""
    digest = _short_hash(canonical_json(config.model_dump(mode="json", exclude=_OPERATIONAL)))
    name = config.model.name.rstrip("/").replace(":", "-").rsplit("/", 1)[-1]
    return Path("caches") / f"{name}-{digest}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
