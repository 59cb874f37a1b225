"""Where text comes from: one file per kind of source."""

from .source import Document, TextSource, open_source

__all__ = ["Document", "TextSource", "open_source"]
