"""saecache: harvest language-model activations once, train every sparse autoencoder from the cache.

The public names, and nothing else. They are imported on first use, so that ``import saecache`` and the
command line's ``--help`` answer at once, without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .harvest import HarvestConfig as HarvestConfig
    from .harvest import run as harvest
    from .store import ActivationCache as ActivationCache
    from .store import CacheWriter as CacheWriter
    from .store import SaecacheError as SaecacheError
    from .store import StorageConfig as StorageConfig
    from .store import UsageError as UsageError
    from .store import open_cache as open_cache
    from .store import verify_cache as verify_cache
    from .train import SAE as SAE
    from .train import TrainConfig as TrainConfig
    from .train import from_dictionary_learning as from_dictionary_learning
    from .train import from_gemma_scope as from_gemma_scope
    from .train import from_llama_scope as from_llama_scope
    from .train import from_saelens as from_saelens
    from .train import from_sparsify as from_sparsify
    from .train import load_sae as load_sae
    from .train import run as train

__version__ = "0.2.0"

_PUBLIC = {  # public name -> (module, name there)
    "ActivationCache": (".store", "ActivationCache"),
    "CacheWriter": (".store", "CacheWriter"),
    "HarvestConfig": (".harvest", "HarvestConfig"),
    "SAE": (".train", "SAE"),
    "SaecacheError": (".store", "SaecacheError"),
    "StorageConfig": (".store", "StorageConfig"),
    "TrainConfig": (".train", "TrainConfig"),
    "UsageError": (".store", "UsageError"),
    "from_dictionary_learning": (".train", "from_dictionary_learning"),
    "from_gemma_scope": (".train", "from_gemma_scope"),
    "from_llama_scope": (".train", "from_llama_scope"),
    "from_saelens": (".train", "from_saelens"),
    "from_sparsify": (".train", "from_sparsify"),
    "load_sae": (".train", "load_sae"),
    "open_cache": (".store", "open_cache"),
    "verify_cache": (".store", "verify_cache"),
}
__all__ = [*_PUBLIC, "harvest", "train"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module, __name__), attribute)
    if name in (
        "harvest",
        "train",
    ):  # packages that can be called: the folder and the function share the name
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'saecache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
