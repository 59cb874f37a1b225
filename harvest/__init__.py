"""Text -> tokens -> model -> rows -> store. ``saecache.harvest(config)`` calls this module."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..common.lazy import lazy_names
from .config import HarvestConfig

if TYPE_CHECKING:
    from .job import HarvestResult as HarvestResult
    from .model import LanguageModel as LanguageModel
    from .model import load_model_of as load_model_of
    from .runner import run as run

__all__ = ["HarvestConfig", "HarvestResult", "LanguageModel", "load_model_of", "run"]

_LAZY = {  # these import torch and transformers, so they wait until they are used
    "LanguageModel": "model",
    "load_model_of": "model",
    "HarvestResult": "job",
    "run": "runner",
}


__getattr__ = lazy_names(__name__, _LAZY)


class _CallableModule(ModuleType):
    """Lets the package be called: its name is also the public function's name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
