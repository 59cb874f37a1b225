"""Text -> tokens -> model -> rows -> store. ``saecache.harvest(config)`` calls this module."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_names, make_callable
from .config import HarvestConfig

if TYPE_CHECKING:
    from .job.phases import HarvestResult as HarvestResult
    from .model.language_model import LanguageModel as LanguageModel
    from .model.reloading import load_model_of as load_model_of
    from .runner import run as run

__all__ = ["HarvestConfig", "HarvestResult", "LanguageModel", "load_model_of", "run"]

_LAZY = {  # these import torch and transformers, so they wait until they are used
    "LanguageModel": "model.language_model",
    "load_model_of": "model.reloading",
    "HarvestResult": "job.phases",
    "run": "runner",
}


__getattr__ = lazy_names(__name__, _LAZY)


make_callable(__name__)
