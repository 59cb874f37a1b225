"""Publishes SAEs with their settings, results, a plot and a model card, to the Hub or a bucket."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_names

if TYPE_CHECKING:
    from .publish import Published as Published
    from .publish import publish_sae as publish_sae

_LAZY = {"Published": "publish", "publish_sae": "publish"}  # both import torch
__all__ = [*_LAZY]
__getattr__ = lazy_names(__name__, _LAZY)
