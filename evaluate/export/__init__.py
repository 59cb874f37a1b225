"""A trained SAE -> the files of another library, compared with it before they count as written."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runner import Export as Export
    from .runner import export_sae as export_sae

__all__ = ["Export", "export_sae"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # they import torch, so they wait until they are used
        return getattr(import_module(".runner", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
