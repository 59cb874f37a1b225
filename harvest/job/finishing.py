"""The phase of a harvest after the last row: shuffled arrays, each process some shards, then the manifest."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...common.devices import device_name
from ...common.progress import progress_bar
from ...common.versions import software_versions
from ...distributed.group import Group
from ...store import Manifest
from ...store.remote.opening import read_manifest_at
from ...store.writing.helper import HelperWriter, SharedCacheWriter
from ..plan import HarvestPlan
from .joint_writer import journal_of_first
from .row_writer import Progress

_PACKAGES = ("saecache", "torch", "transformers", "tokenizers", "datasets", "numpy")


def finish(
    plan: HarvestPlan,
    place: Path | str,
    progress: Progress,
    writer: SharedCacheWriter | HelperWriter,
    group: Group,
    stop_asked: Callable[[], bool],
) -> Manifest:
    """Shuffle and write the cache of ``place``, all processes of ``group`` together; the first one commits
    ``progress`` before.

    Raises:
        KeyboardInterrupt: ``stop_asked()`` in any process; shards that are finished stay so.
    """
    with group.together():
        if isinstance(writer, SharedCacheWriter):
            writer.commit(progress.to_json())
    with progress_bar("shuffle", "B", hidden=not group.is_first) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def show_and_stop(done: int, total: int) -> None:
            show(done, total)
            if stop_asked():
                raise KeyboardInterrupt

        if group.size > 1 and group.on_first(lambda: _shards_are_missing(writer)):
            journal = journal_of_first(writer, group)
            if isinstance(writer, SharedCacheWriter):
                writer.run_share(group, stop_asked, show)
            else:
                writer.run_share(journal, group, stop_asked)
        manifest = None
        with group.together():
            if isinstance(writer, SharedCacheWriter):
                manifest = writer.finalize(
                    counts=progress.counts(plan.config.num_tokens),
                    provenance=_provenance_facts(plan, progress, group.size),
                    on_progress=show_and_stop if group.size == 1 else show,
                )
        return manifest or read_manifest_at(place)


def _shards_are_missing(writer: SharedCacheWriter | HelperWriter) -> bool:
    return isinstance(writer, SharedCacheWriter) and not writer.is_published


def _provenance_facts(plan: HarvestPlan, progress: Progress, processes: int) -> dict[str, Any]:
    """What the cache's provenance group says of the run, plain JSON."""
    files, seconds, adapter = plan.files, progress.seconds, plan.how.adapter
    local = not files.from_hub and not files.name.startswith(("builtin:", "package:"))
    return {
        # A cache names a local model only by the last part of its path.
        **({"model_folder": str(files.place)} if local else {}),
        **({"adapter_folder": str(adapter.folder)} if adapter and adapter.revision is None else {}),
        **({"derived": {"by": "extend", "from": [progress.extends]}} if progress.extends else {}),
        "software": software_versions([*_PACKAGES, *(["peft"] if adapter else [])]),
        "conditions": progress.conditions,
        "device": plan.device.type,
        "device_name": device_name(plan.device),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "batch_size": progress.batch_size,
        "median_norms": progress.median_norms,
        "harvest_seconds": round(seconds, 3),
        "tokens_per_second": round(progress.tokens / seconds, 1) if seconds else None,
    }
