"""Train SAEs from a cache of activations. ``saecache.train(config, cache)`` calls this module."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from .pairs import Pairs as Pairs
    from .runs.config import TrainConfig as TrainConfig
    from .runs.runner import TrainResult as TrainResult
    from .runs.runner import run as run
    from .sae import SAE as SAE
    from .sae import load_sae as load_sae

__all__ = ["SAE", "Pairs", "TrainConfig", "TrainResult", "load_sae", "run"]

_LAZY = {  # imported on first use, because they import torch
    "Pairs": "pairs",
    "SAE": "sae",
    "TrainConfig": "runs.config",  # its variants are made of tensors
    "TrainResult": "runs.runner",
    "load_sae": "sae",
    "run": "runs.runner",
}


__getattr__ = lazy_names(__name__, _LAZY)


make_callable(__name__)
