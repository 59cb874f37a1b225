"""Train SAEs from a cache of activations. ``saecache.train(config, cache)`` calls this module."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from .foreign import from_dictionary_learning as from_dictionary_learning
    from .foreign import from_gemma_scope as from_gemma_scope
    from .foreign import from_llama_scope as from_llama_scope
    from .foreign import from_saelens as from_saelens
    from .foreign import from_sparsify as from_sparsify
    from .loading import load_sae as load_sae
    from .pairs import Pairs as Pairs
    from .runs.config import TrainConfig as TrainConfig
    from .runs.runner import TrainResult as TrainResult
    from .runs.runner import run as run
    from .sae import SAE as SAE

__all__ = [
    "SAE",
    "Pairs",
    "TrainConfig",
    "TrainResult",
    "from_dictionary_learning",
    "from_gemma_scope",
    "from_llama_scope",
    "from_saelens",
    "from_sparsify",
    "load_sae",
    "run",
]

_LAZY = {  # imported on first use, because they import torch
    "Pairs": "pairs",
    "SAE": "sae",
    "TrainConfig": "runs.config",  # its variants are made of tensors
    "TrainResult": "runs.runner",
    "from_dictionary_learning": "foreign",
    "from_gemma_scope": "foreign",
    "from_llama_scope": "foreign",
    "from_saelens": "foreign",
    "from_sparsify": "foreign",
    "load_sae": "loading",
    "run": "runs.runner",
}


__getattr__ = lazy_names(__name__, _LAZY)


make_callable(__name__)
