"""The source of text that a configuration describes."""

from typing import Any

from ...common.errors import UsageError
from ..config import BuiltinText, FilesText, HubText
from .source import TextSource


def open_source(
    config: HubText | FilesText | BuiltinText, pinned: dict[str, Any] | None = None
) -> TextSource:
    """The source that ``config`` describes; its first document has been read once.

    Args:
        config: which text.
        pinned: the identity of the text of a harvest to be continued. A revision that is left open is taken
            from it, and files that have not changed are not checked again.

    Raises:
        UsageError: nothing there, no such column or split, or not a single document.
    """
    source: TextSource
    if isinstance(config, HubText):
        from .hub import HubSource

        source = HubSource(config, pinned)
    elif isinstance(config, FilesText):
        from .files import FilesSource

        source = FilesSource(config, pinned)
    else:
        from .stdlib import StdlibSource

        source = StdlibSource()
    source.identity()  # reads and checks every file, before the first document
    if next(iter(source.documents()), None) is None:
        raise UsageError(f"the text is empty: {source} has not a single document")
    return source
