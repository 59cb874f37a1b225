"""What a column of a data set holds: plain text, conversations or token ids, checked record by record."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from ....common.errors import UsageError
from ....common.validation import MAX_PROBLEMS, MAX_SHOWN
from ..chat import ChatTemplate
from ..config import MESSAGE_ROLES, ChatConfig, FilesText, HubText, PretokenizedConfig
from ..packing import PackingRule
from .source import Content, Conversation


class ModelSide(NamedTuple):
    """What is known of the model before its weights are loaded, and how its sequences are packed.

    ``vocabulary`` counts the token ids that the model embeds: 0 up to one less.
    """

    tokenizer: Any
    tokenizer_sha256: str
    vocabulary: int
    rule: PackingRule | None = None


class Column(Protocol):
    """One column, and how its values become documents."""

    name: str
    setting: str  # where the configuration names the column

    def identity(self) -> dict[str, Any]:
        """What of it makes two texts the same. Plain JSON."""
        ...

    def read(self, value: object, where: str) -> Content:
        """A document of the column's ``value``; a missing value is an empty document.

        Raises:
            UsageError: the value is something else, with ``where`` it is.
        """
        ...


def column_of(config: HubText | FilesText, model: ModelSide | None) -> Column:
    """The column that ``config`` describes. Plain text needs no ``model``.

    Raises:
        UsageError: the model has no chat template, or another tokenizer than the token ids.
    """
    if config.chat is None and config.pretokenized is None:
        return TextColumn(config.column)
    if model is None:
        raise ValueError("chats and token ids are read for a model: give its tokenizer and vocabulary")
    if config.chat is not None:
        return ChatColumn(config.chat, ChatTemplate(model.tokenizer, config.chat))
    assert config.pretokenized is not None
    return TokenIdsColumn(config.pretokenized, model)


class TextColumn:
    """Plain text."""

    setting = "text.column"

    def __init__(self, name: str) -> None:
        self.name = name

    def identity(self) -> dict[str, Any]:
        return {"column": self.name}

    def read(self, value: object, where: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            hint = (
                "; set text.chat for conversations, text.pretokenized for token ids"
                if isinstance(value, list)
                else ""
            )
            raise UsageError(
                f"{where}: column {self.name!r} holds {type(value).__name__}, expected text{hint}"
            )
        return _encodable(value, where)


class ChatColumn:
    """Lists of messages, each a mapping with a role and a content."""

    setting = "text.chat.column"

    def __init__(self, settings: ChatConfig, template: ChatTemplate) -> None:
        self.name = settings.column
        self._settings = settings
        self.template = template

    def identity(self) -> dict[str, Any]:
        return {"column": self.name, "chat": self.template.identity()}

    def read(self, value: object, where: str) -> Conversation:
        if value is None:
            return Conversation([], self.template)
        if not isinstance(value, list):
            raise UsageError(
                f"{where}: column {self.name!r} holds {type(value).__name__}, expected a list of messages, "
                "each with a role and a content"
            )
        messages = [self._message(each, f"{where}, message {n}") for n, each in enumerate(value)]
        return Conversation(messages, self.template)

    def _message(self, value: object, where: str) -> dict[str, Any]:
        settings = self._settings
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: expected a role and a content, got {type(value).__name__}")
        found = {key: each for key, each in value.items() if each is not None}
        if settings.role_key not in found:
            raise UsageError(
                f"{where} has no {settings.role_key!r}; it has: "
                f"{', '.join(_shown(sorted(map(str, found)))) or 'nothing'}. Set "
                "text.chat.role_key and text.chat.content_key to the names that these messages use"
            )
        role, content = found.pop(settings.role_key), found.pop(settings.content_key, "")
        role = settings.rename_roles.get(role, role) if isinstance(role, str) else role
        if role not in MESSAGE_ROLES:
            raise UsageError(
                f"{where}: unknown role {role!r:.80}; expected one of {', '.join(MESSAGE_ROLES)}. If the "
                "data have other names, set text.chat.rename_roles, as {human: user, gpt: assistant}"
            )
        if not isinstance(content, str):
            raise UsageError(
                f"{where}: {settings.content_key!r} is {type(content).__name__}, expected text (images and "
                "other parts are not supported)"
            )
        return {**found, "role": role, "content": _encodable(content, where)}


class TokenIdsColumn:
    """Lists of token ids, used as they are."""

    setting = "text.pretokenized.column"

    def __init__(self, settings: PretokenizedConfig, model: ModelSide) -> None:
        """
        Raises:
            UsageError: the ids are those of another tokenizer.
        """
        self.name = settings.column
        self._tokenizer, self._vocabulary = settings.tokenizer, model.vocabulary
        if settings.tokenizer not in ("unknown", model.tokenizer_sha256):
            raise UsageError(
                f"text.pretokenized.tokenizer={settings.tokenizer}, but the model's tokenizer has sha256 "
                f"{model.tokenizer_sha256}: tokenize the text again for this model, or choose the model that "
                "the ids were made for"
            )

    def identity(self) -> dict[str, Any]:
        return {"column": self.name, "pretokenized": {"tokenizer": self._tokenizer}}

    def read(self, value: object, where: str) -> Content:
        try:
            ids = np.asarray([] if value is None else value)
        except (ValueError, OverflowError):  # lists of several lengths in it
            ids = np.empty((0, 0))
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UsageError(
                f"{where}: column {self.name!r} holds {type(value).__name__}, expected a list of token ids"
            )
        if ids.size and not (ids.min() >= 0 and ids.max() < self._vocabulary):
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise UsageError(
                f"{where}: token id {wrong} is not in the model's vocabulary of {self._vocabulary} (0 to "
                f"{self._vocabulary - 1}): these ids were made for another model"
            )
        return ids.astype(np.int32)


def missing_column(where: str, column: Column, found: Any) -> UsageError:
    """The error for data without the configured column."""
    names = ", ".join(_shown(sorted(map(str, found)))) or "none"
    return UsageError(
        f"{where} has no column {column.name!r}; it has: {names}. Set {column.setting} to one of them"
    )


def _shown(names: list[str]) -> list[str]:
    """As many of ``names``, and as much of each, as a message can show."""
    return [name[:MAX_SHOWN] for name in names[:MAX_PROBLEMS]] + ["..."] * (len(names) > MAX_PROBLEMS)


def _encodable(text: str, where: str) -> str:
    """``text``, which a tokenizer can read: JSON may hold one half of a character that UTF-16 writes as two.

    Raises:
        UsageError: it does.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: character {error.start} is half a character (\\u{ord(text[error.start]):04x}), which "
            "no text has; mend or remove this record"
        ) from None
    return text
