"""SAEs that other libraries wrote, as our :class:`~..sae.SAE`: SAELens, dictionary_learning, sparsify, Gemma
Scope and Llama Scope.

Each format has one file. It reads the format's config and names the tensors; the rest is the same for all:
tensors are read after their types and shapes were checked (:mod:`.tensor_files`), normalizations are folded
into the weights, and the SAE is built (:mod:`.building`). ``load_sae`` recognizes the formats by their files.
"""

from typing import TYPE_CHECKING

from ...common.lazy import lazy_names

if TYPE_CHECKING:
    from .dictionary_learning import from_dictionary_learning as from_dictionary_learning
    from .gemma_scope import from_gemma_scope as from_gemma_scope
    from .llama_scope import from_llama_scope as from_llama_scope
    from .saelens import from_saelens as from_saelens
    from .sparsify import from_sparsify as from_sparsify

__all__ = [
    "from_dictionary_learning",
    "from_gemma_scope",
    "from_llama_scope",
    "from_saelens",
    "from_sparsify",
]


# They import torch, so they wait until they are used.
__getattr__ = lazy_names(__name__, {name: name.removeprefix("from_") for name in __all__})
