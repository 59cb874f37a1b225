"""Writes a trained SAE as the files of another library, after checking that they compute the same."""

from typing import TYPE_CHECKING

from ...common.lazy import lazy_names

if TYPE_CHECKING:
    from .runner import Export as Export
    from .runner import export_sae as export_sae

__all__ = ["Export", "export_sae"]


# They import torch, so they wait until they are used.
__getattr__ = lazy_names(__name__, {"Export": "runner", "export_sae": "runner"})
