"""What a format is: which SAEs it holds, how it is written, and how its library computes with it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ...train import SAE
from .metadata import Provenance
from .rules import Form, Rule
from .space import Space

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows [B, D] to dense features [B, F] and the reconstruction [B, D]."""


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """All that a format needs to know."""

    sae: SAE
    rule: Rule
    space: Space
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the library calls the SAE; whether features are also multiplied by their decoder row's norm."""

    architecture: str
    times_decoder_norm: bool = False


class Format(ABC):
    """One per library; stateless."""

    name: ClassVar[str]
    forms: ClassVar[frozenset[Form]]
    standardizes: ClassVar[bool] = False  # the library can subtract each row's mean and divide by its std

    @abstractmethod
    def write(self, what: Exportable, folder: Path) -> Written:
        """The files, in the empty ``folder``."""

    @abstractmethod
    def read(self, folder: Path) -> Forward:
        """What the library would compute with the files in ``folder``, written anew from reading its code."""

    @abstractmethod
    def loading(self, folder: Path) -> str:
        """The lines of Python that load it."""
