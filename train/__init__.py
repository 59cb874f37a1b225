"""Train SAEs from a cache of activations. ``saecache.train(config, cache)`` calls this module."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..common.lazy import lazy_names

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


class _CallableModule(ModuleType):
    """Makes the package callable, because the public function has the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
