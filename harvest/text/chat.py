"""Conversations as a model reads them: written out by a chat template, with the role of every token.

Where the messages' contents stand in the written text is found with a second rendering, in which a mark
replaces every content. What stands between the marks is the template's markup. With the real contents in the
places of the marks it must give the first rendering, character by character; a template for which it does not
is refused, so nothing is guessed.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from ...common.lookups import expanded
from ...common.regular_files import read_regular
from ...store.untrusted_model import files_explained
from .config import MESSAGE_ROLES, ChatConfig
from .packing import EXCLUDED, MESSAGE_ROLE, Role

_MARK = "\ue000{}\ue001"  # characters of private use, which no template treats in a special way
_MARKS = re.compile("\ue000([0-9]{1,9})\ue001")
_DATE_FORMAT = re.compile(r"strftime_now\(\s*(?:\"([^\"\\]*)\"|'([^'\\]*)')\s*\)")
_MOST_TEMPLATE_BYTES = 1 << 20
_MOST_SKELETONS = 4096
_END_OF_THINKING = "</think>"


class Span(NamedTuple):
    """The characters ``start:stop`` are the content of message number ``message``."""

    start: int
    stop: int
    message: int


class ChatTemplate:
    """The chat template of a tokenizer, and which of its tokens become rows."""

    def __init__(self, tokenizer: Any, settings: ChatConfig) -> None:
        """
        Raises:
            UsageError: there is no template, or one that cannot be used.
        """
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UsageError(
                "text.chat: this model's tokenizer does not say which characters a token stands for (it has "
                "no tokenizer.json); save it as a fast tokenizer, or tokenize the chats yourself and set "
                "text.pretokenized"
            )
        self._tokenizer = tokenizer
        text = _read_template(tokenizer, settings.template)
        self._settings = settings
        with files_explained("text.chat: the chat template cannot be used"):
            self._sha256 = hashlib.sha256(text.encode("utf-8")).hexdigest()
            self._template = _with_fixed_date(text, settings.date)
        self._skeletons: dict[tuple[tuple[str, bool], ...], list[str]] = {}
        keep = MESSAGE_ROLES if settings.roles == "all" else settings.roles
        self._role_of = {
            role: MESSAGE_ROLE + number + (0 if role in keep else EXCLUDED)
            for number, role in enumerate(MESSAGE_ROLES)
        }
        self._markup = Role.TEMPLATE + (0 if settings.include_template else EXCLUDED)

    def identity(self) -> dict[str, Any]:
        """What of it makes two texts the same. Plain JSON."""
        settings = self._settings.model_dump(mode="json", exclude={"column", "template"})
        return {**settings, "template_sha256": self._sha256}

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose messages become rows."""
        return tuple(role for role, number in self._role_of.items() if number < EXCLUDED)

    @property
    def includes_markup(self) -> bool:
        """Whether the template's own tokens become rows."""
        return self._settings.include_template

    def render(self, messages: Sequence[dict[str, Any]], where: str) -> tuple[str, list[Span]]:
        """The written conversation, and where the contents that are not empty stand in it, in order.

        Args:
            messages: with a ``role`` and a ``content``.
            where: of the conversation, for errors.

        Raises:
            UsageError: the template refuses the messages, or changes their contents.
        """
        if not messages:
            return "", []
        text = self._apply(messages, where)
        pieces = self._skeleton(messages, where)
        if not text.startswith(pieces[0]):
            raise self._changed(where, int(pieces[1]) if len(pieces) > 1 else 0, messages)
        spans, place = [], len(pieces[0])
        for mark, markup in zip(pieces[1::2], pieces[2::2], strict=True):
            number = int(mark)
            forms = _forms(messages[number]["content"])
            content = next((form for form in forms if text.startswith(form + markup, place)), None)
            if content is None:
                raise self._changed(where, number, messages)
            spans.append(Span(place, place + len(content), number))
            place += len(content) + len(markup)
        if place != len(text):
            raise self._changed(where, len(messages) - 1, messages)
        return text, spans

    def encode(
        self, conversations: Sequence[tuple[str, Sequence[dict[str, Any]]]]
    ) -> list[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
        """Token ids and roles [n] of each conversation, which is given with where it is.

        A token belongs to a message if all of it is the message's, or if it holds characters of it that are
        not blank and otherwise only blanks, as '▁Hello' after 'ASSISTANT:'. All others belong to the
        template.
        """
        rendered = [self.render(messages, where) for where, messages in conversations]
        backend = self._tokenizer.backend_tokenizer
        encodings = backend.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        found = []
        for (_, messages), (text, spans), encoding in zip(conversations, rendered, encodings, strict=True):
            ids = np.asarray(encoding.ids, dtype=np.int32)
            offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            roles = np.full(len(ids), self._markup, dtype=np.uint8)
            for span in spans:
                roles[_tokens_of(span, offsets, text)] = self._role_of[messages[span.message]["role"]]
            if len(ids) and ids[0] == self._tokenizer.bos_token_id:
                roles[0] = Role.BOS
            found.append((ids, roles))
        return found

    def _skeleton(self, messages: Sequence[dict[str, Any]], where: str) -> list[str]:
        """Markup, mark, markup, ..., markup of conversations with these roles."""
        plain = all(len(message) == 2 for message in messages)  # a role and a content, nothing else
        key = tuple((message["role"], bool(message["content"])) for message in messages)
        if plain and key in self._skeletons:
            return self._skeletons[key]
        marked = [
            {**message, "content": _MARK.format(number)} if message["content"] else message
            for number, message in enumerate(messages)
        ]
        pieces = _MARKS.split(self._apply(marked, where))
        if any(int(mark) >= len(messages) for mark in pieces[1::2]):  # a mark of the template's own
            raise self._changed(where, len(messages) - 1, messages)
        if plain and len(self._skeletons) < _MOST_SKELETONS:
            self._skeletons[key] = pieces
        return pieces

    def _apply(self, messages: Sequence[dict[str, Any]], where: str) -> str:
        roles = ", ".join(message["role"] for message in messages)
        with files_explained(
            f"{where}: the chat template cannot write this conversation",
            f"; its roles are {roles}. Remove or change it, or set text.chat.template to a template that can",
        ):
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=False,
                **self._settings.template_arguments,
            )
            text.encode("utf-8")  # what the tokenizer does
        return text

    def _changed(self, where: str, number: int, messages: Sequence[dict[str, Any]]) -> UsageError:
        return UsageError(
            f"{where}: the chat template does not write the content of message {number} "
            f"({messages[number]['role']}) as it is, so that its tokens cannot be told from the markup. "
            "Expected the content, at most without blanks around it; change this conversation, or set "
            "text.chat.template to a template that writes contents unchanged"
        )


