"""Facts about a run that do not make it another cache: software, hardware, speed."""

import platform
from typing import Any

import torch

from ..common.devices import device_name
from ..common.versions import software_versions
from .plan import Plan
from .progress import Progress

_PACKAGES = ("saecache", "torch", "transformers", "tokenizers", "datasets", "numpy")


def run_facts(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Plain JSON for the cache's provenance group."""
    folder = {} if plan.files.from_hub or plan.files.name.startswith("builtin:") else _folder(plan)
    return {
        **folder,
        "software": software_versions(_PACKAGES),
        "device": plan.device.type,
        "device_name": device_name(plan.device),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "batch_size": progress.batch_size,
        "median_norms": progress.median_norms,
        "harvest_seconds": round(progress.seconds, 3),
        "tokens_per_second": round(progress.tokens / progress.seconds, 1) if progress.seconds else None,
    }


def _folder(plan: Plan) -> dict[str, Any]:
    """Where a local model was: a cache names it only by the last part of that."""
    return {"model_folder": str(plan.files.folder)}
