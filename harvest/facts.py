"""Facts about a harvest that do not make it another cache: what ran it, where and how fast."""

import platform
from typing import Any

import torch

from ..common.devices import device_name
from ..common.versions import software_versions
from .plan import HarvestPlan
from .row_writer import Progress

_PACKAGES = ("saecache", "torch", "transformers", "tokenizers", "datasets", "numpy")


def provenance_facts(plan: HarvestPlan, progress: Progress, processes: int) -> dict[str, Any]:
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
