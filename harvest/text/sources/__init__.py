"""Where text comes from: one file per kind of source."""

from .columns import ModelSide
from .opening import open_source
from .source import Content, Conversation, Document, TextSource

__all__ = ["Content", "Conversation", "Document", "ModelSide", "TextSource", "open_source"]
