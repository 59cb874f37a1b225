"""Writes a trained SAE as the files of another library, after checking that they compute the same.

Also writes what its latents do on a cache, for tools that explain latents or show them.
"""

from typing import TYPE_CHECKING

from ...common.lazy import lazy_names

if TYPE_CHECKING:
    from .latent_formats import LatentExport as LatentExport
    from .latent_formats import export_delphi as export_delphi
    from .latent_formats import export_neuronpedia as export_neuronpedia
    from .runner import Export as Export
    from .runner import export_sae as export_sae

__all__ = ["Export", "LatentExport", "export_delphi", "export_neuronpedia", "export_sae"]


# They import torch, so they wait until they are used.
__getattr__ = lazy_names(
    __name__,
    {
        "Export": "runner",
        "LatentExport": "latent_formats",
        "export_delphi": "latent_formats",
        "export_neuronpedia": "latent_formats",
        "export_sae": "runner",
    },
)
