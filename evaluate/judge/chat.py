"""Chat completions: the body of a request, the text of its answer, and what explanations and scores say."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .calls import Answer, Call, Request
from .config import EndpointConfig
from .failures import RefusedRequestError, UnreadableAnswerError

T = TypeVar("T")
Message = dict[str, str]

_MAX_EXPLANATION = 1000  # characters
_LISTS = re.compile(r"\[([01\s,]*)\]")
_EXPLANATION = re.compile(r"^[\s*_#\[]*explanation[\s*_\]]*:[\s*_]*(.+)$", re.IGNORECASE)


def make_chat_call(
    messages: Sequence[Message],
    read: Callable[[str], T],
    settings: EndpointConfig,
    *,
    max_tokens: int,
    num_tokens: tuple[int, int],
    repair: str,
) -> Call[T]:
    """A call of the chat with ``messages``.

    Args:
        read: what a text says; raises :class:`UnreadableAnswerError`.
        max_tokens: the server's limit of the answer.
        num_tokens: expected of the prompt and of the answer.
        repair: the message that asks again.
    """
    body: Request = {"model": settings.model, "messages": list(messages), settings.token_field: max_tokens}
    if settings.temperature is not None:
        body["temperature"] = settings.temperature

    def read_answer(answer: Answer) -> T:
        if answer["finish_reason"] == "length":
            raise UnreadableAnswerError(f"the answer was cut at {max_tokens} tokens")
        return read(answer["text"])

    def ask_again(body: Request, answer: Answer, reason: str) -> Request:
        more = [
            {"role": "assistant", "content": answer["text"] or "(nothing)"},
            {"role": "user", "content": f"{repair} ({reason})"},
        ]
        return body | {"messages": [*body["messages"], *more]}

    return Call(
        "/chat/completions", body | settings.extra, num_tokens, extract_text, _is_text, read_answer, ask_again
    )


def extract_text(reply: Mapping[str, Any]) -> Answer:
    """The text of a chat completion, and why it ended.

    Raises:
        RefusedRequestError: it is none.
    """
    try:
        choice = reply["choices"][0]
        text, ended = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        shown = ", ".join(sorted(map(str, reply)))[:100]
        raise RefusedRequestError(
            f"the server's JSON is no chat completion (it has {shown or 'nothing'})"
        ) from None
    answer = {"text": "" if text is None else text, "finish_reason": ended}
    if not _is_text(answer):
        raise RefusedRequestError("the server's chat completion has no text")
    return answer


def _is_text(answer: Mapping[str, Any]) -> bool:
    ended = answer.get("finish_reason", 0)
    return isinstance(answer.get("text"), str) and (ended is None or isinstance(ended, str))


def read_explanation(text: str) -> str:
    """The explanation in an answer: what follows ``EXPLANATION:`` on the last line that begins so.

    Raises:
        UnreadableAnswerError: there is none.
    """
    found = [match[1].strip() for line in _spoken(text).splitlines() if (match := _EXPLANATION.match(line))]
    found = [one.rstrip("*_ ") for one in found if one.strip("*_[]() ")]
    if not found:
        raise UnreadableAnswerError("no line begins with EXPLANATION:")
    return " ".join(found[-1].split())[:_MAX_EXPLANATION]


def read_marks(num_examples: int) -> Callable[[str], list[bool]]:
    """A reader of answers that mark each of ``num_examples`` examples: the last list of 0 and 1 in them."""

    def read(text: str) -> list[bool]:
        lists = _LISTS.findall(_spoken(text))
        if not lists:
            raise UnreadableAnswerError("no list of 0 and 1 in square brackets")
        marks = re.findall("[01]", lists[-1])
        if re.sub(r"\s", "", lists[-1]) != ",".join(marks) or len(marks) != num_examples:
            raise UnreadableAnswerError(f"expected a list of {num_examples} numbers, each 0 or 1")
        return [mark == "1" for mark in marks]

    return read


def _spoken(text: str) -> str:
    """``text`` without what a reasoning model thinks aloud before it answers."""
    return text.rpartition("</think>")[2]
