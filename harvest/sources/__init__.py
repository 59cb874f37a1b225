"""Where text comes from: one file per kind of source."""

from .opening import open_source
from .source import Document, TextSource

__all__ = ["Document", "TextSource", "open_source"]
