"""The source of text that a configuration describes."""

from itertools import islice
from typing import Any, assert_never

from ....common.errors import UsageError
from ..chat import ChatTemplate, check_conversations
from ..config import BuiltinText, DatasetText, FilesText, HubText, MixtureText
from .columns import ChatColumn, Column, ModelSide, column_of
from .lengths import mean_length
from .mixture import MixtureSource
from .source import Conversation, TextSource

_TRIED_CONVERSATIONS = 1000


def open_source(
    config: DatasetText | MixtureText,
    pinned: dict[str, Any] | None = None,
    *,
    model: ModelSide | None = None,
    seed: int = 0,
) -> TextSource:
    """The source that ``config`` describes; its first document has been read once.

    Args:
        config: which text.
        pinned: the identity of the text of a harvest to be continued. A revision that is left open is taken
            from it, and files that have not changed are not checked again.
        model: whom chats and token ids are read for.
        seed: of a mixture.

    Raises:
        UsageError: nothing there, no such column or split, not a single document, or chats that the model's
            template cannot write or that give no row.
    """
    if not isinstance(config, MixtureText):
        return _open_dataset(config, pinned, model)
    known: Any = (pinned or {}).get("parts")
    known = known if isinstance(known, list) and len(known) == len(config.parts) else [{}] * len(config.parts)
    parts = [
        _open_dataset(part.text, before.get("text"), model)
        for part, before in zip(config.parts, known, strict=True)
    ]
    if config.by == "documents":
        return MixtureSource(config, parts, seed)
    if model is None:
        raise UsageError("a mixture by tokens needs the tokenizer that counts them: set text.by=documents")
    lengths = [
        float(before.get("tokens_per_document") or mean_length(part, model))
        for part, before in zip(parts, known, strict=True)
    ]
    return MixtureSource(config, parts, seed, lengths)


def _open_dataset(config: DatasetText, pinned: dict[str, Any] | None, model: ModelSide | None) -> TextSource:
    source: TextSource
    column: Column | None = None
    if isinstance(config, HubText):
        from .hub import HubSource

        column = column_of(config, model)
        source = HubSource(config, column, pinned)
    elif isinstance(config, FilesText):
        from .files import FilesSource

        column = column_of(config, model)
        source = FilesSource(config, column, pinned)
    elif isinstance(config, BuiltinText):
        from .stdlib import StdlibSource

        source = StdlibSource()
    else:
        assert_never(config)
    source.identity()  # reads and checks every file, before the first document
    if next(iter(source.documents()), None) is None:
        raise UsageError(f"the text is empty: {source} has not a single document")
    if isinstance(column, ChatColumn):
        _check_chats(source, column.template)
    return source


def _check_chats(source: TextSource, template: ChatTemplate) -> None:
    tried = islice(source.documents(), _TRIED_CONVERSATIONS)
    pairs = (
        (f"{source}, conversation {number}", content.messages)
        for number, content in tried
        if isinstance(content, Conversation)
    )
    check_conversations(pairs, template)
