"""Interpretation with a judge: a chat model explains latents, and scores say how far its words hold."""

from typing import TYPE_CHECKING

from ...common.lazy import lazy_names
from .config import InterpretConfig

if TYPE_CHECKING:
    from .runner import Interpreted as Interpreted
    from .runner import interpret as interpret

__all__ = ["InterpretConfig", "Interpreted", "interpret"]

_LAZY = {"Interpreted": "runner", "interpret": "runner"}  # which import torch


__getattr__ = lazy_names(__name__, _LAZY)
