"""Calls: what is asked, how the answer is read, and how many of them are made at once.

A chat answer that cannot be read is asked for again within the same conversation, because a judge at
temperature 0 would only repeat itself. Every answer is stored, also an unreadable one, so that a run that
was interrupted continues with the same conversation.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ...common.progress import progress_bar
from .answers import AnswerFolder
from .endpoint import Endpoint
from .failures import CONTINUES, EndpointError, RefusedRequestError, Stopped, UnreadableAnswerError

T = TypeVar("T")
Request = dict[str, Any]
Answer = dict[str, Any]

_FAILURES_IN_A_ROW = 10  # so many refused requests one after the other: the server is at fault, not they


@dataclass(frozen=True)
class Call(Generic[T]):
    """One question.

    Attributes:
        path: below the endpoint's URL.
        body: of the request.
        num_tokens: expected of the request and of the answer.
        extract: the answer, as it is stored, of the server's JSON; raises :class:`RefusedRequestError`.
        fits: whether a stored answer has the form that ``extract`` gives.
        read: what the stored answer says; raises :class:`UnreadableAnswerError`.
        repair: the body that asks again, given the former body, the answer and what is wrong with it; None if
            there is no asking again.
    """

    path: str
    body: Request
    num_tokens: tuple[int, int]
    extract: Callable[[Mapping[str, Any]], Answer]
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Answer], T]
    repair: Callable[[Request, Answer, str], Request] | None = None


@dataclass(frozen=True)
class Unanswered:
    """A call without a usable answer, and why."""

    reason: str


@dataclass
class Caller:
    """Makes calls to one server, or takes their answers from the folder.

    Attributes:
        stored_as: the server's name in the folder; None: its URL.
        made: requests that were answered by the server in this run.
    """

    endpoint: Endpoint
    answers: AnswerFolder
    concurrency: int
    max_repairs: int
    stop: threading.Event
    stored_as: str | None = None
    made: int = 0
    _failures_in_a_row: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def find(self, call: Call[T]) -> T | Unanswered | None:
        """The outcome of ``call`` as far as the folder knows it; None if the server has to be asked."""
        return self._converse(call, lambda body: self.answers.get(self._request(call, body), call.fits))

    def make(self, calls: Sequence[Call[T]], what: str, *, show_progress: bool) -> list[T | Unanswered]:
        """The outcomes of ``calls``, in their order.

        Raises:
            EndpointError: the server is out of order; what it answered is stored.
        """
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        try:
            with progress_bar(what, "call", len(calls), hidden=not show_progress) as progress:

                def one(call: Call[T]) -> T | Unanswered:
                    outcome = self._make_one(call)
                    progress.update()
                    return outcome

                futures = [pool.submit(one, call) for call in calls]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                errors = [error for future in done if (error := future.exception()) is not None]
                if errors:  # the others stopped because of the first
                    raise next((e for e in errors if not isinstance(e, Stopped)), errors[0])
        except BaseException as error:
            self.stop.set()
            # Calls under way cost something: their answers are still stored, unless the user cannot wait.
            pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
            raise
        pool.shutdown()
        return [future.result() for future in futures]

    def _make_one(self, call: Call[T]) -> T | Unanswered:
        def ask(body: Request) -> Answer:
            request = self._request(call, body)
            answer = self.answers.get(request, call.fits)
            if answer is None:
                answer = self.endpoint.post(call.path, body, sum(call.num_tokens), call.extract)
                self.answers.put(request, answer)
                self._count(failed=False)
            return answer

        try:
            outcome = self._converse(call, ask)
        except RefusedRequestError as error:
            self._count(failed=True, reason=str(error))
            return Unanswered(str(error))
        assert outcome is not None
        return outcome

    def _converse(self, call: Call[T], ask: Callable[[Request], Answer | None]) -> T | Unanswered | None:
        """Ask, and ask again while the answer cannot be read; None where ``ask`` gives no answer."""
        body, reason = call.body, ""
        for _ in range(1 + (self.max_repairs if call.repair is not None else 0)):
            answer = ask(body)
            if answer is None:
                return None
            try:
                return call.read(answer)
            except UnreadableAnswerError as error:
                reason = str(error)
            if call.repair is not None:
                body = call.repair(body, answer, reason)
        return Unanswered(reason)

    def _request(self, call: Call[T], body: Request) -> Request:
        """What identifies a request in the folder: where it goes and what it says."""
        return {"url": self.stored_as or self.endpoint.url, "path": call.path, "body": body}

    def _count(self, *, failed: bool, reason: str = "") -> None:
        with self._counting:
            self.made += not failed
            self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
            if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
                self.stop.set()  # here, or this thread would begin another call before the failure is seen
                raise EndpointError(
                    f"the judge at {self.endpoint.url} refused {_FAILURES_IN_A_ROW} calls one after the "
                    f"other: {reason}. {CONTINUES}"
                )


def split(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in parts of ``size``; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
