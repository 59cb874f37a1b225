"""The folder of answers: what is damaged or foreign in it is asked for again and never believed."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecache.common.errors import SaecacheError, UsageError
from saecache.evaluate.judge.answers import AnswerFolder
from saecache.evaluate.judge.calls import Call, Caller
from saecache.evaluate.judge.chat import make_chat_call, read_explanation, read_marks
from saecache.evaluate.judge.config import EndpointConfig
from saecache.evaluate.judge.embeddings import EndpointEncoder, make_embedding_call
from saecache.evaluate.judge.endpoint import Endpoint
from saecache.evaluate.judge.failures import EndpointError, RefusedRequestError, UnreadableAnswerError
from tests.hostile import (
    CASES,
    bounded,
    check_nothing_outside,
    damaged_json,
    in_its_place,
    mutated,
    replace_with,
)

from ...killing import DEADLINE_SECONDS
from .conftest import Ask
from .judge_server import MODEL, Handler, Judge, Request, content, embed, status

REQUEST = {"url": "http://judge/v1", "path": "/chat/completions", "body": {"model": "m", "messages": []}}
ANSWER = {"text": "EXPLANATION: ümlaut", "finish_reason": "stop"}


def fits(answer: Any) -> bool:
    return isinstance(answer.get("text"), str)


@pytest.fixture
def answers(tmp_path: Path) -> AnswerFolder:
    folder = AnswerFolder(tmp_path / "answers")
    folder.put(REQUEST, ANSWER)
    return folder


def test_an_answer_comes_back_for_its_request_only(answers: AnswerFolder) -> None:
    assert answers.get(REQUEST, fits) == ANSWER
    reordered = {key: REQUEST[key] for key in reversed(REQUEST)}
    assert answers.get(reordered, fits) == ANSWER
    for key, value in (("url", "http://other/v1"), ("path", "/embeddings"), ("body", {"model": "m2"})):
        assert answers.get(REQUEST | {key: value}, fits) is None
    assert not answers.damaged


@pytest.mark.parametrize("seed", range(CASES))
def test_damaged_entries_are_absent_or_right(answers: AnswerFolder, seed: int) -> None:
    path = answers.place(REQUEST)
    whole = path.read_bytes()
    path.write_bytes(mutated(whole, seed) if seed % 2 else damaged_json(whole, seed))
    with bounded():
        found = answers.get(REQUEST, fits)
    assert found in (None, ANSWER)
    assert (found is None) == (path in answers.damaged)
    answers.put(REQUEST, ANSWER)
    assert answers.get(REQUEST, fits) == ANSWER


@in_its_place
def test_what_stands_in_the_place_of_an_entry(answers: AnswerFolder, what: str) -> None:
    path = answers.place(REQUEST)
    replace_with(what, path)
    with bounded():
        assert answers.get(REQUEST, fits) is None
    if what != "a folder":
        answers.put(REQUEST, ANSWER)
        assert answers.get(REQUEST, fits) == ANSWER
    else:
        with pytest.raises(UsageError, match=r"cannot store an answer in .*stands there .* remove it"):
            answers.put(REQUEST, ANSWER)
    check_nothing_outside(path)


@in_its_place
@pytest.mark.parametrize("place", ["judge_answers", "judge_answers/1e", "judge_answers/lock"])
def test_what_stands_in_a_folder_of_answers(ask: Ask, run_folder: Path, place: str, what: str) -> None:
    (run_folder / "judge_answers").mkdir()
    replace_with(what, run_folder / place)
    outside = run_folder / "outside"
    outside.mkdir()
    if what == "a link out":
        (run_folder / place).unlink()
        (run_folder / place).symlink_to(outside)
    with bounded():
        try:
            ask(num_latents=1, calibration=None)
        except UsageError as error:
            assert re.search(r"--answers|remove it|must name a folder", str(error))
    assert not list(outside.iterdir())


def test_an_entry_of_another_form_is_absent_even_with_the_right_hash(tmp_path: Path) -> None:
    folder = AnswerFolder(tmp_path)
    folder.put(REQUEST, {"words": 1})
    assert folder.get(REQUEST, fits) is None and len(folder.damaged) == 1


def test_an_entry_moved_to_another_name_is_absent(answers: AnswerFolder) -> None:
    other = REQUEST | {"body": {"model": "m", "messages": ["other"]}}
    answers.place(other).parent.mkdir(exist_ok=True)
    answers.place(REQUEST).rename(answers.place(other))
    assert answers.get(other, fits) is None


def test_a_run_asks_again_for_damaged_answers(ask: Ask, run_folder: Path) -> None:
    ask(num_latents=1, calibration=None)
    before = (run_folder / "results.json").read_bytes()
    entries = sorted((run_folder / "judge_answers").rglob("*.json"))
    for entry in entries[:4]:
        document = json.loads(entry.read_text())
        document["answer"]["text"] = "[1, 1, 1, 1]"  # the hash does not fit any more
        entry.write_text(json.dumps(document))
    entries[4].write_bytes(b"")
    said: list[str] = []
    done = ask(num_latents=1, calibration=None, say=said.append)
    assert done.made == 5 and (run_folder / "results.json").read_bytes() == before
    assert any("5 stored answers were damaged, and were asked for again" in text for text in said)


def test_two_runs_do_not_share_a_folder_at_once(ask: Ask, judge: Judge) -> None:
    errors: list[SaecacheError] = []
    judge.delay = 0.05

    def run() -> None:
        try:
            ask(num_latents=1, calibration=None)
        except SaecacheError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) <= 1
    for error in errors:
        assert "being written by another process" in str(error)
    prompts = [json.dumps(request.body) for request in judge.posts]
    assert len(prompts) == len(set(prompts))


# ---- what answers say


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("[1, 0, 1]", [True, False, True]), ("Sure: [0,0,0].", [False] * 3),
        ("[1,\n1 ,0]", [True, True, False]),
        ("First [0, 1], so [1, 1, 1]", [True] * 3), ("<think>[1,1,1]</think>[0, 0, 1]", [False, False, True]),
        ("```json\n[1,0,0]\n```", [True, False, False]),
    ],
)  # fmt: skip
def test_marks_that_can_be_read(text: str, marks: list[bool]) -> None:
    assert read_marks(3)(text) == marks


@pytest.mark.parametrize(
    "text",
    ["", "1, 0, 1", "[]", "[1, 0]", "[1, 0, 1, 1]", "[10, 0]", "[1 0 1]", "[1,,0,1]", "[true, false, true]",
     "[1, 0, 1] or [0, 1]", "[-1, 0, 1]", "[1, 0, 1"],
)  # fmt: skip
def test_marks_that_cannot_be_read_are_not_guessed(text: str) -> None:
    with pytest.raises(UnreadableAnswerError):
        read_marks(3)(text)


@pytest.mark.parametrize(
    ("text", "explanation"),
    [
        ("EXPLANATION: numbers", "numbers"), ("I think.\n\nExplanation:  a  b \n", "a b"),
        ("**EXPLANATION:** bold words", "bold words"), ("[EXPLANATION]: as delphi", "as delphi"),
        ("EXPLANATION: first\nEXPLANATION: second", "second"), ("# Explanation: a heading", "a heading"),
        ("<think>EXPLANATION: no</think>\nEXPLANATION: yes", "yes"),
        ("EXPLANATION: " + "x" * 5000, "x" * 1000),
    ],
)  # fmt: skip
def test_explanations_that_can_be_read(text: str, explanation: str) -> None:
    assert read_explanation(text) == explanation


@pytest.mark.parametrize(
    "text", ["", "numbers", "EXPLANATION:", "EXPLANATION: **", "My explanation is: x\n", "EXPLANATION\nx"]
)
def test_explanations_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UnreadableAnswerError):
        read_explanation(text)


# ---- calls


@pytest.fixture
def caller(tmp_path: Path, judge: Judge) -> Iterator[Caller]:
    stop = threading.Event()
    endpoint = Endpoint(judge.url, None, EndpointConfig(concurrency=4, max_retries=0), stop)
    yield Caller(endpoint, AnswerFolder(tmp_path / "a"), 4, 1, stop)
    endpoint.close()


def chat_call(word: str, **settings: Any) -> Call[str]:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": f"Excerpt 1: <<{word}>>"}]
    config = EndpointConfig.model_validate({"model": MODEL} | settings)
    return make_chat_call(messages, read_explanation, config, max_tokens=9, num_tokens=(5, 5), repair="again")


def test_outcomes_come_in_the_order_of_the_calls(caller: Caller, judge: Judge) -> None:
    words = [f"w{i}" for i in range(30)]
    judge.delay = 0.01
    outcomes = caller.make([chat_call(word) for word in words], "test", show_progress=False)
    assert outcomes == [f'one of ["{word}"]' for word in words]
    assert caller.made == 30 and 1 < judge.most_at_once <= 4
    assert [caller.find(chat_call(word)) for word in words] == outcomes
    assert caller.find(chat_call("unknown")) is None and len(judge.posts) == 30


def test_one_failure_ends_all_and_keeps_what_was_answered(caller: Caller, judge: Judge) -> None:
    def refuse_later(handler: Handler, request: Request) -> bool:
        stop.wait(DEADLINE_SECONDS)  # other calls are not made before the first refusal is known
        return status(401, "who?")(handler, request)

    stop = caller.stop
    judge.faults = [lambda handler, request: False] * 5 + [status(401, "who?"), *[refuse_later] * 100]
    calls = [chat_call(f"w{i}") for i in range(60)]
    with pytest.raises(EndpointError, match="refuses us"):
        caller.make(calls, "test", show_progress=False)
    assert sum(caller.find(call) is not None for call in calls) == caller.made == 5
    assert len(judge.posts) < 30


def test_the_body_of_a_request() -> None:
    call = chat_call(
        "a", temperature=None, token_field="max_completion_tokens", extra={"seed": 7, "model": "x"}
    )
    assert call.body["max_completion_tokens"] == 9 and "temperature" not in call.body
    assert (call.body["seed"], call.body["model"]) == (7, "x")
    assert chat_call("a").body["temperature"] == 0


def test_embeddings_are_in_the_order_of_the_texts(caller: Caller, judge: Judge) -> None:
    encoder = EndpointEncoder(caller, "m", len)
    texts = [f"text number {i}" for i in range(70)]
    assert np.array_equal(encoder.embed(texts), np.asarray([embed(text) for text in texts], dtype=np.float32))
    assert len(judge.posts) == 3
    again = encoder.embed(texts)
    assert len(judge.posts) == 3 and again.dtype == np.float32


@pytest.mark.parametrize(
    "document",
    [
        {}, {"data": []}, {"data": [{"index": 0, "embedding": []}]}, {"data": [{"index": 0}]}, {"data": "x"},
        {"data": [{"index": 0, "embedding": ["1"]}]}, {"data": None}, [],
        {"data": [{"index": "a", "embedding": [1.0]}]}, {"data": [{"index": [], "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": [10**400]}]},
        {"data": [{"index": 0, "embedding": [float("nan")]}]},
        {"data": [{"index": 1, "embedding": [1.0]}]}, {"data": [{"index": 0, "embedding": {"0": 1}}]},
    ],
)  # fmt: skip
def test_embeddings_of_another_form_are_refused(document: Any) -> None:
    call = make_embedding_call(["one text"], "m", 3)
    with pytest.raises(RefusedRequestError, match="no embeddings of 1 texts"):
        call.extract(document)


def test_a_server_without_embeddings_is_said(caller: Caller, judge: Judge) -> None:
    judge.always = content({"data": []})
    with pytest.raises(EndpointError, match="embeds no texts"):
        EndpointEncoder(caller, "m", len).embed(["a"])
