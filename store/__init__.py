"""The cache on disk and in object storage. ``README.md`` here specifies its format.

This package knows nothing of models or SAEs.

Names are imported on first use, so that ``saecache --help`` and ``cache info`` load no torch.
"""

from typing import TYPE_CHECKING

from ..common.errors import (
    BadActivationError,
    CorruptCacheError,
    IncompleteCacheError,
    SaecacheError,
    UsageError,
)
from ..common.lazy import lazy_names

if TYPE_CHECKING:
    from .config import StorageConfig as StorageConfig
    from .derived.converting import convert_cache as convert_cache
    from .derived.merging import merge_caches as merge_caches
    from .derived.slicing import slice_cache as slice_cache
    from .info import describe as describe
    from .info import read_manifest as read_manifest
    from .keys import is_heldout as is_heldout
    from .keys import row_keys as row_keys
    from .manifest import HookInfo as HookInfo
    from .manifest import Manifest as Manifest
    from .normalization import Normalizer as Normalizer
    from .reading.reader import ActivationCache as ActivationCache
    from .reading.reader import open_cache as open_cache
    from .reading.sharded_array import ShardedArray as ShardedArray
    from .statistics import HookStatistics as HookStatistics
    from .verify import VerifyReport as VerifyReport
    from .verify import verify_cache as verify_cache
    from .writing.output import inspect_output as inspect_output
    from .writing.planned_size import PlannedSize as PlannedSize
    from .writing.planned_size import check_disk_space as check_disk_space
    from .writing.planned_size import plan_size as plan_size
    from .writing.writer import CacheWriter as CacheWriter

_LAZY = {  # public name -> module of this package
    "ActivationCache": "reading.reader",
    "CacheWriter": "writing.writer",
    "HookInfo": "manifest",
    "HookStatistics": "statistics",
    "Manifest": "manifest",
    "Normalizer": "normalization",
    "PlannedSize": "writing.planned_size",
    "ShardedArray": "reading.sharded_array",
    "StorageConfig": "config",
    "VerifyReport": "verify",
    "check_disk_space": "writing.planned_size",
    "convert_cache": "derived.converting",
    "describe": "info",
    "inspect_output": "writing.output",
    "is_heldout": "keys",
    "merge_caches": "derived.merging",
    "open_cache": "reading.reader",
    "plan_size": "writing.planned_size",
    "read_manifest": "info",
    "row_keys": "keys",
    "slice_cache": "derived.slicing",
    "verify_cache": "verify",
}
__all__ = [
    "BadActivationError",
    "CorruptCacheError",
    "IncompleteCacheError",
    "SaecacheError",
    "UsageError",
    *_LAZY,
]


__getattr__ = lazy_names(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
