"""Where text comes from: one file per kind of source."""

from .base import Document, TextSource
from .open import open_source

__all__ = ["Document", "TextSource", "open_source"]
