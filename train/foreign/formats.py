"""Tells the formats apart by the files of a folder, and loads what is there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ...common.lookups import exists
from ..sae import SAE
from . import dictionary_learning, gemma_scope, llama_scope, saelens, sparsify


@dataclass(frozen=True)
class ForeignFormat:
    """A format, its loader, and its files: one of ``weights``, beside ``config`` if there is one."""

    load: Callable[..., SAE]
    weights: tuple[str, ...]
    config: str | None


FORMATS = {
    "saelens": ForeignFormat(saelens.from_saelens, (saelens.WEIGHTS_FILE,), saelens.CONFIG_FILE),
    "sparsify": ForeignFormat(sparsify.from_sparsify, (sparsify.WEIGHTS_FILE,), sparsify.CONFIG_FILE),
    "dictionary_learning": ForeignFormat(
        dictionary_learning.from_dictionary_learning,
        (dictionary_learning.WEIGHTS_FILE, dictionary_learning.SAFE_WEIGHTS_FILE),
        dictionary_learning.CONFIG_FILE,
    ),
    "gemma_scope": ForeignFormat(gemma_scope.from_gemma_scope, gemma_scope.WEIGHTS_FILES, None),
    "llama_scope": ForeignFormat(
        llama_scope.from_llama_scope,
        (f"checkpoints/{llama_scope.WEIGHTS_FILE}", llama_scope.WEIGHTS_FILE),
        llama_scope.CONFIG_FILE,
    ),
}


def find_format(folder: Path) -> str | None:
    """The format of the SAE in ``folder``; None if it holds none of another library."""
    for name, each in FORMATS.items():
        config = each.config is None or exists(folder / each.config)
        if config and any(exists(folder / weights) for weights in each.weights):
            return name
    return None


def load_foreign(folder: Path, device: str | torch.device = "cpu") -> SAE | None:
    """The SAE of another library in ``folder``; None if there is none.

    Raises:
        UsageError: as the loaders of the formats.
    """
    name = find_format(folder)
    return None if name is None else FORMATS[name].load(folder, device=device)
