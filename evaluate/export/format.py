"""The interface of a format: which SAEs it can hold, how it is written, how its library computes with it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ...train import SAE
from .metadata import Provenance
from .rules import Form, Rule
from .space import Space, Step

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows [B, D] to dense features [B, F] and the reconstruction [B, D] (a transcoder's prediction [B, O])."""


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """An SAE with all that a format needs to write it."""

    sae: SAE
    rule: Rule
    space: Space
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class Written:
    """The library's name for the SAE; whether features are multiplied by the norm of their decoder row."""

    architecture: str
    times_decoder_norm: bool = False


class Format(ABC):
    """The files of one library. Subclasses hold no state.

    Attributes:
        forms: the rules that the library has for autoencoders.
        transcoder_forms, cross_layer_forms: those that it has for transcoders and cross-layer transcoders.
        steps: what the library can do to each row first; with the advice for a user whose export is refused
            because this step gives other numbers there than here.
    """

    forms: ClassVar[frozenset[Form]]
    transcoder_forms: ClassVar[frozenset[Form]] = frozenset()
    cross_layer_forms: ClassVar[frozenset[Form]] = frozenset()
    steps: ClassVar[Mapping[Step, str]] = {}

    @abstractmethod
    def write(self, what: Exportable, folder: Path) -> Written:
        """Write the files into the empty ``folder``."""

    @abstractmethod
    def read(self, folder: Path) -> Forward:
        """Read the files in ``folder`` and return what the library computes with them."""

    @abstractmethod
    def loading(self, folder: Path) -> str:
        """Python that loads the files with the library."""