def check_conversations(
    conversations: Iterator[tuple[str, Sequence[dict[str, Any]]]], chats: ChatTemplate
) -> None:
    """Try the template, and look for a message that gives rows, before the model is loaded.

    Args:
        conversations: some of the data set, each with where it is.
        chats: the template.

    Raises:
        UsageError: the template cannot write the first of them, or none has a message of these roles.
    """
    seen: dict[str, int] = {}
    count = 0
    for count, (where, messages) in enumerate(conversations, 1):
        if count <= 16:
            chats.render(messages, where)
        for message in messages:
            seen[message["role"]] = seen.get(message["role"], 0) + bool(message["content"].strip())
        if count >= 16 and any(seen.get(role) for role in chats.roles):
            return
    if not chats.includes_markup and not any(seen.get(role) for role in chats.roles):
        there = ", ".join(role for role in MESSAGE_ROLES if seen.get(role)) or "none with any text"
        raise UsageError(
            f"text.chat.roles=[{', '.join(chats.roles)}] gives no row: the first {count} conversations have "
            f"messages of {there}; name one of these"
        )


def _forms(content: str) -> list[str]:
    """How templates may write a content: as it is, without blanks around it, without thoughts before it."""
    found = [content, content.strip(), content.lstrip(), content.rstrip()]
    if _END_OF_THINKING in content:
        answer = content.split(_END_OF_THINKING)[-1]
        found += [answer, answer.lstrip("\n"), answer.strip("\n"), answer.strip()]
    return found


def _tokens_of(span: Span, offsets: NDArray[np.int64], text: str) -> NDArray[np.bool_]:
    """Which tokens belong to ``span``; ``offsets`` int64 [n, 2] are their characters. bool [n]."""
    start, stop = offsets[:, 0], offsets[:, 1]
    overlaps = (start < span.stop) & (stop > span.start)
    belongs: NDArray[np.bool_] = overlaps & (start >= span.start) & (stop <= span.stop)
    for token in np.flatnonzero(overlaps & ~belongs):
        first, last = int(start[token]), int(stop[token])
        outside = text[first : max(first, span.start)] + text[min(last, span.stop) : last]
        inside = text[max(first, span.start) : min(last, span.stop)]
        belongs[token] = not outside.strip() and bool(inside.strip())
    return belongs


def _read_template(tokenizer: Any, place: str | None) -> str:
    if place is not None:
        path = expanded(place)
        try:
            text = read_regular(path, _MOST_TEMPLATE_BYTES).decode("utf-8")
            return text.replace("\r\n", "\n").replace("\r", "\n")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"text.chat.template={place!r} cannot be read as a chat template: {error}"
            ) from None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        raise UsageError(
            "text.chat: this model's tokenizer has no chat template (a base model has none). Choose the chat "
            "model that was made from it, or set text.chat.template to a file with a Jinja template"
        ) from None


def _with_fixed_date(template: str, day: date) -> str:
    """``template``, which finds ``day`` where it asks for the current date."""
    if "strftime_now" not in template:
        return template
    formats = {double or single for double, single in _DATE_FORMAT.findall(template)}
    if template.count("strftime_now(") != len(_DATE_FORMAT.findall(template)):
        raise UsageError(
            "text.chat: the chat template writes the current date in a way that cannot be fixed, so the "
            "cache would differ from day to day; set text.chat.template to a copy with a date of its own"
        )
    cases = "".join(
        f'{{%- if format == "{each}" -%}}{day.strftime(each)}{{%- endif -%}}' for each in sorted(formats)
    )
    return f"{{%- macro strftime_now(format) -%}}{cases}{{%- endmacro -%}}{template}"
